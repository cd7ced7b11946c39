"""Mutual information and entropy difference, and all of them at neural collapse."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cma_tune.metrics import (
    collapse,
    collapse_values,
    effective_rank,
    entropy_difference_ratio,
    gram_matrix,
    interplay,
    matrix_entropy,
    mutual_information,
    mutual_information_ratio,
)

torch.set_num_threads(1)


def gram(n: int, d: int, seed: int = 0) -> Tensor:
    return gram_matrix(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def simplex(classes: int) -> Tensor:
    """The exact Gram matrix of a simplex ETF."""
    off = -torch.ones(classes, classes, dtype=torch.float64) / (classes - 1)
    return off.fill_diagonal_(1.0)


def block_partition(sizes: list[int]) -> Tensor:
    """Gram matrix of rows that coincide within blocks and are orthogonal across them."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return (labels[:, None] == labels).double()


# Mutual information


def test_for_partitions_it_is_the_mutual_information_of_discrete_variables() -> None:
    # Rows 0..11; one variable splits them by halves and another by thirds, or by unequal shares.
    halves, thirds = block_partition([6, 6]), block_partition([3, 6, 3])
    h1, h2 = math.log(2), -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))
    joint = math.log(4)  # 3, 3, 3, 3
    assert mutual_information(halves, thirds).item() == pytest.approx(h1 + h2 - joint, abs=1e-12)
    assert mutual_information_ratio(halves, thirds).item() == pytest.approx((h1 + h2 - joint) / h1, abs=1e-12)
    assert entropy_difference_ratio(halves, thirds).item() == pytest.approx((h2 - h1) / h2, abs=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_definition_with_the_entrywise_product(alpha: float) -> None:
    k1, k2 = gram(7, 4), gram(7, 3, seed=1)
    product = torch.tensor([[k1[i, j] * k2[i, j] for j in range(7)] for i in range(7)], dtype=torch.float64)
    h1, h2, joint = (matrix_entropy(k, alpha).item() for k in (k1, k2, product))
    assert mutual_information(k1, k2, alpha).item() == pytest.approx(h1 + h2 - joint, abs=1e-12)
    ratio = mutual_information_ratio(k1, k2, alpha).item()
    assert ratio == pytest.approx((h1 + h2 - joint) / min(h1, h2), abs=1e-12)
    difference = entropy_difference_ratio(k1, k2, alpha).item()
    assert difference == pytest.approx(abs(h1 - h2) / max(h1, h2), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(2, 8), st.integers(2, 8), st.integers(0, 1000))
def test_bounds_symmetry_and_order_of_rows(n: int, d1: int, d2: int, seed: int) -> None:
    k1, k2 = gram(n, d1, seed), gram(n, d2, seed + 1)
    mi = mutual_information(k1, k2)
    assert -1e-10 <= mi <= min(matrix_entropy(k1), matrix_entropy(k2)) + 1e-10
    torch.testing.assert_close(mi, mutual_information(k2, k1), atol=1e-12, rtol=0)
    assert 0 <= entropy_difference_ratio(k1, k2) <= 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = mutual_information(k1[order][:, order], k2[order][:, order])
    torch.testing.assert_close(shuffled, mi, atol=1e-10, rtol=0)


def test_batches_and_differing_numbers_of_rows() -> None:
    k1, k2 = (
        torch.stack([gram(5, 3, s) for s in range(2)]),
        torch.stack([gram(5, 4, s + 5) for s in range(2)]),
    )
    for function in (mutual_information, mutual_information_ratio, entropy_difference_ratio):
        values = function(k1, k2)
        assert values.shape == (2,)
        assert values[1].item() == pytest.approx(function(k1[1], k2[1]).item(), abs=1e-12)
    assert entropy_difference_ratio(torch.eye(8), torch.eye(2)).item() == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_without_entropy_are_undefined_and_give_no_gradient(dtype: torch.dtype) -> None:
    rows = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).to(dtype).repeat(6, 1)
    same, other = gram_matrix(rows), gram(6, 4).to(dtype)
    assert mutual_information(same, other).item() == pytest.approx(0.0, abs=1e-5)
    assert mutual_information_ratio(same, other).isnan()
    assert entropy_difference_ratio(same, same).isnan()
    assert mutual_information_ratio(torch.ones(1, 1), torch.ones(1, 1)).isnan()
    assert entropy_difference_ratio(same, other).item() == pytest.approx(1.0, abs=1e-5)
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mutual_information_ratio(gram_matrix(leaf), other), leaf)
    assert (gradient == 0).all()


