"""A vision transformer taken apart: what prompts among its tokens need of each library's modules.

Everything here is a view of the model's own modules: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.image_tower import image_tower
from cma_tune.clip.transformers_text import is_transformers_model


class ImageParts:
    """What a vision transformer is made of.

    Attributes:
        blocks: the residual blocks.
        width: of the tokens, W.
    """

    blocks: Sequence[nn.Module]
    width: int

    def tokens(self, images: Tensor) -> Tensor:
        """The tower's own tokens ``[B, L, W]`` of images ``[B, 3, H, W]``, with their positions."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def first_norm(self, x: Tensor) -> Tensor:
        """What stands between the tokens and the first block."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def block(self, number: int, x: Tensor) -> Tensor:
        """One block: ``[B, L, W]`` → ``[B, L, W]``."""
        return torch.as_tensor(self.blocks[number](x))

    def features(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of the tower's own tokens ``[B, L, W]`` behind the last block."""
        raise TypeError(f"{type(self).__name__} is an interface")


class OpenClipVision(ImageParts):
    """open_clip's own vision transformer."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.blocks = list(self.visual.transformer.resblocks)
        self.width = int(self.visual.conv1.out_channels)

    @staticmethod
    def fits(visual: Any) -> bool:
        """Whether a tower is one; its ResNets and timm's towers lack some of it."""
        parts = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "proj", "_pool")
        return all(hasattr(visual, part) for part in parts) and getattr(
            visual.transformer, "batch_first", True
        )

    def tokens(self, images: Tensor) -> Tensor:
        """See `ImageParts.tokens`."""
        patches = self.visual.conv1(images).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.visual.positional_embedding.to(patches.dtype)

    def first_norm(self, x: Tensor) -> Tensor:
        """See `ImageParts.first_norm`."""
        return torch.as_tensor(self.visual.ln_pre(x))

    def features(self, x: Tensor) -> Tensor:
        """See `ImageParts.features`."""
        pooled, _ = self.visual._pool(x)
        return torch.as_tensor(pooled if self.visual.proj is None else pooled @ self.visual.proj)


class TimmVision(ImageParts):
    """A vision transformer of timm inside open_clip, such as SigLIP's."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.trunk = visual.trunk
        self.blocks = list(self.trunk.blocks)
        self.width = int(self.trunk.embed_dim)

    @staticmethod
    def fits(visual: Any) -> bool:
        """Whether a tower is one that goes through its parts as timm's own forward does."""
        trunk = getattr(visual, "trunk", None)
        if trunk is None:
            return False
        from timm.models.vision_transformer import VisionTransformer

        return isinstance(trunk, VisionTransformer) and all(
            getattr(type(trunk), step) is getattr(VisionTransformer, step)
            for step in ("forward", "forward_features", "forward_head")
        )

    def tokens(self, images: Tensor) -> Tensor:
        """See `ImageParts.tokens`."""
        return torch.as_tensor(self.trunk.patch_drop(self.trunk._pos_embed(self.trunk.patch_embed(images))))

    def first_norm(self, x: Tensor) -> Tensor:
        """See `ImageParts.first_norm`."""
        return torch.as_tensor(self.trunk.norm_pre(x))

    def features(self, x: Tensor) -> Tensor:
        """See `ImageParts.features`."""
        return torch.as_tensor(self.visual.head(self.trunk.forward_head(self.trunk.norm(x))))


class TransformersVision(ImageParts):
    """The vision transformer of transformers' CLIP, MetaCLIP 2, SigLIP and the like."""

    def __init__(self, model: Any) -> None:
        visual: Any = image_tower(model)
        self.model, self.visual = model, visual
        self.blocks = list(visual.encoder.layers)
        self.width = int(visual.config.hidden_size)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model's image tower is one, with a class token and a projection, or a pooling head."""
        visual: Any = image_tower(model)
        pooled = hasattr(model, "visual_projection") or getattr(visual, "use_head", False)
        return pooled and all(hasattr(visual, part) for part in ("embeddings", "encoder", "post_layernorm"))

    def tokens(self, images: Tensor) -> Tensor:
        """See `ImageParts.tokens`."""
        return torch.as_tensor(self.visual.embeddings(images))

    def first_norm(self, x: Tensor) -> Tensor:
        """See `ImageParts.first_norm`; SigLIP has none."""
        norm = getattr(self.visual, "pre_layrnorm", None)
        return x if norm is None else torch.as_tensor(norm(x))

    def block(self, number: int, x: Tensor) -> Tensor:
        """See `ImageParts.block`."""
        return torch.as_tensor(self.blocks[number](x, None))

    def features(self, x: Tensor) -> Tensor:
        """See `ImageParts.features`."""
        if hasattr(self.model, "visual_projection"):
            return torch.as_tensor(self.model.visual_projection(self.visual.post_layernorm(x[:, 0])))
        return torch.as_tensor(self.visual.head(self.visual.post_layernorm(x)))


def image_parts(model: nn.Module) -> ImageParts | None:
    """The parts of a model's image tower; None if it is no vision transformer that is known."""
    if is_transformers_model(model):
        return TransformersVision(model) if TransformersVision.fits(model) else None
    visual = image_tower(model)
    for kind in (OpenClipVision, TimmVision):
        if kind.fits(visual):
            return kind(visual)
    return None
