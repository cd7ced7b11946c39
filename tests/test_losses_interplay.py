"""Mutual information and entropy difference as losses, against their definition in loops."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cma_tune.losses import (
    EntropyDifferenceLoss,
    InterplayLoss,
    MutualInformationLoss,
    interplay,
    interplay_terms,
)
from cma_tune.metrics import collapse_values

torch.set_num_threads(1)


def batch(
    size: int, dims: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    classifier = torch.randn(classes, dims, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    return features.to(dtype), classifier.to(dtype), labels


def definition(
    features: Tensor, classifier: Tensor, labels: Tensor, alpha: float = 1.0
) -> tuple[float, float]:
    """MI and |ΔH|, entry by entry in the N×N matrices."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()))

    def entropy(gram: numpy.ndarray) -> float:
        shares = [share for share in numpy.linalg.eigvalsh(gram / len(gram)).tolist() if share > 1e-14]
        if alpha == 1:
            return -sum(share * math.log(share) for share in shares)
        return math.log(sum(share**alpha for share in shares)) / (1 - alpha)

    n = len(features)
    rows = [classifier[int(label)] for label in labels]
    of_features = numpy.array([[cosine(features[i], features[j]) for j in range(n)] for i in range(n)])
    of_rows = numpy.array([[cosine(rows[i], rows[j]) for j in range(n)] for i in range(n)])
    h1, h2, joint = entropy(of_features), entropy(of_rows), entropy(of_features * of_rows)
    return h1 + h2 - joint, abs(h1 - h2)


