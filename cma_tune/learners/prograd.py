"""ProGrad: CoOp whose steps do not work against zero-shot CLIP (Zhu et al. 2023, ICCV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import PromptOutput
from cma_tune.learners.coop import AnchoredContextLearner, ContextOptions


class ProGrad(AnchoredContextLearner):
    """CoOp with its gradient projected (ProGrad, sec. 3).

    Where the objective's gradient g opposes that of KL(p_zs ‖ p), h, a step goes along g − w·(g·h/‖h‖²)·h.
    p_zs are the probabilities of the hand-written prompts; both are softened by a temperature. With the CMA
    loss, g is the gradient of (1−λ)·CE + λ·CMA.

    Args:
        backbone, class_names, options, seed, context: see `ContextLearner`.
        weight: w, the paper's λ (it takes 1).
        temperature: T of softmax(logits/T).
        anchors: see `AnchoredContextLearner`.
    """

    name = "prograd"

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        weight: float = 1.0,
        temperature: float = 1.0,
        anchors: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context, anchors)
        self.guide_weight = weight
        self.temperature = temperature

    def guide(self, output: PromptOutput) -> Tensor:
        """KL(p_zs ‖ p) of every image ``[B]``.

        Raises:
            ValueError: the learner was made without anchors.
        """
        zero_shot = self.logits(output.image_features, self.needed_anchors().to(output.image_features))
        before, now = (
            (logits / self.temperature).log_softmax(dim=1) for logits in (zero_shot, output.logits)
        )
        return (before.exp() * (before - now)).sum(dim=1)

    def describe(self) -> dict[str, Any]:
        """The context's form and shape, w and T."""
        return {
            **super().describe(),
            "options": {"weight": self.guide_weight, "temperature": self.temperature},
        }

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        return {name: float(card["options"][name]) for name in ("weight", "temperature")}
