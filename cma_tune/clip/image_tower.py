"""The image side of open_clip's and of transformers' models: which module it is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.transformers_text import features_of, is_transformers_model
from cma_tune.errors import UserError

CPU_IMAGES = 8
"""Images that go through an image tower at once on a CPU."""


def in_parts(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`encode` of images ``[B, 3, H, W]``, on a CPU some at a time.

    Activations that fit the caches and the allocator's pool are several times faster there. An exported graph
    takes any number of images and has no place for parts.
    """
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.cat([encode(part) for part in torch.split(images, CPU_IMAGES)])
    return encode(images)


def image_tower(model: nn.Module) -> nn.Module:
    """The module that turns images into features, but for a projection that stands beside it."""
    return model.get_submodule("vision_model" if is_transformers_model(model) else "visual")


def check_image_tower(model: nn.Module, name: str) -> None:
    """Raise a `UserError` if the model takes images cut into patches, each of its own shape (NaFlex)."""
    embeddings = getattr(image_tower(model), "embeddings", None)
    if isinstance(getattr(embeddings, "patch_embedding", None), nn.Linear):
        raise UserError(
            f"Expected an image tower that takes images of one size in '{name}', got {type(model).__name__}, "
            "which takes patches of images of any shape; choose a fixed-resolution checkpoint."
        )


def image_features(model: nn.Module, images: Tensor) -> Tensor:
    """The model's own features ``[B, D]`` of images ``[B, 3, H, W]``, not normalised."""
    own: Any = model
    if is_transformers_model(model):
        return features_of(own.get_image_features(pixel_values=images))
    return torch.as_tensor(own.encode_image(images))


def input_dtype(visual: nn.Module) -> torch.dtype:
    """What the first layer takes. In open_clip's half precision, embeddings and norms stay float32."""
    for module in visual.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return module.weight.dtype
    return next(visual.parameters()).dtype