def simplex(classes: int, dims: int, seed: int = 0) -> Tensor:
    """C unit rows with cosine −1/(C−1), turned at random, ``[C, D]``."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    return torch.nn.functional.normalize(corners, dim=1) @ turn[:classes]


# Values


@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(
    ("size", "dims", "classes"), [(9, 16, 4), (20, 6, 3), (12, 12, 40), (7, 3, 7), (2, 5, 50)]
)
def test_values_are_those_of_the_definition(size: int, dims: int, classes: int, alpha: float) -> None:
    features, classifier, labels = batch(size, dims, classes)
    assert len(labels.unique()) > 1
    information, difference = definition(features, classifier, labels, alpha)
    assert abs(difference) > 1e-3 or size == 2
    terms = interplay_terms(features, classifier, labels, alpha=alpha)
    assert terms.mutual_information.item() == pytest.approx(information, abs=1e-10)
    assert terms.entropy_difference.item() == pytest.approx(difference, abs=1e-10)
    with_gradient = interplay_terms(features.requires_grad_(), classifier, labels, alpha=alpha)
    torch.testing.assert_close(with_gradient, terms, atol=1e-12, rtol=0)


def test_modules_weigh_the_terms() -> None:
    features, classifier, labels = batch(9, 6, 4)
    terms = interplay_terms(features, classifier, labels)
    inputs = (features, classifier, labels)
    assert torch.equal(MutualInformationLoss()(*inputs), -terms.mutual_information)
    torch.testing.assert_close(EntropyDifferenceLoss()(*inputs), terms.entropy_difference)
    loss, parts = InterplayLoss(0.3, 2.0)(*inputs)
    expected = -0.3 * terms.mutual_information + 2 * terms.entropy_difference
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    assert parts == {
        "mutual_information": terms.mutual_information,
        "entropy_difference": terms.entropy_difference,
    }
    alone, parts = InterplayLoss(0.0, 2.0)(*inputs)
    torch.testing.assert_close(alone, 2 * terms.entropy_difference)
    assert set(parts) == {"entropy_difference"}


def test_options_reach_the_terms() -> None:
    features, classifier, labels = batch(9, 6, 4)
    options: dict[str, Any] = {"alpha": 2.0, "center": True}
    terms = interplay_terms(features, classifier, labels, alpha=2.0, center=True)
    assert abs(terms.mutual_information - interplay_terms(features, classifier, labels)[0]) > 1e-3
    for loss, value in (
        (MutualInformationLoss(**options), -terms.mutual_information),
        (EntropyDifferenceLoss(**options), terms.entropy_difference),
        (InterplayLoss(1, 0, **options), -terms.mutual_information),
    ):
        found = loss(features, classifier, labels)
        torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, value)
        assert "alpha=2.0, center=True" in repr(loss)


def test_masked_rows_take_no_part_whatever_their_labels() -> None:
    features, classifier, labels = batch(9, 6, 4)
    mask = torch.tensor([True, False, True, True, False, True, True, False, True])
    noisy, unknown = features.clone(), labels.clone()
    noisy[~mask] = math.nan
    unknown[~mask] = -1
    expected = definition(features[mask], classifier, labels[mask])
    noisy.requires_grad_()
    terms = interplay_terms(noisy, classifier, unknown, mask)
    assert [term.item() for term in terms] == pytest.approx(expected, abs=1e-10)
    (gradient,) = torch.autograd.grad(terms.mutual_information, noisy)
    assert (gradient[~mask] == 0).all() and (gradient[mask].abs().sum(1) > 1e-6).all()


@pytest.mark.parametrize("classes", [3, 10])
def test_at_collapse_they_are_what_theory_says(classes: int) -> None:
    corners = simplex(classes, 16)
    labels = torch.arange(classes).repeat(3)
    terms = interplay_terms(2 * corners[labels], 5 * simplex(classes, 16, seed=1), labels)
    theory = collapse_values(classes)
    assert terms.mutual_information.item() == pytest.approx(theory.mutual_information, abs=1e-10)
    assert terms.entropy_difference.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("repeats", [[2, 2, 2, 2], [1, 5, 2, 3], [4, 0, 3, 1]])
def test_centering_takes_shared_offsets_away_and_frequent_classes_do_not_shift_the_centre(
    repeats: list[int],
) -> None:
    corners = simplex(4, 8)
    labels = torch.arange(4).repeat_interleave(torch.tensor(repeats))
    features = corners[labels] + 0.7 * corners.new_ones(8)
    classifier = 3 * corners - 0.2
    present = labels.unique()
    shifted = (corners - corners[present].mean(0))[labels]
    expected = definition(shifted, corners - corners[present].mean(0), labels)
    found = interplay_terms(features, classifier, labels, center=True)
    assert [term.item() for term in found] == pytest.approx(expected, abs=1e-10)
    assert found.entropy_difference.item() == pytest.approx(0, abs=1e-10)
    assert interplay_terms(features, classifier, labels).entropy_difference > 0.05


def test_centred_features_without_spread_have_no_direction() -> None:
    _, classifier, labels = batch(8, 6, 3)
    features = (7 * batch(1, 6, 3)[0]).repeat(8, 1).requires_grad_()
    terms = interplay_terms(features, classifier, labels, center=True)
    without = interplay_terms(torch.zeros_like(features), classifier, labels, center=True)
    torch.testing.assert_close(terms, without, atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(terms[0] + terms[1], features)
    assert (gradient == 0).all()


# Nothing to relate, and what is not finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["no row", "one row", "one class", "nothing unmasked", "one unmasked"])
def test_with_nothing_to_relate_loss_and_gradient_are_zero(kind: str, dtype: torch.dtype) -> None:
    size = {"no row": 0, "one row": 1}.get(kind, 6)
    features, classifier, labels = batch(size, 5, 4, dtype=dtype)
    if kind == "one class":
        labels = torch.full((6,), 2)
    mask = None
    if kind.endswith("unmasked"):
        mask = torch.arange(6) == (3 if kind == "one unmasked" else -1)
    for loss in (InterplayLoss(0.5, 0.5), InterplayLoss(0.5, 0.5, alpha=2.0, center=True)):
        leaves = features.clone().requires_grad_(), classifier.clone().requires_grad_()
        value, terms = loss(*leaves, labels, mask)
        assert value.item() == 0 and all(term.item() == 0 for term in terms.values())
        for leaf, gradient in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
            assert gradient.shape == leaf.shape and (gradient == 0).all()


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_zero_rows_stay_finite_and_get_no_gradient(alpha: float) -> None:
    features, classifier, labels = batch(8, 6, 3)
    features[2], classifier[1] = 0, 0
    leaves = features.requires_grad_(), classifier.requires_grad_()
    value = InterplayLoss(1.0, 1.0, alpha=alpha)(*leaves, labels).loss
    gradients = torch.autograd.grad(value, leaves)
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][2] == 0).all() and (gradients[1][1] == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_gives_nan_and_no_exception(poison: float) -> None:
    features, classifier, labels = batch(8, 6, 3)
    features[3, 1] = poison
    for loss in (InterplayLoss(1.0, 1.0), InterplayLoss(0.0, 1.0), InterplayLoss(1.0, 0.0, alpha=2.0)):
        assert loss(features, classifier, labels).loss.isnan()
        leaf = features.clone().requires_grad_()
        value = loss(leaf, classifier, labels).loss
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value.isnan() and not gradient.isfinite().all()  # what a gradient scaler looks for


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    features, classifier, labels = batch(20, 32, 5, dtype=dtype)
    loss = InterplayLoss(1.0, 1.0)
    expected = loss(features.float(), classifier.float(), labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(features, classifier.float(), labels).loss, expected)
    assert loss(features.double(), classifier, labels).loss.dtype == torch.float64
    leaf = features.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, classifier, labels).loss, leaf)
    assert gradient.dtype == dtype and gradient.isfinite().all()


@pytest.mark.parametrize(("size", "dims"), [(64, 128), (200, 32)])
def test_float32_is_close_to_float64_in_value_and_gradient(size: int, dims: int) -> None:
    features, classifier, labels = batch(size, dims, 10)
    found = []
    for dtype in (torch.float64, torch.float32):
        leaf = features.to(dtype).requires_grad_()
        value = InterplayLoss(1.0, 1.0)(leaf, classifier.to(dtype), labels).loss
        found.append((value.detach().double(), torch.autograd.grad(value, leaf)[0].double()))
    assert abs(found[0][0] - found[1][0]) < 1e-5
    assert (found[0][1] - found[1][1]).abs().max() < 1e-3 * found[0][1].abs().max()


# Wrong inputs


def test_wrong_inputs_are_refused_saying_what_came() -> None:
    features, classifier, labels = batch(6, 5, 4)
    calls: list[tuple[str, Callable[[], object]]] = [
        (r"`features` to be floating point", lambda: interplay_terms(features.long(), classifier, labels)),
        (
            r"`features` of shape \[N, D\], got shape \[5\]",
            lambda: interplay_terms(features[0], classifier, labels),
        ),
        (
            r"the 5 dimensions of `features`.*\[4, 3\]",
            lambda: interplay_terms(features, classifier[:, :3], labels),
        ),
        (r"`labels` to be integers", lambda: interplay_terms(features, classifier, labels.double())),
        (
            r"`labels` in 0\.\.3 for 4 classes, got -1",
            lambda: interplay_terms(features, classifier, torch.full((6,), -1)),
        ),
        (
            r"`mask` to be bool of shape \[6\].*int64",
            lambda: interplay_terms(features, classifier, labels, labels),
        ),
        (
            r"`alpha` to be finite and above 0, got 0",
            lambda: interplay_terms(features, classifier, labels, alpha=0),
        ),
        (r"`mutual_information_weight` to be finite and at least 0, got -1", lambda: InterplayLoss(-1, 0)),
        (r"`entropy_difference_weight` .* got nan", lambda: InterplayLoss(0, math.nan)),
        (r"`center` to be True or False, got 'false'", lambda: MutualInformationLoss(center="false")),  # type: ignore[arg-type]
    ]
    for message, call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(interplay)
    assert results.attempted > 5 and results.failed == 0
