"""ProGrad: CoOp whose steps do not work against zero-shot CLIP (Zhu et al. 2023, ICCV)."""

from __future__ import annotations

from torch import Tensor

from cma_tune.learners.base import PromptOutput
from cma_tune.learners.coop import AnchoredContextLearner


class ProGrad(AnchoredContextLearner):
    """CoOp with its gradient projected (ProGrad, sec. 3).

    Where the objective's gradient g opposes that of KL(p_zs ‖ p), h, a step goes along g − (g·h/‖h‖²)·h; p_zs
    are the probabilities of the hand-written prompts. With the CMA loss, g is the gradient of
    (1−λ)·CE + λ·CMA.

    Args:
        backbone, class_names, options, seed, context, anchors: see `AnchoredContextLearner`.
    """

    name = "prograd"

    def guide(self, output: PromptOutput) -> Tensor:
        """KL(p_zs ‖ p) of every image ``[B]``.

        Raises:
            ValueError: the learner was made without anchors.
        """
        zero_shot = self.logits(output.image_features, self.needed_anchors().to(output.image_features))
        before, now = zero_shot.log_softmax(dim=1), output.logits.log_softmax(dim=1)
        return (before.exp() * (before - now)).sum(dim=1)
