"""Accuracy and its averages, class and modal similarity."""

from __future__ import annotations

import doctest
import importlib
import math
import statistics

import pytest
import torch
from torch import Tensor

from cma_tune.metrics import (
    accuracy,
    class_similarity,
    confidence_interval_95,
    harmonic_mean,
    modal_similarity,
    per_class_accuracy,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))


# Alignment


@pytest.mark.parametrize("conditioned", [False, True], ids=["C,D", "B,C,D"])
def test_similarities_equal_a_loop_over_pairs(conditioned: bool) -> None:
    images, texts = draw(6, 5), draw(6, 3, 5, seed=1) if conditioned else draw(3, 5, seed=1)
    labels = torch.tensor([0, 2, 1, 1, 0, 0])
    own, every = [], []
    for i in range(6):
        for c in range(3):
            value = cosine(images[i], texts[i, c] if conditioned else texts[c])
            every.append(value)
            if labels[i] == c:
                own.append(value)
    found = class_similarity(images, texts, labels).item()
    assert found == pytest.approx(statistics.fmean(own), abs=1e-12)
    assert modal_similarity(images, texts).item() == pytest.approx(statistics.fmean(every), abs=1e-12)


def test_similarities_have_float32_in_half_precision_and_nan_for_no_images() -> None:
    images, texts, labels = draw(4, 8).half(), draw(2, 8, seed=1).half(), torch.tensor([0, 1, 1, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for value, exact in [
            (
                class_similarity(images, texts, labels),
                class_similarity(images.double(), texts.double(), labels),
            ),
            (modal_similarity(images, texts), modal_similarity(images.double(), texts.double())),
        ]:
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact.item(), abs=1e-6)
    assert class_similarity(images[:0], texts, labels[:0]).isnan()
    assert modal_similarity(images[:0], texts).isnan()


def test_similarities_refuse_what_does_not_fit() -> None:
    images, texts = torch.ones(2, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"Expected `labels` in 0\.\.2 for 3 classes, got 3"):
        class_similarity(images, texts, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"Expected `labels` to be integers, got torch\.float32"):
        class_similarity(images, texts, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"Expected .*4 dimensions of `image_features`.* got shape \[3, 5\]"):
        modal_similarity(images, torch.ones(3, 5))


# Accuracy


def test_accuracy_counts_right_answers_from_logits_or_classes() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [9.0, 1.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert accuracy(logits, labels) == 100 * 2 / 3
    assert accuracy(logits.half(), labels) == 100 * 2 / 3
    assert accuracy(torch.tensor([0, 1, 0]), labels.int()) == 100 * 2 / 3
    assert math.isnan(accuracy(logits[:0], labels[:0]))


def test_per_class_accuracy_counts_within_classes_and_has_nan_for_absent_ones() -> None:
    predictions = torch.tensor([0, 0, 1, 2, 2, 2, 0])
    labels = torch.tensor([0, 0, 0, 2, 2, 0, 2])
    for given, classes in [(predictions, 4), (torch.nn.functional.one_hot(predictions, 4).float(), None)]:
        found = per_class_accuracy(given, labels, classes)
        assert found.tolist()[:1] == [50.0] and found[2].item() == pytest.approx(200 / 3)
        assert found.shape == (4,) and found.isnan().tolist() == [False, True, False, True]


def test_accuracy_refuses_what_does_not_fit() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"Expected `labels` of shape \[3\], .* got shape \[2\]"):
        accuracy(torch.ones(3, 2), labels)
    with pytest.raises(
        ValueError, match=r"Expected predicted classes \[B\] to be integers, got torch\.float32"
    ):
        accuracy(torch.ones(2), labels)
    with pytest.raises(ValueError, match=r"Expected `predictions` as logits .* got shape \[1, 1, 1\]"):
        accuracy(torch.ones(1, 1, 1), labels)
    with pytest.raises(ValueError, match=r"Expected `num_classes` beside predicted classes \[B\], got None"):
        per_class_accuracy(labels, labels)
    with pytest.raises(ValueError, match=r"Expected `num_classes` to be the logits' 3, got 4"):
        per_class_accuracy(torch.ones(2, 3), labels, 4)
    with pytest.raises(ValueError, match=r"Expected `labels` in 0\.\.0 for 1 classes, got 1"):
        per_class_accuracy(labels, labels, 1)


# Averages


def test_harmonic_mean_gives_the_published_summaries() -> None:
    published = [(69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (80.47, 71.69, 75.83), (84.26, 76.10, 79.97)]
    for base, novel, mean in published:
        assert harmonic_mean(base, novel) == pytest.approx(mean, abs=0.006)
    assert harmonic_mean(0.0, 50.0) == harmonic_mean(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="Expected accuracies of at least 0, got -1 and 2"):
        harmonic_mean(-1, 2)


def test_confidence_interval_uses_the_population_deviation() -> None:
    values = [61.2, 63.9, 60.4]
    expected = 1.96 * statistics.pstdev(values) / math.sqrt(3)
    assert confidence_interval_95(values) == pytest.approx(expected, abs=1e-12)
    assert confidence_interval_95(torch.tensor(values, dtype=torch.float64)) == pytest.approx(
        expected, abs=1e-12
    )
    assert confidence_interval_95([5.0]) == 0.0
    with pytest.raises(ValueError, match="Expected at least one value, got none"):
        confidence_interval_95([])


def test_examples_in_docstrings() -> None:
    for name in ("accuracy", "alignment"):  # the module `accuracy` lies behind the function of that name
        results = doctest.testmod(importlib.import_module(f"cma_tune.metrics.{name}"))
        assert results.attempted > 2 and results.failed == 0
