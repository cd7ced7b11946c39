"""The collapse monitor: its figures are those of the metrics, and at collapse those of theory."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

from cma_tune.metrics import (
    CollapseMonitor,
    entropy_difference_ratio,
    gram_matrix,
    matrix_entropy,
    monitor,
    mutual_information,
    mutual_information_ratio,
)

torch.set_num_threads(1)

UNDEFINED_FOR_ONE_CLASS = {
    *("mutual_information", "mutual_information_ratio", "entropy_difference_ratio", "nc1", "nc2_equinorm"),
    *("nc2_equiangularity", "nc3", "silhouette", "davies_bouldin"),
}


def simplex(classes: int, dims: int) -> Tensor:
    """C unit rows with cosine −1/(C−1), turned at random, ``[C, D]``."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    return torch.nn.functional.normalize(corners, dim=1) @ turn[:classes]


def batch(size: int, dims: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    classifier = torch.randn(classes, dims, generator=generator, dtype=torch.float64)
    return features, torch.randint(classes, (size,), generator=generator), classifier


def known(values: dict[str, float | None]) -> dict[str, float]:
    """Those that are defined."""
    return {name: value for name, value in values.items() if value is not None}


def information(features: Tensor, labels: Tensor, classifier: Tensor) -> dict[str, float]:
    """What relates features to classifier rows, from the N×N matrices."""
    of_features, of_rows = gram_matrix(features), gram_matrix(classifier[labels])
    values = {
        "feature_entropy": matrix_entropy(of_features),
        "classifier_entropy": matrix_entropy(of_rows),
        "weight_entropy": matrix_entropy(gram_matrix(classifier)),
        "mutual_information": mutual_information(of_features, of_rows),
        "mutual_information_ratio": mutual_information_ratio(of_features, of_rows),
        "entropy_difference_ratio": entropy_difference_ratio(of_features, of_rows),
    }
    return {name: value.item() for name, value in values.items()}


@pytest.mark.parametrize(
    ("size", "dims", "classes"),
    [(12, 20, 5), (90, 4, 3), (90, 3, 5), (300, 6, 20), (30, 9, 400)],
    ids=["rows", "D·C columns", "D·D columns", "many classes", "absent classes"],
)
def test_information_is_that_of_the_metrics_whichever_matrix_is_smaller(
    size: int, dims: int, classes: int
) -> None:
    features, labels, classifier = batch(size, dims, classes)
    values = known(CollapseMonitor()(features, labels, classifier))
    expected = information(features, labels, classifier)
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-10)
    assert values["samples"] == size and values["log_samples"] == pytest.approx(math.log(size))


@pytest.mark.parametrize("classes", [3, 10, 37])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("repeats", [1, 4, 100])
def test_at_collapse_all_figures_are_those_of_theory(classes: int, center: bool, repeats: int) -> None:
    corners, labels = simplex(classes, 40), torch.arange(classes).repeat(repeats)
    values = known(CollapseMonitor(center)(3 * corners[labels], labels, 0.1 * corners))
    for name in ("entropy", "mutual_information", "mutual_information_ratio", "entropy_difference_ratio"):
        measured = "feature_entropy" if name == "entropy" else name
        assert values[measured] == pytest.approx(values[f"collapse_{name}"], abs=1e-10)
    assert values["classifier_entropy"] == pytest.approx(math.log(classes - 1), abs=1e-10)
    assert values["weight_entropy"] == pytest.approx(math.log(classes - 1), abs=1e-10)
    vanish = {name: value for name, value in values.items() if name.startswith("nc")}
    assert len(vanish) == 6 and max(map(abs, vanish.values())) < 1e-10
    if repeats > 1:
        assert values["silhouette"] == pytest.approx(1, abs=1e-10)
        assert values["davies_bouldin"] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("offset", "entropy", "ratio", "difference"),
    [(0.25, 2.292, 0.995, 0.041), (0.5, 2.258, 0.980, 0.027), (1.0, 1.792, 0.948, 0.185)],
)
def test_a_shared_offset_moves_the_uncentred_figures_only(
    offset: float, entropy: float, ratio: float, difference: float
) -> None:
    corners, labels = simplex(10, 12), torch.arange(10).repeat(4)
    across = torch.linalg.svd(corners)[2][-1]  # a unit vector orthogonal to all class means
    features = corners[labels] + offset * across
    names = ("feature_entropy", "mutual_information_ratio", "entropy_difference_ratio")
    values = known(CollapseMonitor()(features, labels, corners))
    assert [values[name] for name in names] == pytest.approx([entropy, ratio, difference], abs=6e-4)
    centred = known(CollapseMonitor(center=True)(features, labels, corners + 0.3 * across))
    theory = (centred["collapse_entropy"], centred["collapse_mutual_information_ratio"], 0)
    assert [centred[name] for name in names] == pytest.approx(theory, abs=1e-10)
    assert centred["weight_entropy"] == pytest.approx(math.log(9), abs=1e-10)


