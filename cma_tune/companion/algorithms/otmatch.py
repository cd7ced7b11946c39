"""OTMatch (Tan et al. 2024): FreeMatch, and a transport cost from the pseudo-label to what is predicted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cma_tune.companion.algorithms.base import BatchOutputs, Losses, move
from cma_tune.companion.algorithms.freematch import FreeMatch


class OTMatch(FreeMatch):
    """L = L_FreeMatch + λ_t·mean over all rows of [confident]·Σ_k cost(ŷ, k)·Q_k, Q = softmax(strong logits).

    All of a pseudo-label's mass is at its own class, so the cost of transport to Q has this closed form. The
    cost between two classes is a running average of 1 − cos of their classifier rows. There is no public
    code: that the average moves before it is used, and begins with 1 between different classes, is ours.

    Args:
        classes, pool, unlabelled_weight, fairness_weight, momentum: see `FreeMatch`.
        transport_weight: λ_t.
    """

    name = "otmatch"
    cost: Tensor
    """Between classes, ``[C, C]``."""

    def __init__(
        self,
        classes: int,
        pool: int,
        unlabelled_weight: float = 1.0,
        fairness_weight: float = 0.01,
        momentum: float = 0.999,
        transport_weight: float = 0.5,
    ) -> None:
        super().__init__(classes, pool, unlabelled_weight, fairness_weight, momentum)
        self.transport_weight = transport_weight
        self.register_buffer("cost", 1 - torch.eye(classes))

    def forward(self, batch: BatchOutputs) -> Losses:
        """See `Algorithm`."""
        total, terms, pseudo_labels, mask = super().forward(batch)
        strong = batch.strong
        assert strong is not None and pseudo_labels is not None and mask is not None
        self._follow_classifier(batch.classifier)
        costs = self.cost.to(strong.logits)[pseudo_labels]  # [B_u, C]
        moved = (costs * strong.logits.softmax(dim=1)).sum(dim=1)
        transport = (mask.to(moved) * moved).mean()
        total = total + self.transport_weight * transport
        return Losses(total, {**terms, "transport": transport}, pseudo_labels, mask)

    @torch.no_grad()
    def _follow_classifier(self, classifier: Tensor) -> None:
        rows = normalize(classifier.detach().to(self.cost), dim=1)
        move(self.cost, 1 - rows @ rows.T, self.momentum)
