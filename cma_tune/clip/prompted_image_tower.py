"""The image tower with prompts among its tokens, for vision transformers.

Prompts are vectors beside the class token and the patches (VPT, Jia et al. 2022, sec. 3.2). The tower here is
a view of the model's own modules: nothing is copied, and without prompts the features equal the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.image_parts import image_parts
from cma_tune.clip.image_tower import image_tower, in_parts, input_dtype
from cma_tune.errors import UserError


class PromptedImageTower:
    """Images and prompts to image features.

    Args:
        backbone: the frozen model.

    Attributes:
        layers: number of blocks.
        width: of the tokens.

    Raises:
        UserError: its image tower is no vision transformer of open_clip, timm or transformers.
    """

    def __init__(self, backbone: Backbone) -> None:
        parts = image_parts(backbone.model)
        if parts is None:
            raise UserError(
                f"Expected a vision transformer for visual prompts in '{backbone.name}', got "
                f"{_kind(backbone)}; choose a ViT backbone, or a --learner without visual prompts."
            )
        # No module, so that the frozen weights stay the backbone's alone, whoever holds the view.
        self._parts = parts
        self._dtype = input_dtype(image_tower(backbone.model))
        self.layers = len(parts.blocks)
        self.width = parts.width

    def __call__(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Image features ``[B, D]``, as the model makes them (not normalised), differentiable in the prompts.

        Args:
            images: ``[B, 3, H, W]``.
            prompts: at most one ``[P, W]`` for every block. The first joins the tokens after their positions
                were added, before the norm that precedes the blocks; each further one replaces the prompt
                tokens before its block. No prompt token is pooled.
        """
        images = images.to(self._dtype, memory_format=torch.channels_last)
        return in_parts(lambda part: self._encode(part, prompts), images)

    def _encode(self, images: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        parts = self._parts
        x = parts.tokens(images)
        own = x.shape[1]
        if prompts:
            x = _with_prompts(x, own, prompts[0])
        x = parts.first_norm(x)
        for number in range(self.layers):
            if 0 < number < len(prompts):
                x = _with_prompts(x, own, prompts[number])
            x = parts.block(number, x)
        return parts.features(x[:, :own])


def _kind(backbone: Backbone) -> str:
    visual = image_tower(backbone.model)
    return type(getattr(visual, "trunk", visual)).__name__


def _with_prompts(x: Tensor, own: int, prompts: Tensor) -> Tensor:
    """The first `own` tokens of ``[B, L, W]``, then the prompts ``[P, W]``."""
    return torch.cat([x[:, :own], prompts.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
