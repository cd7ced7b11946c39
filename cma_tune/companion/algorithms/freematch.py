"""FreeMatch (Wang et al. 2023): thresholds that follow the model's confidence, and a fairness loss."""

from __future__ import annotations

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


class FreeMatch(Algorithm):
    """L = L_s + w·L_u + λ_e·L_f.

    Running averages over the batches' weak predictions q: τ of max q, p̃ of q, h̃ of the histogram of
    argmax q. They move before they are used. Confident is max q ≥ τ·p̃(c)/max p̃ with c = argmax q; L_u is the
    mean over all rows of CE(strong logits, argmax q) where confident.

    L_f = Σ a·log(b), a = Norm(p̃/h̃), b = Norm(p̄/h̄), with p̄ and h̄ the mean and the histogram of the confident
    rows' strong predictions; a class that a histogram lacks gets 0. Only p̄ has a gradient. Without a
    confident row L_f is 0.

    Args:
        classes, pool: see `Algorithm`.
        unlabelled_weight: w.
        fairness_weight: λ_e.
        momentum: of the running averages.
    """

    name = "freematch"
    time: Tensor
    """τ, a scalar."""
    mean: Tensor
    """p̃, ``[C]``."""
    histogram: Tensor
    """h̃, ``[C]``."""

    def __init__(
        self,
        classes: int,
        pool: int,
        unlabelled_weight: float = 1.0,
        fairness_weight: float = 0.01,
        momentum: float = 0.999,
    ) -> None:
        super().__init__(classes, pool)
        self.unlabelled_weight = unlabelled_weight
        self.fairness_weight = fairness_weight
        self.momentum = momentum
        self.register_buffer("time", torch.tensor(1 / classes))
        self.register_buffer("mean", torch.full((classes,), 1 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))

    def forward(self, batch: BatchOutputs) -> Losses:
        """See `Algorithm`."""
        weak, strong = batch.weak, batch.strong
        assert weak is not None and strong is not None
        probabilities, largest, pseudo_labels = confidence(weak.logits)
        self._follow(probabilities, largest, pseudo_labels)
        threshold = self.time * self.mean / self.mean.max()
        mask = largest >= threshold[pseudo_labels]
        supervised = cross_entropy(batch.labelled.logits, batch.labels)
        unlabelled = masked_cross_entropy(strong.logits, pseudo_labels, mask.to(strong.logits))
        fairness = self.fairness(strong.logits[mask])
        total = supervised + self.unlabelled_weight * unlabelled + self.fairness_weight * fairness
        terms = {"supervised": supervised, "unlabelled": unlabelled, "fairness": fairness}
        return Losses(total, {**terms, "confident": share(mask)}, pseudo_labels, mask)

    @torch.no_grad()
    def _follow(self, probabilities: Tensor, largest: Tensor, pseudo_labels: Tensor) -> None:
        histogram = torch.bincount(pseudo_labels, minlength=self.classes) / len(pseudo_labels)
        for average, now in (
            (self.time, largest.mean()),
            (self.mean, probabilities.mean(dim=0)),
            (self.histogram, histogram),
        ):
            move(average, now, self.momentum)

    def fairness(self, logits: Tensor) -> Tensor:
        """L_f of the confident rows' strong logits ``[n, C]``."""
        if not len(logits):
            return logits.sum()  # 0, on the graph
        probabilities = logits.softmax(dim=1)
        chosen = probabilities.detach().argmax(dim=1)
        histogram = torch.bincount(chosen, minlength=self.classes) / len(chosen)
        wanted = _scaled(self.mean.to(logits), self.histogram.to(logits))
        got = _scaled(probabilities.mean(dim=0), histogram.to(logits))
        return (wanted * torch.log(got + 1e-12)).sum()


def _scaled(values: Tensor, histogram: Tensor) -> Tensor:
    """values/histogram with a sum of 1, ``[C]``; 0 where the histogram is."""
    scaled = torch.where(histogram > 0, values / histogram.clamp(min=torch.finfo(histogram.dtype).tiny), 0.0)
    return scaled / scaled.sum()
