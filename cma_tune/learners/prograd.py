"""ProGrad: CoOp whose steps do not work against zero-shot CLIP (Zhu et al. 2023, ICCV)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import PromptOutput
from cma_tune.learners.coop import ContextOptions, PlainContextLearner


class ProGrad(PlainContextLearner):
    """CoOp with its gradient projected (ProGrad, sec. 3).

    Where the objective's gradient g opposes that of KL(p_zs ‖ p), h, a step goes along g − (g·h/‖h‖²)·h; p_zs
    are the probabilities of the hand-written prompts. With the CMA loss, g is the gradient of
    (1−λ)·CE + λ·CMA.

    Args:
        backbone, class_names, options, seed, context: see `ContextLearner`.
        anchors: text features ``[C, D]`` of the hand-written prompts; only training needs them.
    """

    name = "prograd"
    anchors: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        anchors: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context)
        self.register_buffer("anchors", anchors, persistent=False)

    def guide(self, output: PromptOutput) -> Tensor:
        """KL(p_zs ‖ p) of every image ``[B]``.

        Raises:
            ValueError: the learner was made without anchors.
        """
        if self.anchors is None:
            raise ValueError("Expected the hand-written prompts' features to train ProGrad, got none.")
        zero_shot = self.logits(output.image_features, self.anchors.to(output.image_features))
        before, now = zero_shot.log_softmax(dim=1), output.logits.log_softmax(dim=1)
        return (before.exp() * (before - now)).sum(dim=1)
