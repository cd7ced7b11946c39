"""SoftMatch (Chen et al. 2023): every unlabelled image counts, by a Gaussian of its confidence."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cma_tune.companion.algorithms.base import (
    Algorithm,
    BatchOutputs,
    Losses,
    confidence,
    masked_cross_entropy,
    move,
    share,
)

Alignment = Literal["torchssl", "usb", "none"]


class SoftMatch(Algorithm):
    """L = L_s + w·mean_i weight_i·CE(strong logits_i, argmax q_i).

    weight = exp(−min(0, max q' − μ)²/(2σ²/4)), with running averages μ and σ² of the mean and the unbiased
    variance of the largest probabilities, which move before they are used. q' is q under distribution
    alignment, Norm(q·target/average of q). As the two libraries that have the method do it:

    - torchssl: the target is the average of the labelled images' predictions; μ and σ² are of q;
    - usb: the target is uniform; μ and σ² are of q', and the average begins with the first batch;
    - none: q' = q.

    Pseudo-labels come from q. The mask that goes to other losses is max q' ≥ μ, where the weight is 1: a
    choice of ours, since the method itself has none.

    Args:
        classes, pool: see `Algorithm`.
        unlabelled_weight: w.
        momentum: of the running averages.
        alignment: which of the three.

    Raises:
        ValueError: there is no such alignment.
    """

    name = "softmatch"
    center: Tensor
    """μ, a scalar."""
    variance: Tensor
    """σ², a scalar."""
    target: Tensor
    """What q is aligned to, ``[C]``."""
    average: Tensor
    """Running average of q, ``[C]``."""
    started: Tensor
    """Whether `average` has seen a batch, a bool."""

    def __init__(
        self,
        classes: int,
        pool: int,
        unlabelled_weight: float = 1.0,
        momentum: float = 0.999,
        alignment: Alignment = "torchssl",
    ) -> None:
        super().__init__(classes, pool)
        if alignment not in get_args(Alignment):
            raise ValueError(f"Expected `alignment` out of {get_args(Alignment)}, got {alignment!r}.")
        self.unlabelled_weight = unlabelled_weight
        self.momentum = momentum
        self.alignment = alignment
        self.register_buffer("center", torch.tensor(1 / classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("target", torch.full((classes,), 1 / classes))
        self.register_buffer("average", torch.full((classes,), 1 / classes))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, batch: BatchOutputs) -> Losses:
        """See `Algorithm`."""
        weak, strong = batch.weak, batch.strong
        assert weak is not None and strong is not None
        probabilities, largest, pseudo_labels = confidence(weak.logits)
        aligned = self._aligned(probabilities, batch.labelled.logits).max(dim=1).values
        self._follow(aligned if self.alignment == "usb" else largest)
        weight = self.weight(aligned)
        supervised = cross_entropy(batch.labelled.logits, batch.labels)
        unlabelled = masked_cross_entropy(strong.logits, pseudo_labels, weight.to(strong.logits))
        mask = aligned >= self.center
        terms = {"supervised": supervised, "unlabelled": unlabelled, "weight": weight.mean()}
        total = supervised + self.unlabelled_weight * unlabelled
        return Losses(total, {**terms, "confident": share(mask)}, pseudo_labels, mask)

    def weight(self, largest: Tensor) -> Tensor:
        """How much images of this confidence count, ``[B_u]``, up to 1."""
        below = (largest - self.center).clamp(max=0)
        return torch.exp(-below.square() / (2 * self.variance / 4))

    @torch.no_grad()
    def _aligned(self, probabilities: Tensor, labelled: Tensor) -> Tensor:
        if self.alignment == "none":
            return probabilities
        now = probabilities.mean(dim=0)
        if self.alignment == "usb" and not self.started:
            self.average.copy_(now)
            self.started.fill_(True)
        else:
            self._move(self.average, now)
        if self.alignment == "torchssl":
            self._move(self.target, labelled.detach().softmax(dim=1).mean(dim=0))
        aligned = probabilities * (self.target / self.average).to(probabilities)
        return aligned / aligned.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def _follow(self, largest: Tensor) -> None:
        self._move(self.center, largest.mean())
        if len(largest) > 1:  # a single image has no variance
            self._move(self.variance, largest.var())

    def _move(self, average: Tensor, now: Tensor) -> None:
        move(average, now, self.momentum)
