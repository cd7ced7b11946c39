"""How well classes part, as for clusters: silhouette and Davies-Bouldin index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cma_tune.metrics._classes import class_means, of_classes
from cma_tune.metrics.entropy import autocast_off

_CHUNK = 2**22
"""Distances held at once."""


def silhouette(features: Tensor, labels: Tensor) -> Tensor:
    r"""Mean silhouette :math:`(b - a) / \max(a, b)` over rows, with Euclidean distances.

    a is a row's mean distance to the others of its class, b the smallest mean distance to another class. Some
    millions of distances are held at once, however many rows there are.

    Args:
        features: ``[N, D]``, floating point.
        labels: class of each row, ``[N]``, integers.

    Returns:
        Scalar in −1..1; a class of one row counts as 0; nan with fewer than two classes or no more rows than
        classes.

    Raises:
        ValueError: shapes do not fit or a dtype is wrong.

    Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis"
    (1987).

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> round(silhouette(features, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.8997
    """
    features, present = of_classes(features, labels)
    if not 2 <= len(present.classes) < len(features):
        return features.new_tensor(math.nan)
    with autocast_off(features):
        features = features - features.mean(0)  # products, from which distances come, then keep their digits
        within = features.new_zeros(len(features))
        for number in range(len(present.classes)):
            rows = (present.owners == number).nonzero()[:, 0]
            members = features[rows]
            for part in torch.split(rows, max(1, _CHUNK // len(rows))):
                # Within a class by differences: at collapse a product would leave only its rounding.
                near = torch.cdist(features[part], members, compute_mode="donot_use_mm_for_euclid_dist")
                within[part] = near.sum(1)
        counts = present.counts.to(features)
        own = counts[present.owners]
        a = within / (own - 1).clamp(min=1)
        nearest = []
        chunk = max(1, _CHUNK // len(features))
        for part, owners in zip(
            torch.split(features, chunk), torch.split(present.owners, chunk), strict=True
        ):
            distances = torch.cdist(part, features, compute_mode="use_mm_for_euclid_dist")
            sums = distances.new_zeros(len(part), len(counts)).index_add_(1, present.owners, distances)
            nearest.append((sums / counts).scatter(1, owners[:, None], math.inf).amin(1))
        b = torch.cat(nearest)
        largest = torch.maximum(a, b)
        scores = ((b - a) / largest).masked_fill((own == 1) | (largest == 0), 0.0)
        return scores.mean()


def davies_bouldin(features: Tensor, labels: Tensor) -> Tensor:
    r"""Davies-Bouldin index: mean of each class's :math:`\max_{k \ne c} (s_c + s_k) / d(\mu_c, \mu_k)`.

    s is the mean distance of a class's rows to their mean.

    Args:
        features: ``[N, D]``, floating point.
        labels: class of each row, ``[N]``, integers.

    Returns:
        Scalar, 0 at collapse and lower where classes part better; nan with fewer than two classes or no more
        rows than classes. Two classes of equal means do not count against each other.

    Raises:
        ValueError: shapes do not fit or a dtype is wrong.

    Source: Davies and Bouldin, "A cluster separation measure" (1979).

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> round(davies_bouldin(features, torch.tensor([0, 0, 1, 1])).item(), 4)  # (0.5 + 0.5) / 10
        0.1
    """
    features, present = of_classes(features, labels)
    if not 2 <= len(present.classes) < len(features):
        return features.new_tensor(math.nan)
    means = class_means(features, present)
    to_mean = torch.linalg.vector_norm(features - means[present.owners], dim=1)
    spreads = class_means(to_mean[:, None], present)[:, 0]
    between = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    ratios = (spreads[:, None] + spreads) / between.masked_fill(between == 0, math.inf)
    return ratios.amax(1).mean()