def test_centred_figures_at_collapse_need_no_balance() -> None:
    corners, labels = simplex(5, 8), torch.arange(5).repeat_interleave(torch.arange(1, 6))
    values = known(CollapseMonitor(center=True)(corners[labels] + 0.4, labels, corners - 0.2))
    assert values["entropy_difference_ratio"] == pytest.approx(0, abs=1e-10)
    assert values["feature_entropy"] < math.log(4) - 0.01  # counts differ: no longer ln(C−1)


def test_two_classes_at_collapse_have_no_ratios() -> None:
    corners, labels = simplex(2, 5), torch.arange(2).repeat(3)
    values = CollapseMonitor()(corners[labels], labels, corners)
    undefined = {name for name, value in values.items() if value is None}
    assert undefined == {
        f"{prefix}{name}"
        for prefix in ("", "collapse_")
        for name in ("mutual_information_ratio", "entropy_difference_ratio")
    }
    zero = ("feature_entropy", "classifier_entropy", "mutual_information", "collapse_entropy")
    assert [values[name] for name in zero] == pytest.approx([0] * 4, abs=1e-12)


def test_more_rows_than_the_limit_are_thinned_for_information_alone() -> None:
    features, labels, classifier = batch(100, 8, 10)
    whole = known(CollapseMonitor(max_rows=80)(features, labels, classifier))  # 80 columns: exact still
    assert whole["samples"] == 100
    found = known(CollapseMonitor(max_rows=50)(features, labels, classifier))
    assert found["samples"] == 50 and found["log_samples"] == pytest.approx(math.log(50))
    expected = information(features[::2], labels[::2], classifier)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-10)
    for name in ("nc1", "nc2_equinorm", "nc3", "silhouette", "davies_bouldin"):
        assert found[name] == whole[name]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("size", [0, 1, 6])
def test_what_is_undefined_is_none(size: int, center: bool) -> None:
    features, _, classifier = batch(size, 5, 3)
    values = CollapseMonitor(center)(features, torch.ones(size, dtype=torch.int64), classifier)
    assert tuple(values) == CollapseMonitor.names
    undefined = {name for name, value in values.items() if value is None}
    without_rows = {"log_samples", "feature_entropy", "classifier_entropy"}
    assert undefined == UNDEFINED_FOR_ONE_CLASS | (without_rows if size == 0 else set())
    assert values["samples"] == size


def test_values_that_are_not_finite_give_none_and_no_exception() -> None:
    features, labels, classifier = batch(9, 5, 3)
    features[2, 2] = math.inf
    values = CollapseMonitor()(features, labels, classifier)
    assert values["feature_entropy"] is None and values["mutual_information"] is None
    assert values["nc1"] is None and values["samples"] == 9 and values["weight_entropy"] is not None
    broken = CollapseMonitor()(batch(9, 5, 3)[0], labels, classifier * math.nan)
    assert broken["weight_entropy"] is None and broken["nc1"] is not None


def test_no_gradient_and_half_precision_in_float64() -> None:
    features, labels, classifier = batch(20, 5, 3)
    features, weight = features.to(torch.bfloat16).requires_grad_(), torch.nn.Parameter(classifier)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CollapseMonitor()(features, labels, weight)
    assert found == CollapseMonitor()(features.detach().double(), labels, classifier)


def test_wrong_inputs_are_refused_saying_what_came() -> None:
    features, labels, classifier = batch(9, 5, 3)
    with pytest.raises(ValueError, match=r"Expected `labels` in 0\.\.2 for 3 classes, got 7"):
        CollapseMonitor()(features, torch.full((9,), 7), classifier)
    with pytest.raises(ValueError, match=r"Expected `classifier` to have the 5 dimensions"):
        CollapseMonitor()(features, labels, classifier[:, :4])
    with pytest.raises(ValueError, match=r"Expected `max_rows` to be at least 2, got 1"):
        CollapseMonitor(max_rows=1)
    with pytest.raises(ValueError, match=r"Expected `center` to be True or False, got 'no'"):
        CollapseMonitor(center="no")  # type: ignore[arg-type]


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(monitor)
    assert results.attempted > 2 and results.failed == 0
