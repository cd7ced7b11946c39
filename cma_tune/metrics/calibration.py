"""Calibration: whether a prediction's confidence is its chance of being right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cma_tune.metrics._checks import check_label_vector, check_labels_in_range


class ReliabilityBins(NamedTuple):
    """What a reliability diagram shows: predictions in M bins of equal width by their confidence.

    Attributes:
        counts: predictions in each bin, ``[M]``, int64.
        confidence: their mean confidence, ``[M]``, float64 in 0..1; nan for an empty bin.
        accuracy: share of right ones among them, ``[M]``, float64 in 0..1; nan for an empty bin.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability_bins(confidence: Tensor, correct: Tensor, bins: int = 15) -> ReliabilityBins:
    r"""Predictions by confidence, bin m of M holding those in :math:`(\tfrac{m-1}{M}, \tfrac{m}{M}]`.

    A confidence of 0 is in the first bin. One that is nan is in the last, whose mean it makes nan.

    Args:
        confidence: probability of each predicted class, ``[B]``, floating point in 0..1.
        correct: whether the prediction is right, ``[B]``, bool.
        bins: M, at least 1.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, a confidence is outside 0..1, or ``bins`` is below 1.

    Source: Guo et al. 2017, "On calibration of modern neural networks", sec. 2.

    Example:
        >>> found = reliability_bins(torch.tensor([0.4, 0.9, 1.0]), torch.tensor([True, False, True]), bins=2)
        >>> found.counts.tolist(), [round(value, 2) for value in found.confidence.tolist()]
        ([1, 2], [0.4, 0.95])
        >>> found.accuracy.tolist()
        [1.0, 0.5]
    """
    _check(confidence, correct, bins)
    sure, right = confidence.double().contiguous(), correct.double()
    edges = torch.arange(1, bins, device=sure.device, dtype=torch.double) / bins
    place = torch.bucketize(sure, edges)  # the upper edge belongs to the bin
    counts = torch.bincount(place, minlength=bins)
    confidences = torch.bincount(place, weights=sure, minlength=bins) / counts  # 0/0 is nan: an empty bin
    return ReliabilityBins(counts, confidences, torch.bincount(place, right, minlength=bins) / counts)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error (ECE) of predicted classes, in percentage points.

    .. math::
        \mathrm{ECE} = 100 \sum_{m=1}^{M} \frac{|B_m|}{B}\,
        \bigl|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\bigr|

    over M bins of equal width, see :func:`reliability_bins`. It is 0 where among all predictions made with
    70 % confidence 70 % are right, and so on. The estimate depends on M and is biased upward for few images.

    Args:
        confidence: probability of each predicted class, ``[B]``, floating point in 0..1.
        correct: whether the prediction is right, ``[B]``, bool.
        bins: M, at least 1.

    Returns:
        Percentage points, 0..100; nan for an empty batch.

    Raises:
        ValueError: as :func:`reliability_bins`.

    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 3; Naeini et al. 2015.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
        >>> confidence, predicted = logits.softmax(dim=1).max(dim=1)  # 0.88, 0.5, 0.88
        >>> round(expected_calibration_error(confidence, predicted == torch.tensor([0, 1, 1])), 2)
        24.61
    """
    found = reliability_bins(confidence, correct, bins)
    gaps = (found.accuracy - found.confidence).abs()
    filled = found.counts > 0
    shares = found.counts[filled].double() / confidence.numel()
    return 100.0 * float((shares * gaps[filled]).sum()) if confidence.numel() else float("nan")


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    r"""Brier score: the squared distance of the predicted distribution from the true class, 0..2.

    .. math::
        \frac{1}{B} \sum_{i=1}^{B} \sum_{c=1}^{C} \bigl(p_{ic} - \mathbb{1}[y_i = c]\bigr)^2

    Args:
        probabilities: ``[B, C]``, floating point.
        labels: ``[B]``, integers in 0..C−1.

    Returns:
        0 for certain and right predictions, 2 for certain and wrong ones; nan for an empty batch.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, or a label is outside 0..C−1.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".

    Example:
        >>> brier_score(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1]))
        0.25
    """
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise ValueError(
            "Expected `probabilities` of shape [B, C], floating point, "
            f"got {probabilities.dtype} of shape {list(probabilities.shape)}."
        )
    check_label_vector(labels, len(probabilities))
    check_labels_in_range(labels, probabilities.shape[1])
    values = probabilities.double()
    own = values.gather(1, labels.long()[:, None])[:, 0]
    return float((values.square().sum(dim=1) - 2 * own + 1).mean())


def _check(confidence: Tensor, correct: Tensor, bins: int) -> None:
    if confidence.ndim != 1 or not confidence.is_floating_point():
        raise ValueError(
            "Expected `confidence` of shape [B], floating point, "
            f"got {confidence.dtype} of shape {list(confidence.shape)}."
        )
    if correct.shape != confidence.shape or correct.dtype != torch.bool:
        raise ValueError(
            f"Expected `correct` of shape {list(confidence.shape)}, bool, "
            f"got {correct.dtype} of shape {list(correct.shape)}."
        )
    outside = confidence[(confidence < 0) | (confidence > 1)]
    if outside.numel():
        raise ValueError(f"Expected `confidence` in 0..1, got {outside[0].item()}.")
    if bins < 1:
        raise ValueError(f"Expected `bins` of at least 1, got {bins}.")
