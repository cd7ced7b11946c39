"""FixMatch (Sohn et al. 2020): the class of a confident weak view is the target of the strong view."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from cma_tune.companion.algorithms.base import (
    Algorithm,
    BatchOutputs,
    Losses,
    confidence,
    masked_cross_entropy,
    share,
)


class FixMatch(Algorithm):
    """L = L_s + w·mean_i [max q_i ≥ τ]·CE(strong logits_i, argmax q_i), q = softmax(weak logits).

    Args:
        classes, pool: see `Algorithm`.
        unlabelled_weight: w.
        threshold: τ.
    """

    name = "fixmatch"

    def __init__(
        self, classes: int, pool: int, unlabelled_weight: float = 1.0, threshold: float = 0.95
    ) -> None:
        super().__init__(classes, pool)
        self.unlabelled_weight = unlabelled_weight
        self.threshold = threshold

    def forward(self, batch: BatchOutputs) -> Losses:
        """See `Algorithm`."""
        weak, strong = batch.weak, batch.strong
        assert weak is not None
        _, largest, pseudo_labels = confidence(weak.logits)
        mask = self.confident(largest, pseudo_labels, batch.indices)
        learns = strong if self.uses_strong else weak
        assert learns is not None
        supervised = cross_entropy(batch.labelled.logits, batch.labels)
        unlabelled = masked_cross_entropy(learns.logits, pseudo_labels, mask.to(learns.logits))
        total = supervised + self.unlabelled_weight * unlabelled
        terms = {"supervised": supervised, "unlabelled": unlabelled, "confident": share(mask)}
        return Losses(total, terms, pseudo_labels, mask)

    def confident(self, largest: Tensor, pseudo_labels: Tensor, indices: Tensor) -> Tensor:
        """Which unlabelled images count, ``[B_u]``, bool.

        Args:
            largest: max q, ``[B_u]``.
            pseudo_labels: argmax q, ``[B_u]``.
            indices: places of the images in their pool, ``[B_u]``.
        """
        return largest >= self.threshold
