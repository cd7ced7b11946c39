"""TCP: context tokens made from each class's own text features, in a middle layer (Yao et al. 2024, CVPR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.text_tower import NativeTextTower
from cma_tune.errors import UserError
from cma_tune.learners.base import PromptOutput
from cma_tune.learners.coop import ContextLearner, ContextOptions
from cma_tune.learners.starts import drawn_from
from cma_tune.learners.zero_shot import ZeroShot

REDUCTION = 4
"""Width of the features over that of the bottleneck; 128 units for ViT-B/16, as in the paper."""


class Tcp(ContextLearner):
    """A learned context that gives way to class-aware tokens before block `layer` (TCP, sec. 3).

    The tokens ``[C, M, W]`` come from the hand-written prompts' features t̂ through a bottleneck:
    Linear(D→D/4), x·σ(1.702x), Linear(D/4→M·W). The loss adds w·(1 − mean cos(t_c, t̂_c)), as in the authors'
    code: half of KgCoOp's squared distance. With the CMA loss it is (1−λ)·(CE + w·…) + λ·CMA.

    Below block `layer` the context runs once for all classes; from there on their prompts have nothing but
    their start in common.

    Args:
        backbone, class_names, options, seed, context: see `ContextLearner`.
        templates: hand-written prompts with one ``{}`` each.
        layer: block, from 0, before which the tokens take their places; by default two thirds of the way up,
            the paper's 8 of 12.
        weight: w.
        bottleneck: layers to share instead of a start of their own.

    Raises:
        UserError: the text tower has no such block, or its blocks are not at hand.
    """

    name = "tcp"
    embeddings: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        templates: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        layer: int | None = None,
        weight: float = 8.0,
        bottleneck: nn.ModuleList | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context)
        self.layer = _checked_layer(backbone, layer)
        self.weight = weight
        zero_shot = ZeroShot(backbone, class_names, templates)
        self.templates = zero_shot.templates
        self.register_buffer("embeddings", zero_shot.embeddings, persistent=False)
        if bottleneck is None:
            tokens = self.options.tokens * backbone.tower.width
            bottleneck = _bottleneck(self.embeddings.shape[-1], tokens, seed).to(backbone.device)
        self.bottleneck = bottleneck

    def class_tokens(self) -> Tensor:
        """The class-aware tokens ``[C, M, W]``."""
        down, up = self.bottleneck
        hidden: Tensor = down(self.embeddings.to(self.context.dtype))
        tokens: Tensor = up(hidden * torch.sigmoid(1.702 * hidden))
        return tokens.unflatten(-1, (self.options.tokens, -1))

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings ``[C, D]``."""
        deep = [*[None] * (self.layer - 1), self.class_tokens()[None]]
        return self.prompts.encode(self.context[None], deep, same_on_every_process=True)[0]

    def regulariser(self, output: PromptOutput) -> Tensor:
        """w·(1 − the mean cosine of learned and hand-written prompts)."""
        same = (output.text_features * self.embeddings.to(output.text_features)).sum(dim=-1)
        return self.weight * (1 - same.mean())

    def for_classes(self, class_names: Sequence[str]) -> Tcp:
        """The learned context and bottleneck over other names; the parameters are shared, not copied.

        Raises:
            UserError: the context is class-specific.
        """
        self._check_shared()
        rest = (self.options, 0, self.context, self.layer, self.weight, self.bottleneck)
        return Tcp(self.backbone, class_names, self.templates, *rest)

    def describe(self) -> dict[str, Any]:
        """The context's form and shape, layer, w and templates."""
        options = {"layer": self.layer, "weight": self.weight, "templates": list(self.templates)}
        return {**super().describe(), "options": options}

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        options = card["options"]
        return {
            "layer": int(options["layer"]),
            "weight": float(options["weight"]),
            "templates": list(options["templates"]),
        }


def _checked_layer(backbone: Backbone, layer: int | None) -> int:
    blocks = backbone.tower.layers
    chosen = max(1, 2 * blocks // 3) if layer is None else layer
    if not isinstance(backbone.tower, NativeTextTower) or not 1 <= chosen < blocks:
        kind = "one" if isinstance(backbone.tower, NativeTextTower) else "another"
        raise UserError(
            f"Expected a text tower whose blocks are at hand, with a block {chosen} (from 0) above the first "
            f"for TCP, got {kind} with {blocks} blocks in '{backbone.name}'; choose --tcp.layer or another "
            "backbone."
        )
    return chosen


def _bottleneck(features: int, tokens: int, seed: int) -> nn.ModuleList:
    """The two layers with torch's default start, drawn from `seed` without touching the global generator."""
    hidden = max(1, features // REDUCTION)
    with drawn_from(seed):
        return nn.ModuleList([nn.Linear(features, hidden), nn.Linear(hidden, tokens)])
