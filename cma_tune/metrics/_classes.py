"""Class means and what is done with them: shared by the collapse metrics and the interplay losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cma_tune.metrics._checks import check_features_and_labels
from cma_tune.metrics.entropy import at_least_float32


class Present(NamedTuple):
    """The classes of a batch."""

    classes: Tensor
    """Ascending, ``[K]``, int64."""
    owners: Tensor
    """Class of each row as an index into ``classes``, ``[N]``, int64."""
    counts: Tensor
    """Rows of each class, ``[K]``, int64."""

    def to(self, device: torch.device) -> Present:
        """The same on a device."""
        return Present(*(tensor.to(device, non_blocking=True) for tensor in self))


def present_classes(labels: Tensor) -> Present:
    """Classes that occur among ``labels`` ``[N]``, on the same device."""
    return Present(*torch.unique(labels.long(), return_inverse=True, return_counts=True))


def of_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Present]:
    """Features, checked and in float32 at least, and the classes of the labels on their device."""
    check_features_and_labels(features, labels)
    return at_least_float32(features), present_classes(labels.to(features.device))


def class_means(features: Tensor, present: Present) -> Tensor:
    """Mean of each class's rows of ``[N, D]``, ``[K, D]``."""
    sums = features.new_zeros(len(present.classes), features.shape[1]).index_add(0, present.owners, features)
    return sums / present.counts.to(features)[:, None]


def centered(features: Tensor, rows: Tensor, present: Present) -> tuple[Tensor, Tensor]:
    """Features less the mean of their class means, rows of the present classes ``[K, D]`` less their mean.

    Class means and not rows are averaged so that frequent classes do not pull the centre towards them: at
    collapse both sides are then the same simplex, whatever the counts.
    """
    return less(features, class_means(features, present).mean(0)), less(rows, rows.mean(0))


def less(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows less ``mean``; one that equals it up to rounding becomes 0: what is left has no direction."""
    difference = rows - mean
    size = torch.linalg.vector_norm(rows.detach(), dim=-1, keepdim=True)
    left = torch.linalg.vector_norm(difference.detach(), dim=-1, keepdim=True)
    return difference.masked_fill(left <= 16 * torch.finfo(rows.dtype).eps * size, 0.0)
