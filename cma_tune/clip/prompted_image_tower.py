"""The image tower with prompts among its tokens, for open_clip's own vision transformer.

Prompts are vectors beside the class token and the patches (VPT, Jia et al. 2022, sec. 3.2). The tower here is
a view of the model's own modules: nothing is copied, and without prompts the features equal ``encode_image``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.image_tower import image_tower, in_parts
from cma_tune.errors import UserError

_PARTS = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "proj", "_pool")
"""What open_clip's vision transformer has, and neither its ResNets nor timm's towers have all of."""


class PromptedImageTower:
    """Images and prompts to image features.

    Args:
        backbone: the frozen model.

    Attributes:
        layers: number of blocks.
        width: of the tokens.

    Raises:
        UserError: its image tower is no vision transformer of open_clip's own.
    """

    def __init__(self, backbone: Backbone) -> None:
        visual: Any = image_tower(backbone.model)
        missing = [part for part in _PARTS if not hasattr(visual, part)]
        if missing or not getattr(visual.transformer, "batch_first", True):
            raise UserError(
                f"Expected open_clip's own vision transformer for visual prompts in '{backbone.name}', got "
                f"{type(visual).__name__}; choose a ViT backbone, or a --learner without visual prompts."
            )
        # In a tuple, so that the frozen weights stay the backbone's alone, whoever holds the view.
        self._owner = (visual,)
        self.layers = len(visual.transformer.resblocks)
        self.width = int(visual.conv1.out_channels)

    def __call__(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Image features ``[B, D]``, as the model makes them (not normalised), differentiable in the prompts.

        Args:
            images: ``[B, 3, H, W]``.
            prompts: at most one ``[P, W]`` for every block. The first joins the tokens after their positions
                were added, before the norm that precedes the blocks; each further one replaces the prompt
                tokens before its block. No prompt token is pooled.
        """
        visual = self._owner[0]
        images = images.to(visual.conv1.weight.dtype, memory_format=torch.channels_last)
        return in_parts(lambda part: self._encode(part, prompts), images)

    def _encode(self, images: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        visual = self._owner[0]
        x = self._tokens(images)
        own = x.shape[1]
        if prompts:
            x = _with_prompts(x, own, prompts[0])
        x = visual.ln_pre(x)
        for number, block in enumerate(visual.transformer.resblocks):
            if 0 < number < len(prompts):
                x = _with_prompts(x, own, prompts[number])
            x = block(x)
        pooled, _ = visual._pool(x[:, :own])
        return torch.as_tensor(pooled if visual.proj is None else pooled @ visual.proj)

    def _tokens(self, images: Tensor) -> Tensor:
        """Class token and patches with their positions: ``[B, 1 + N, W]``."""
        visual = self._owner[0]
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype)


def _with_prompts(x: Tensor, own: int, prompts: Tensor) -> Tensor:
    """The first `own` tokens of ``[B, L, W]``, then the prompts ``[P, W]``."""
    return torch.cat([x[:, :own], prompts.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
