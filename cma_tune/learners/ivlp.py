"""IVLP: independent prompts of both towers (a baseline of MaPLe and PromptSRC, Khattak et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.coop import ContextOptions
from cma_tune.learners.deep_prompts import DeepPrompts
from cma_tune.learners.starts import normal_start


class Ivlp(DeepPrompts):
    """Prompts before each of the first `depth` blocks of both towers, which know nothing of each other.

    Args:
        backbone, class_names, options, seed, context, depth: see `DeepPrompts`.
        image_tokens: prompts P before a block of the image tower.

    Attributes:
        visual: ``[depth, P, W]`` in the image tower's width, started from N(0, 0.02²).

    Raises:
        UserError: see `DeepPrompts`.
    """

    name = "ivlp"

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        depth: int | None = None,
        image_tokens: int = 2,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context, depth)
        start = normal_start((self.depth, image_tokens, self.image_tower.width), seed, "visual prompts")
        self.visual = nn.Parameter(start.to(backbone.device))

    def image_prompts(self) -> Sequence[Tensor]:
        """See `VisualPrompts`."""
        return self.visual.unbind()

    def describe(self) -> dict[str, Any]:
        """The context's form and shape, depth, and the number of visual prompts."""
        described = super().describe()
        return {**described, "options": {**described["options"], "image_tokens": self.visual.shape[1]}}

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        options = card["options"]
        return {"depth": int(options["depth"]), "image_tokens": int(options["image_tokens"])}
