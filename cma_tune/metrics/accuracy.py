"""Accuracy in percent, and how the field averages it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from cma_tune.metrics._checks import check_label_vector, check_labels_in_range


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of right predictions, in percent: 100 · correct / total.

    Args:
        predictions: logits ``[B, C]`` (the largest wins), or predicted classes ``[B]``, integers.
        labels: ``[B]``, integers.

    Returns:
        Percent, 0..100; nan for an empty batch.

    Raises:
        ValueError: shapes do not fit or a dtype is wrong.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        50.0
    """
    correct = _correct(predictions, labels)
    return 100.0 * int(correct.sum()) / correct.numel() if correct.numel() else math.nan


def per_class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Accuracy over the rows of each class, in percent.

    Args:
        predictions: logits ``[B, C]`` (the largest wins), or predicted classes ``[B]``, integers.
        labels: ``[B]``, integers in 0..C−1.
        num_classes: C; needed with predicted classes, taken from the logits otherwise.

    Returns:
        ``[C]``, float64 percent; nan for a class that no label names.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, a label is outside 0..C−1, or ``num_classes`` is
            missing or differs from the logits' C.

    Example:
        >>> per_class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), num_classes=3)
        tensor([ 50., 100.,  nan], dtype=torch.float64)
    """
    correct = _correct(predictions, labels)
    if predictions.ndim == 2:
        if num_classes not in (None, predictions.shape[1]):
            raise ValueError(
                f"Expected `num_classes` to be the logits' {predictions.shape[1]}, got {num_classes}."
            )
        num_classes = predictions.shape[1]
    if num_classes is None:
        raise ValueError("Expected `num_classes` beside predicted classes [B], got None.")
    check_labels_in_range(labels, num_classes)
    total = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[correct], minlength=num_classes)
    return 100.0 * right.double() / total.double()  # 0/0 is nan: the class is absent


def harmonic_mean(base: float, novel: float) -> float:
    """Harmonic mean 2·b·n / (b + n) of base and novel accuracy, the summary of base-to-novel.

    Args:
        base: accuracy on base classes, percent or share, at least 0.
        novel: accuracy on novel classes, in the same unit.

    Returns:
        In the unit of the inputs; 0 where either is 0.

    Raises:
        ValueError: an accuracy is negative.

    Example:
        >>> round(harmonic_mean(82.69, 63.22), 2)
        71.66
    """
    if base < 0 or novel < 0:
        raise ValueError(f"Expected accuracies of at least 0, got {base} and {novel}.")
    if base == 0 or novel == 0:
        return 0.0
    return 2 * base * novel / (base + novel)


def confidence_interval_95(values: Iterable[float] | Tensor) -> float:
    """Half width of the field's 95 % interval over seeds: 1.96 · population standard deviation / √n.

    Args:
        values: one figure a seed, at least one.

    Returns:
        In the unit of the values; 0 for a single one.

    Raises:
        ValueError: there are no values.

    Example:
        >>> round(confidence_interval_95([70.0, 71.0, 72.0]), 4)
        0.924
    """
    figures = [float(value) for value in values]
    if not figures:
        raise ValueError("Expected at least one value, got none.")
    mean = math.fsum(figures) / len(figures)
    variance = math.fsum((figure - mean) ** 2 for figure in figures) / len(figures)
    return 1.96 * math.sqrt(variance / len(figures))


def _correct(predictions: Tensor, labels: Tensor) -> Tensor:
    if predictions.ndim not in (1, 2):
        raise ValueError(
            "Expected `predictions` as logits [B, C] or predicted classes [B], "
            f"got shape {list(predictions.shape)}."
        )
    if predictions.ndim == 1 and (predictions.is_floating_point() or predictions.dtype == torch.bool):
        raise ValueError(f"Expected predicted classes [B] to be integers, got {predictions.dtype}.")
    check_label_vector(labels, predictions.shape[0])
    return (predictions.argmax(-1) if predictions.ndim == 2 else predictions) == labels
