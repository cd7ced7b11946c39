"""Silhouette and Davies-Bouldin against scikit-learn; NC1 to NC3 against NumPy and at an exact simplex."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from sklearn.metrics import davies_bouldin_score, silhouette_score
from torch import Tensor

from cma_tune.metrics import (
    clusters,
    davies_bouldin,
    mean_deviation,
    neural_collapse,
    self_duality,
    silhouette,
    simplex_deviation,
    within_class_variability,
)

torch.set_num_threads(1)


def blobs(sizes: list[int], dims: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around a random mean for each class, far from the origin; classes of size 0 are absent."""
    generator = torch.Generator().manual_seed(seed)
    means = 10 + torch.randn(len(sizes), dims, generator=generator, dtype=torch.float64)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    noise = torch.randn(len(labels), dims, generator=generator, dtype=torch.float64)
    return means[labels] + spread * noise, labels


def simplex(classes: int, dims: int, seed: int = 0) -> Tensor:
    """C unit rows with cosine −1/(C−1), turned at random, ``[C, D]``."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    return torch.nn.functional.normalize(corners, dim=1) @ turn[:classes]


SIZES = pytest.mark.parametrize("sizes", [[5, 5], [7, 1, 12], [3, 0, 4, 9, 0], [1, 1, 2], [40, 30, 20, 10]])


# Clusters


@SIZES
@pytest.mark.parametrize("dims", [1, 3, 40])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_scores_are_those_of_scikit_learn(sizes: list[int], dims: int, spread: float) -> None:
    features, labels = blobs(sizes, dims, spread)
    expected = silhouette_score(features.numpy(), labels.numpy())
    assert silhouette(features, labels).item() == pytest.approx(expected, abs=1e-7)
    expected = davies_bouldin_score(features.numpy(), labels.numpy())
    # Theirs comes from products: a single row's distance to its own mean is its rounding there, not 0.
    assert davies_bouldin(features, labels).item() == pytest.approx(expected, abs=2e-7)


def test_the_size_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs([40, 30, 20, 10], 5)
    whole = silhouette(features, labels)
    monkeypatch.setattr(clusters, "_CHUNK", 700)  # seven rows at a time
    torch.testing.assert_close(silhouette(features, labels), whole, atol=1e-10, rtol=0)


def test_at_collapse_classes_part_completely_even_far_from_the_origin() -> None:
    labels = torch.arange(4).repeat(6)
    features = simplex(4, 8)[labels] + 1e3
    assert silhouette(features, labels).item() == pytest.approx(1, abs=1e-12)
    assert davies_bouldin(features, labels).item() == pytest.approx(0, abs=1e-10)


def test_equal_rows_do_not_part_at_all() -> None:
    features, labels = torch.ones(6, 3, dtype=torch.float64), torch.arange(2).repeat(3)
    assert silhouette(features, labels).item() == 0
    assert davies_bouldin(features, labels).item() == 0


@pytest.mark.parametrize("sizes", [[6], [1, 1, 1], [0]])
def test_scores_are_undefined_where_scikit_learn_refuses(sizes: list[int]) -> None:
    features, labels = blobs(sizes, 3)
    for score in (silhouette, davies_bouldin):
        assert score(features, labels).isnan()


# Neural collapse


@SIZES
@pytest.mark.parametrize("dims", [2, 3, 40])
def test_nc1_is_that_of_the_definition(sizes: list[int], dims: int) -> None:
    features, labels = blobs(sizes, dims)
    rows, present = features.numpy(), sorted(set(labels.tolist()))
    means = {c: rows[labels.numpy() == c].mean(0) for c in present}
    middle = sum(means.values()) / len(means)
    within = sum(numpy.outer(f - means[c], f - means[c]) for f, c in zip(rows, labels.tolist(), strict=True))
    between = sum(numpy.outer(m - middle, m - middle) for m in means.values()) / len(means)
    expected = numpy.trace(within / len(rows) @ numpy.linalg.pinv(between, rcond=1e-9)) / len(means)
    assert within_class_variability(features, labels).item() == pytest.approx(expected, rel=1e-7)


@SIZES
def test_nc2_and_nc3_are_those_of_the_definition(sizes: list[int]) -> None:
    features, labels = blobs(sizes, 6)
    classifier = torch.randn(len(sizes), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    present = sorted(set(labels.tolist()))
    means = numpy.array([features.numpy()[labels.numpy() == c].mean(0) for c in present])
    means = means - means.mean(0)
    norms = [math.sqrt(sum(x * x for x in row)) for row in means]
    number = len(present)
    cosines = [
        abs(means[i] @ means[j] / norms[i] / norms[j] + 1 / (number - 1))
        for i in range(number)
        for j in range(number)
        if i != j
    ]
    found = mean_deviation(features, labels)
    assert found.equinorm.item() == pytest.approx(numpy.std(norms) / numpy.mean(norms), abs=1e-12)
    assert found.equiangularity.item() == pytest.approx(numpy.mean(cosines), abs=1e-12)
    rows = classifier.numpy()[present]
    expected = numpy.linalg.norm(rows / numpy.linalg.norm(rows) - means / numpy.linalg.norm(means))
    assert self_duality(features, labels, classifier).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 37])
@pytest.mark.parametrize("balanced", [True, False])
def test_all_of_them_vanish_at_a_simplex(classes: int, balanced: bool) -> None:
    corners = simplex(classes, 40)
    labels = torch.arange(classes).repeat_interleave(2 if balanced else 1 + torch.arange(classes))
    features = 3 * corners[labels] + 0.5
    found = mean_deviation(features, labels)
    figures = [
        within_class_variability(features, labels),
        *found,
        *simplex_deviation(5 * corners),
        self_duality(features, labels, 5 * corners),
    ]
    assert [figure.item() for figure in figures] == pytest.approx([0] * 6, abs=1e-10)


def test_each_of_them_sees_its_own_departure() -> None:
    corners, labels = simplex(4, 8), torch.arange(4).repeat(2)
    longer = corners * torch.tensor([[1.0], [1.0], [1.0], [2.0]])
    assert simplex_deviation(longer).equinorm > 0.1 and simplex_deviation(longer).equiangularity < 1e-10
    orthogonal = simplex_deviation(torch.eye(4))
    assert orthogonal.equinorm == 0 and orthogonal.equiangularity.item() == pytest.approx(1 / 3)
    turned = simplex(4, 8, seed=1)
    assert self_duality(corners[labels], labels, turned) > 0.1
    noisy = corners[labels] + 0.1 * blobs([8], 8)[0]
    assert within_class_variability(noisy, labels) > 1e-3


def test_where_there_is_nothing_between_classes_they_are_undefined() -> None:
    one, equal = blobs([6], 3), (torch.full((6, 3), 0.1, dtype=torch.float64), torch.arange(3).repeat(2))
    classifier = blobs([3], 3)[0]
    for features, labels in (one, equal):
        assert within_class_variability(features, labels).isnan()
        assert all(figure.isnan() for figure in mean_deviation(features, labels))
        assert self_duality(features, labels, classifier).isnan()
    broken = blobs([3, 3], 3)
    broken[0][1, 1] = math.nan
    assert within_class_variability(*broken).isnan()


def test_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    features, labels = blobs([5, 6, 7], 8)
    half = features.to(torch.bfloat16)
    for figure in (within_class_variability, silhouette, davies_bouldin):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(figure(half, labels), figure(half.float(), labels))
        assert figure(half, labels).dtype == torch.float32


def test_wrong_inputs_are_refused_saying_what_came() -> None:
    features, labels = blobs([3, 4], 5)
    takers: list[Callable[[Tensor, Tensor], object]] = [
        silhouette,
        davies_bouldin,
        within_class_variability,
        mean_deviation,
        lambda f, y: self_duality(f, y, torch.ones(2, 5)),
    ]
    for figure in takers:
        with pytest.raises(ValueError, match=r"Expected `features` to be floating point, got torch\.int64"):
            figure(features.long(), labels)
        with pytest.raises(ValueError, match=r"Expected `features` of shape \[N, D\], got shape \[5\]"):
            figure(features[0], labels)
        with pytest.raises(ValueError, match=r"Expected `labels` of shape \[7\], .* got shape \[6\]"):
            figure(features, labels[1:])
    with pytest.raises(ValueError, match=r"Expected `labels` in 0\.\.0 for 1 classes, got 1"):
        self_duality(features, labels, torch.ones(1, 5))
    with pytest.raises(ValueError, match=r"Expected `rows` .* of shape \[C, D\], got torch.float64 .* \[5\]"):
        simplex_deviation(features[0])


def test_examples_in_docstrings() -> None:
    for module in (clusters, neural_collapse):
        results = doctest.testmod(module)
        assert results.attempted > 2 and results.failed == 0
