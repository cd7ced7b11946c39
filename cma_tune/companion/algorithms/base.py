"""What every algorithm is: outputs of a whole batch in, losses out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cma_tune.companion.networks import Output


class BatchOutputs(NamedTuple):
    """The network's outputs over a global batch, and what belongs to them.

    Attributes:
        labelled: of the labelled images, logits ``[B_l, C]`` and features ``[B_l, D]``.
        labels: theirs, ``[B_l]``, int64.
        weak: of the weak views of unlabelled images, ``[B_u, C]`` and ``[B_u, D]``; None without such.
        strong: the same of their strong views.
        indices: which images these are, places in their pool, ``[B_u]``.
        classifier: the last layer's weight, ``[C, D]``.
    """

    labelled: Output
    labels: Tensor
    weak: Output | None
    strong: Output | None
    indices: Tensor
    classifier: Tensor


class Losses(NamedTuple):
    """What an algorithm makes of a batch.

    Attributes:
        total: scalar, on the graph.
        terms: scalars to log, by name: unweighted losses, and ``confident``, the share of unlabelled images
            that count.
        pseudo_labels: of the unlabelled images, ``[B_u]``; None without such.
        mask: which of them are confident, ``[B_u]``, bool; None without such.
    """

    total: Tensor
    terms: dict[str, Tensor]
    pseudo_labels: Tensor | None = None
    mask: Tensor | None = None


class Algorithm(nn.Module):
    """Maps the outputs of a global batch to its losses; its buffers are what it remembers between steps.

    Every process sees the whole batch, so these buffers are equal on all of them.

    Attributes:
        name: its key on the command line.
        uses_unlabelled: wants a weak view of unlabelled images.
        uses_strong: wants a strong view of them too.

    Args:
        classes: C.
        pool: number of unlabelled images there are.
    """

    name: str = ""
    uses_unlabelled: bool = True
    uses_strong: bool = True

    def __init__(self, classes: int, pool: int) -> None:
        super().__init__()
        self.classes = classes
        self.pool = pool

    def forward(self, batch: BatchOutputs) -> Losses:
        """The losses of one batch."""
        raise NotImplementedError


def confidence(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q = softmax of the logits ``[B, C]`` without gradient, its largest entry ``[B]`` and where that is."""
    probabilities = logits.detach().softmax(dim=1)
    largest, pseudo_labels = probabilities.max(dim=1)
    return probabilities, largest, pseudo_labels


def masked_cross_entropy(logits: Tensor, pseudo_labels: Tensor, weight: Tensor) -> Tensor:
    """Mean over *all* rows of weight·CE(logits, pseudo-label), so that few confident rows count little.

    Args:
        logits: ``[B, C]``.
        pseudo_labels: ``[B]``.
        weight: ``[B]``; a mask, or numbers between 0 and 1.
    """
    return (weight * cross_entropy(logits, pseudo_labels, reduction="none")).mean()


def share(mask: Tensor) -> Tensor:
    """The share of True in a mask, a scalar."""
    return mask.to(torch.float32).mean()


def move(average: Tensor, now: Tensor, momentum: float) -> None:
    """Move a running average, a buffer without gradient, in place: m·average + (1−m)·now."""
    average.mul_(momentum).add_((1 - momentum) * now.to(average))