def test_gradcheck_also_where_the_gram_matrices_are_singular() -> None:
    generator = torch.Generator().manual_seed(0)
    f1 = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    f2 = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    for function in (mutual_information, mutual_information_ratio, entropy_difference_ratio):
        assert torch.autograd.gradcheck(lambda a, b: function(gram_matrix(a), gram_matrix(b)), (f1, f2))  # noqa: B023


def test_half_precision_is_computed_in_float32() -> None:
    k1, k2 = gram(8, 5).to(torch.bfloat16), gram(8, 3, seed=1).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mutual_information(k1, k2), mutual_information(k1.float(), k2.float()))


def test_wrong_inputs_are_refused_saying_what_came() -> None:
    for function in (mutual_information, mutual_information_ratio):
        with pytest.raises(
            ValueError, match=r"Expected `k1` and `k2` of the same shape, got \[3, 3\] and \[2, 2\]"
        ):
            function(torch.eye(3), torch.eye(2))
    for function in (mutual_information, mutual_information_ratio, entropy_difference_ratio):
        with pytest.raises(ValueError, match=r"Expected `k2` to be square, .* got shape \[3, 2\]"):
            function(torch.eye(3), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"same leading dimensions, got shapes \[2, 2\] and \[4, 3, 3\]"):
        entropy_difference_ratio(torch.eye(2), torch.ones(4, 3, 3))


# Neural collapse


@pytest.mark.parametrize("classes", [3, 4, 10, 37, 100])
def test_values_at_collapse_are_those_of_the_exact_simplex(classes: int) -> None:
    k, values = simplex(classes), collapse_values(classes)
    found = {
        "entropy": matrix_entropy(k),
        "hadamard_entropy": matrix_entropy(k * k),
        "mutual_information": mutual_information(k, k),
        "mutual_information_ratio": mutual_information_ratio(k, k),
        "entropy_difference_ratio": entropy_difference_ratio(k, k),
        "effective_rank": effective_rank(k),
    }
    for name, value in values._asdict().items():
        assert value == pytest.approx(found[name].item(), abs=1e-10), name
    # Order 2 sees the same entropy, and so does a class-balanced batch on the simplex.
    assert matrix_entropy(k, 2).item() == pytest.approx(values.entropy, abs=1e-10)
    labels = torch.arange(classes).repeat(2)
    assert matrix_entropy(k[labels][:, labels]).item() == pytest.approx(values.entropy, abs=1e-10)


def test_published_values_at_collapse() -> None:
    assert collapse_values(3).entropy == pytest.approx(0.693147, abs=5e-7)
    assert collapse_values(3).mutual_information_ratio == pytest.approx(0.5, abs=1e-12)
    assert collapse_values(10).entropy == pytest.approx(2.1972246, abs=5e-8)
    assert collapse_values(10).mutual_information == pytest.approx(2.0925285, abs=5e-8)
    assert collapse_values(100).entropy == pytest.approx(4.5951199, abs=5e-8)
    assert collapse_values(100).mutual_information == pytest.approx(4.5850700, abs=5e-8)
    assert collapse_values(100).mutual_information_ratio == pytest.approx(0.9978129358, abs=5e-11)


def test_two_classes_at_collapse_have_no_ratio() -> None:
    k, values = simplex(2), collapse_values(2)
    assert values[:3] == (0.0, 0.0, 0.0) and values.effective_rank == 1.0
    assert math.isnan(values.mutual_information_ratio) and math.isnan(values.entropy_difference_ratio)
    assert mutual_information_ratio(k, k).isnan() and entropy_difference_ratio(k, k).isnan()
    assert mutual_information(k, k).item() == pytest.approx(0.0, abs=1e-12)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected `num_classes` to be at least 2, got 1"):
        collapse_values(1)


def test_examples_in_docstrings() -> None:
    for module in (interplay, collapse):
        results = doctest.testmod(module)
        assert results.attempted > 2 and results.failed == 0
