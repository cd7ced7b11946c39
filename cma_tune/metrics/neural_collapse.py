"""How far features and classifier have come towards neural collapse: NC1, NC2, NC3.

Source: Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
training" (2020). Class means and their mean are here those of the classes present.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cma_tune.metrics._checks import check_classified, check_labels_in_range
from cma_tune.metrics._classes import class_means, less, of_classes
from cma_tune.metrics.entropy import at_least_float32, autocast_off, unit_rows


class SimplexDeviation(NamedTuple):
    """How far rows are from a simplex ETF; both are 0 at one."""

    equinorm: Tensor
    """Standard deviation of the norms over their mean."""
    equiangularity: Tensor
    """Mean over pairs of |cos + 1/(C−1)|."""


def within_class_variability(features: Tensor, labels: Tensor) -> Tensor:
    r"""NC1: :math:`\operatorname{tr}(\Sigma_W \Sigma_B^+) / C`, variation in classes against between them.

    :math:`\Sigma_W` is the mean over rows of :math:`(f - \mu_c)(f - \mu_c)^\top`, and :math:`\Sigma_B` the
    mean over classes of :math:`(\mu_c - \mu_G)(\mu_c - \mu_G)^\top` with :math:`\mu_G` the mean of the class
    means; :math:`^+` is the pseudo-inverse.

    Args:
        features: ``[N, D]``, floating point.
        labels: class of each row, ``[N]``, integers.

    Returns:
        Scalar, 0 at collapse; nan with fewer than two classes, equal class means or
            values that are not finite.

    Raises:
        ValueError: shapes do not fit or a dtype is wrong.

    Example:
        >>> features = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> within_class_variability(features, torch.tensor([0, 0, 1, 1])).item()  # nothing along the means
        0.0
        >>> within_class_variability(features * 2 + features[:1], torch.tensor([0, 0, 1, 1])).item()
        0.0
    """
    features, present = of_classes(features, labels)
    with autocast_off(features):
        means = class_means(features, present)
        between = less(means, means.mean(0))
        if len(means) < 2 or not between.isfinite().all():
            return features.new_tensor(math.nan)
        # Σ_B = BᵀB/C, B [C, D] = U S Vᵀ: tr(Σ_W Σ_B⁺) = C·mean‖S⁻¹Vᵀ(f−μ)‖², and no D×D inverse is needed.
        _, sizes, directions = torch.linalg.svd(between, full_matrices=False)
        # Their rounding is relative to the means themselves, not to their differences.
        largest = torch.linalg.vector_norm(means, dim=1).max()
        noise = torch.finfo(means.dtype).eps * max(between.shape) * torch.maximum(largest, sizes[0])
        directions, sizes = directions[sizes > noise], sizes[sizes > noise]
        if not len(sizes):
            return features.new_tensor(math.nan)
        within = features - means[present.owners]
        along: Tensor = within @ directions.mT / sizes
        return along.square().sum(1).mean()


def simplex_deviation(rows: Tensor) -> SimplexDeviation:
    r"""NC2 of rows, as they are: equal norms, and equal cosines of −1/(C−1).

    The equiangularity combines two figures of the source, that all cosines are equal and that they are as
    small as they can be. Take the rows' mean away first if they are class means.

    Args:
        rows: one a class, ``[C, D]``, floating point.

    Returns:
        Scalars equinorm (with the population's standard deviation) and equiangularity, both 0 at a simplex
        ETF; nan for fewer than two rows, or if all are 0.

    Raises:
        ValueError: ``rows`` is no floating-point matrix.

    Example:
        >>> deviation = simplex_deviation(torch.eye(3) - 1 / 3)
        >>> round(deviation.equinorm.item(), 4), round(deviation.equiangularity.item(), 4)
        (0.0, 0.0)
        >>> deviation = simplex_deviation(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))  # norms 2 ± 1, cosine 0
        >>> deviation.equinorm.item(), deviation.equiangularity.item()
        (0.5, 1.0)
    """
    if not rows.is_floating_point() or rows.ndim != 2:
        raise ValueError(
            "Expected `rows` to be floating point of shape [C, D], "
            f"got {rows.dtype} of shape {list(rows.shape)}."
        )
    rows = at_least_float32(rows)
    number = len(rows)
    if number < 2:
        return SimplexDeviation(rows.new_tensor(math.nan), rows.new_tensor(math.nan))
    with autocast_off(rows):
        norms = torch.linalg.vector_norm(rows, dim=1)
        unit = unit_rows(rows)
        cosines = unit @ unit.mT
        apart = ~torch.eye(number, dtype=torch.bool, device=rows.device)
        angles = (cosines[apart] + 1 / (number - 1)).abs().mean()
        return SimplexDeviation(
            norms.std(correction=0) / norms.mean(), angles.where(norms.max() > 0, math.nan)
        )


def mean_deviation(features: Tensor, labels: Tensor) -> SimplexDeviation:
    r"""NC2 of the class means less their mean: :func:`simplex_deviation` of :math:`\mu_c - \mu_G`.

    Args:
        features: ``[N, D]``, floating point.
        labels: class of each row, ``[N]``, integers.

    Returns:
        As :func:`simplex_deviation`, with C the classes present.

    Raises:
        ValueError: shapes do not fit or a dtype is wrong.

    Example:
        >>> features = torch.eye(3).repeat(2, 1) + 5  # a shared offset does not count
        >>> deviation = mean_deviation(features, torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> round(deviation.equinorm.item(), 4), round(deviation.equiangularity.item(), 4)
        (0.0, 0.0)
    """
    features, present = of_classes(features, labels)
    means = class_means(features, present)
    return simplex_deviation(less(means, means.mean(0)))


def self_duality(features: Tensor, labels: Tensor, classifier: Tensor) -> Tensor:
    r"""NC3: :math:`\lVert W / \lVert W \rVert_F - M / \lVert M \rVert_F \rVert_F`.

    M has the rows :math:`\mu_c - \mu_G` and W the classifier's rows of the same classes.

    Args:
        features: ``[N, D]``, floating point.
        labels: class of each row, ``[N]``, integers in 0..C−1.
        classifier: its weight, ``[C, D]``.

    Returns:
        Scalar between 0 (collapse) and 2; nan where W or M is 0, as with a single class.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, or a label is outside 0..C−1.

    Example:
        >>> corners = torch.eye(3) - 1 / 3
        >>> labels = torch.tensor([0, 1, 2])
        >>> self_duality(corners + 2, labels, 7 * corners).item() < 1e-6
        True
        >>> round(self_duality(corners, labels, -corners).item(), 4)
        2.0
    """
    check_classified(features, classifier, labels)
    check_labels_in_range(labels.cpu(), len(classifier))
    features, present = of_classes(features, labels)
    means = class_means(features, present)
    means = less(means, means.mean(0))
    rows = classifier.index_select(0, present.classes).to(means.dtype)
    sizes = torch.linalg.matrix_norm(rows), torch.linalg.matrix_norm(means)
    distance: Tensor = torch.linalg.matrix_norm(rows / sizes[0] - means / sizes[1])
    return distance.where((sizes[0] > 0) & (sizes[1] > 0), math.nan)
