"""KgCoOp: CoOp held near the hand-written prompts (Yao et al. 2023, CVPR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import PromptOutput
from cma_tune.learners.coop import AnchoredContextLearner, ContextOptions


class KgCoOp(AnchoredContextLearner):
    """CoOp with w · 1/C Σ_c ‖t_c − t̂_c‖² beside cross-entropy (KgCoOp, sec. 3).

    t_c are the learned prompts' text features and t̂_c those of the hand-written ones, all of unit length.
    With the CMA loss the objective is (1−λ)·(CE + w·…) + λ·CMA. The authors' code takes 1 − t_c·t̂_c in place
    of the squared distance 2·(1 − t_c·t̂_c) that the paper has, so its w = 8 is w = 4 here (and TCP's 8).

    Args:
        backbone, class_names, options, seed, context: see `ContextLearner`.
        weight: w.
        anchors: t̂ ``[C, D]``; only training needs them.
    """

    name = "kgcoop"

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        weight: float = 8.0,
        anchors: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context, anchors)
        self.weight = weight

    def regulariser(self, output: PromptOutput) -> Tensor:
        """w times the mean over classes of the squared distances.

        Raises:
            ValueError: the learner was made without anchors.
        """
        return self.weight * distance_to(self.needed_anchors(), output.text_features)

    def describe(self) -> dict[str, Any]:
        """The context's form and shape, and w."""
        return {**super().describe(), "options": {"weight": self.weight}}

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        return {"weight": float(card["options"]["weight"])}


def distance_to(anchors: Tensor, text_features: Tensor) -> Tensor:
    """1/C Σ_c ‖t_c − t̂_c‖² of two times ``[C, D]``."""
    return (text_features - anchors.to(text_features)).square().sum(dim=-1).mean()
