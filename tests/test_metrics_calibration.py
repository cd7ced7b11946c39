"""Calibration against torchmetrics, scikit-learn and plain loops."""

from __future__ import annotations

import doctest
import importlib
import math

import pytest
import torch
from sklearn.metrics import brier_score_loss
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from cma_tune.metrics import brier_score, expected_calibration_error, reliability_bins


def draw(count: int = 500, classes: int = 7, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Probabilities ``[B, C]`` that are sharper than they should be, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = logits.argmax(dim=1)
    noisy = torch.rand(count, generator=generator) < 0.4
    labels[noisy] = torch.randint(classes, (int(noisy.sum()),), generator=generator)
    return (spread * logits).softmax(dim=1), labels


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_that_of_torchmetrics(bins: int) -> None:
    probabilities, labels = draw()
    confidence, predicted = probabilities.max(dim=1)
    theirs = MulticlassCalibrationError(num_classes=7, n_bins=bins, norm="l1")
    theirs.update(probabilities, labels)
    found = expected_calibration_error(confidence, predicted == labels, bins)
    assert found == pytest.approx(100 * float(theirs.compute()), abs=1e-4)  # theirs sums in float32
    assert found > 5


def test_ece_and_its_bins_are_those_of_a_loop() -> None:
    probabilities, labels = draw()
    confidence, predicted = probabilities.max(dim=1)
    correct = predicted == labels
    found = reliability_bins(confidence, correct, bins=15)
    total = 0.0
    for number in range(15):
        members = [
            (sure, right)
            for sure, right in zip(confidence.tolist(), correct.tolist(), strict=True)
            if number / 15 < sure <= (number + 1) / 15
        ]
        assert found.counts[number] == len(members)
        if not members:
            assert found.accuracy[number].isnan() and found.confidence[number].isnan()
            continue
        sure, right = (sum(values) / len(members) for values in zip(*members, strict=True))
        assert float(found.confidence[number]) == pytest.approx(sure)
        assert float(found.accuracy[number]) == pytest.approx(right)
        total += len(members) / len(labels) * abs(right - sure)
    assert expected_calibration_error(confidence, correct) == pytest.approx(100 * total)


def test_an_edge_belongs_to_the_bin_below_it_and_the_ends_are_inside() -> None:
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    assert reliability_bins(edges, edges > 0, bins=4).counts.tolist() == [2, 1, 1, 1]


def test_ece_of_what_is_right_as_often_as_it_says_is_zero() -> None:
    confidence = torch.tensor([0.75] * 4 + [1.0])
    assert expected_calibration_error(confidence, torch.tensor([True, True, False, True, True])) == 0.0
    assert expected_calibration_error(confidence[:4], torch.zeros(4, dtype=torch.bool)) == 75.0


def test_nothing_and_what_is_no_number_give_nan() -> None:
    empty = torch.zeros(0)
    assert math.isnan(expected_calibration_error(empty, empty.bool()))
    assert math.isnan(expected_calibration_error(torch.tensor([0.5, math.nan]), torch.tensor([True, True])))


def test_the_brier_score_is_that_of_scikit_learn() -> None:
    probabilities, labels = draw()
    expected = brier_score_loss(labels.numpy(), probabilities.numpy(), labels=range(7), scale_by_half=False)
    assert brier_score(probabilities, labels) == pytest.approx(expected)
    certain = torch.eye(3)
    assert brier_score(certain, torch.tensor([0, 1, 2])) == 0
    assert brier_score(certain, torch.tensor([1, 2, 0])) == 2


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "named"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3).bool(), 15, r"`confidence` of shape \[B\], floating point"),
        (torch.zeros(2).long(), torch.zeros(2).bool(), 15, r"`confidence` .* got torch.int64"),
        (torch.zeros(2), torch.zeros(3).bool(), 15, r"`correct` of shape \[2\], bool"),
        (torch.zeros(2), torch.zeros(2), 15, "`correct` .* got torch.float32"),
        (torch.tensor([0.5, 1.5]), torch.zeros(2).bool(), 15, r"`confidence` in 0\.\.1, got 1.5"),
        (torch.zeros(2), torch.zeros(2).bool(), 0, "`bins` of at least 1, got 0"),
    ],
)
def test_mistakes_are_told(confidence: Tensor, correct: Tensor, bins: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        expected_calibration_error(confidence, correct, bins)


def test_a_brier_score_needs_probabilities_of_all_classes() -> None:
    with pytest.raises(ValueError, match=r"`probabilities` of shape \[B, C\]"):
        brier_score(torch.zeros(3), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"`labels` in 0\.\.1"):
        brier_score(torch.zeros(1, 2), torch.tensor([2]))


def test_the_examples_in_the_docstrings_hold() -> None:
    results = doctest.testmod(importlib.import_module("cma_tune.metrics.calibration"))
    assert results.attempted > 0 and results.failed == 0
