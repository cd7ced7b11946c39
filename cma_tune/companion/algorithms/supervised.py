"""Cross-entropy of the labelled images alone: what the semi-supervised algorithms are compared with."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from cma_tune.companion.algorithms.base import Algorithm, BatchOutputs, Losses


class Supervised(Algorithm):
    """L = mean CE(labelled logits, labels)."""

    name = "supervised"
    uses_unlabelled = False
    uses_strong = False

    def forward(self, batch: BatchOutputs) -> Losses:
        """See `Algorithm`; everything but the labelled images is ignored."""
        loss = cross_entropy(batch.labelled.logits, batch.labels)
        return Losses(loss, {"supervised": loss})
