"""Cross-entropy of the labelled images alone: what the semi-supervised algorithms are compared with."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from cma_tune.companion.algorithms.base import Algorithm, Losses
from cma_tune.companion.networks import Output


class Supervised(Algorithm):
    """L = mean CE(labelled logits, labels)."""

    name = "supervised"
    uses_unlabelled = False
    uses_strong = False

    def forward(
        self,
        labelled: Output,
        labels: Tensor,
        weak: Output | None,
        strong: Output | None,
        indices: Tensor,
        classifier: Tensor,
    ) -> Losses:
        """See `Algorithm`; everything but the labelled images is ignored."""
        loss = cross_entropy(labelled.logits, labels)
        return Losses(loss, {"supervised": loss})
