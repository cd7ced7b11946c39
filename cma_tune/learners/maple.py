"""MaPLe: visual prompts that are projections of the language prompts (Khattak et al. 2023, CVPR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.coop import ContextOptions
from cma_tune.learners.deep_prompts import DeepPrompts
from cma_tune.learners.starts import drawn_from


class MaPLe(DeepPrompts):
    """Language prompts before each of the first `depth` blocks, and their projections in the image tower.

    A linear layer of its own for every block couples them (MaPLe, sec. 3.2): P̃_i = F_i(P_i). As in the
    authors' code, the layers of the second block and those after it start alike, from torch's default.

    Args:
        backbone, class_names, options, seed, context, depth: see `DeepPrompts`.

    Attributes:
        projections: the layers F_i, text width → image width.

    Raises:
        UserError: see `DeepPrompts`.
    """

    name = "maple"
    share = 0.75

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context, depth)
        widths = (backbone.tower.width, self.image_tower.width)
        with drawn_from(seed):
            first, deep = nn.Linear(*widths), nn.Linear(*widths)
        deeper = [deepcopy(deep) for _ in range(self.depth - 1)]
        self.projections = nn.ModuleList([first, *deeper]).to(backbone.device)

    def image_prompts(self) -> Sequence[Tensor]:
        """See `VisualPrompts`."""
        language = [self.context, *([] if self.deep is None else self.deep)]
        return [project(prompt) for project, prompt in zip(self.projections, language, strict=True)]

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        return {"depth": int(card["options"]["depth"])}
