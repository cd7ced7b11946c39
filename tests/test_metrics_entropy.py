"""Gram matrices and matrix entropies against hand values and closed forms."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cma_tune.metrics import effective_rank, entropy, feature_entropy, gram_matrix, matrix_entropy

torch.set_num_threads(1)

ALPHAS = pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7, 2.0, 3.0])


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop_entropy(features: Tensor, alpha: float) -> float:
    """From singular values of the unit rows, one by one."""
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features.tolist()]
    singular = torch.linalg.svdvals(torch.tensor(unit, dtype=torch.float64)).tolist()
    shares = [s * s / len(unit) for s in singular if s * s > 1e-14]
    if alpha == 1:
        return -math.fsum(p * math.log(p) for p in shares)
    return math.log(math.fsum(p**alpha for p in shares)) / (1 - alpha)


# Values


def test_gram_matrix_holds_cosines() -> None:
    features = rows(2, 5, 3)
    gram = gram_matrix(features)
    assert gram.shape == (2, 5, 5)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                x, y = features[b, i].tolist(), features[b, j].tolist()
                cosine = sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
                assert gram[b, i, j].item() == pytest.approx(cosine, abs=1e-14)


@ALPHAS
def test_hand_values(alpha: float) -> None:
    # Identical rows, orthonormal rows, two rows with cosine c.
    ones, eye = torch.ones(7, 7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    assert matrix_entropy(ones, alpha).item() == pytest.approx(0.0, abs=1e-12)
    assert matrix_entropy(eye, alpha).item() == pytest.approx(math.log(7), abs=1e-12)
    for c in (-1.0, -0.4, 0.0, 0.6, 1.0):
        p, q = (1 + c) / 2, (1 - c) / 2
        value = matrix_entropy(torch.tensor([[1, c], [c, 1]], dtype=torch.float64), alpha).item()
        if alpha == 1:
            expected = -sum(x * math.log(x) for x in (p, q) if x)
        else:
            expected = math.log(p**alpha + q**alpha) / (1 - alpha)
        assert value == pytest.approx(expected, abs=1e-12)


@ALPHAS
@pytest.mark.parametrize(("n", "d"), [(1, 3), (4, 9), (9, 4), (6, 6), (30, 2)])
def test_both_ways_equal_singular_values(n: int, d: int, alpha: float) -> None:
    features = rows(n, d)
    expected = loop_entropy(features, alpha)
    assert matrix_entropy(gram_matrix(features), alpha).item() == pytest.approx(expected, abs=1e-10)
    assert feature_entropy(features, alpha).item() == pytest.approx(expected, abs=1e-10)


def test_order_2_without_eigenvalues_equals_the_eigenvalue_form() -> None:
    gram = gram_matrix(rows(4, 8, 5))
    eigenvalues = torch.linalg.eigvalsh(gram)
    torch.testing.assert_close(matrix_entropy(gram, 2), -(eigenvalues / 8).square().sum(-1).log())
    frobenius = torch.linalg.matrix_norm(gram)
    torch.testing.assert_close(matrix_entropy(gram, 2.0), 2 * math.log(8) - 2 * frobenius.log())


def test_order_2_and_the_smaller_problem_are_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    eigvalsh = torch.linalg.eigvalsh

    def spy(gram: Tensor) -> Tensor:
        sizes.append(gram.shape[-1])
        eigenvalues: Tensor = eigvalsh(gram)
        return eigenvalues

    monkeypatch.setattr(torch.linalg, "eigvalsh", spy)
    matrix_entropy(torch.eye(3), alpha=2)
    feature_entropy(rows(20, 4), alpha=2)
    assert sizes == []
    feature_entropy(rows(20, 4))
    feature_entropy(rows(4, 20))
    assert sizes == [4, 4]


def test_orders_approach_1_and_fall_with_alpha() -> None:
    gram = gram_matrix(rows(10, 6))
    limit = matrix_entropy(gram).item()
    assert matrix_entropy(gram, 1 + 1e-5).item() == pytest.approx(limit, abs=1e-4)
    assert matrix_entropy(gram, 1 - 1e-5).item() == pytest.approx(limit, abs=1e-4)
    values = [matrix_entropy(gram, alpha).item() for alpha in (0.3, 0.9, 1.0, 1.5, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)


def test_leading_dimensions_are_a_batch() -> None:
    features = rows(3, 2, 5, 4)
    for values in (matrix_entropy(gram_matrix(features)), feature_entropy(features)):
        assert values.shape == (3, 2)
        for i in range(3):
            for j in range(2):
                assert values[i, j].item() == pytest.approx(loop_entropy(features[i, j], 1.0), abs=1e-10)


@ALPHAS
def test_effective_rank_counts_directions(alpha: float) -> None:
    three = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)
    assert effective_rank(gram_matrix(three), alpha).item() == pytest.approx(3.0, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_sizes_of_zero(alpha: float) -> None:
    assert matrix_entropy(torch.empty(0, 3, 3), alpha).shape == (0,)
    assert feature_entropy(torch.empty(2, 0, 3), alpha).tolist() == [0.0, 0.0]
    assert matrix_entropy(torch.empty(0, 0), alpha).item() == 0.0
    assert gram_matrix(torch.empty(0, 3)).shape == (0, 0)


def test_entropies_of_zero_are_not_minus_zero() -> None:
    for alpha in (1.0, 2.0):
        assert math.copysign(1.0, matrix_entropy(torch.ones(1, 1), alpha).item()) == 1.0


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    features = rows(12, 8).to(dtype)
    gram = gram_matrix(features)
    assert gram.dtype == torch.float32 and torch.equal(gram, gram_matrix(features.float()))
    expected = feature_entropy(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gram_matrix(features.float()), gram)
        assert torch.equal(feature_entropy(features), expected)
        assert torch.equal(matrix_entropy(gram), matrix_entropy(gram.clone()))
        assert matrix_entropy(gram.to(dtype)).dtype == torch.float32
        assert gram_matrix(features.double()).dtype == torch.float64


@pytest.mark.parametrize(("n", "d", "bound"), [(64, 128, 1e-6), (448, 128, 1e-5), (448, 10, 1e-5)])
def test_float32_keeps_to_float64(n: int, d: int, bound: float) -> None:
    features = rows(n, d).float()
    exact = feature_entropy(features.double()).item()
    assert feature_entropy(features).item() == pytest.approx(exact, abs=bound)
    assert matrix_entropy(gram_matrix(features)).item() == pytest.approx(exact, abs=bound)


# Gradients


@ALPHAS
@pytest.mark.parametrize(("n", "d"), [(4, 6), (6, 3)])
def test_gradcheck(n: int, d: int, alpha: float) -> None:
    features = rows(2, n, d).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: feature_entropy(f, alpha), (features,))
    assert torch.autograd.gradcheck(lambda f: matrix_entropy(gram_matrix(f), alpha), (features,))


@ALPHAS
def test_gradcheck_in_the_entries_of_a_gram_matrix(alpha: float) -> None:
    gram = gram_matrix(rows(4, 9)).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: matrix_entropy(k, alpha), (gram,))


def test_gradient_in_the_entries_is_the_matrix_logarithm() -> None:
    gram = gram_matrix(rows(5, 9)).requires_grad_()
    (gradient,) = torch.autograd.grad(matrix_entropy(gram), gram)
    # ln(K/n) = ln(I + X) as its power series after enough square roots (K/n has a norm below 1).
    values, vectors = torch.linalg.eigh(gram.detach() / 5)
    root = vectors @ torch.diag(values ** (1 / 1024)) @ vectors.T - torch.eye(5, dtype=torch.float64)
    power, logarithm = torch.eye(5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    for k in range(1, 12):
        power = power @ root
        logarithm -= (-1) ** k * power / k
    expected = -(1024 * logarithm + torch.eye(5)) / 5
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)


@ALPHAS
@pytest.mark.parametrize(
    "kind", ["identical", "duplicates", "orthonormal", "zero rows", "all zero", "one row"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_stay_finite(kind: str, alpha: float, dtype: torch.dtype) -> None:
    features = {
        "identical": rows(1, 4).repeat(6, 1),
        "duplicates": rows(3, 4).repeat(2, 1),
        "orthonormal": torch.eye(4).double(),
        "zero rows": torch.cat([rows(3, 4), torch.zeros(2, 4).double()]),
        "all zero": torch.zeros(5, 4).double(),
        "one row": rows(1, 4),
    }[kind].to(dtype)
    for function in (feature_entropy, lambda f, a: matrix_entropy(gram_matrix(f), a)):
        leaf = features.clone().requires_grad_()
        value = function(leaf, alpha)
        (gradient,) = torch.autograd.grad(value, leaf)
        # Shares that zero rows leave sum to less than 1: orders above 1 are then not bounded by ln N.
        bound = math.inf if kind == "zero rows" and alpha > 1 else math.log(len(features))
        assert value.isfinite() and -1e-6 <= value.item() <= bound + 1e-6
        assert gradient.isfinite().all() and (gradient[features.abs().sum(-1) == 0] == 0).all()


def test_zero_rows_have_no_direction() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [2e-20, 0.0]], requires_grad=True)
    gram = gram_matrix(features)
    torch.testing.assert_close(gram, torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    (gradient,) = torch.autograd.grad((gram * torch.arange(9.0).view(3, 3)).sum(), features)
    assert gradient[[0, 2]].abs().sum() == 0 and gradient.isfinite().all()
    # One share of 1/3 is left; zeros alone leave none.
    assert matrix_entropy(gram.double()).item() == pytest.approx(math.log(3) / 3, abs=1e-6)
    assert feature_entropy(torch.zeros(3, 2)).item() == 0.0


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_non_finite_matrices_give_nan_beside_good_ones(alpha: float) -> None:
    gram = torch.eye(3).repeat(3, 1, 1)
    gram[1, 0, 0] = math.nan
    gram[2, 0, 1] = math.inf
    values = matrix_entropy(gram, alpha)
    assert values[0].item() == pytest.approx(math.log(3)) and values[1:].isnan().all()


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    features = rows(4, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(feature_entropy(features), features, create_graph=True)
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        torch.autograd.grad(gradient.sum(), features)


# Invariances


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1000), st.sampled_from([0.5, 1.0, 2.0]))
def test_order_rotation_and_scale_of_rows_change_nothing(n: int, d: int, seed: int, alpha: float) -> None:
    features = rows(n, d, seed=seed)
    value = feature_entropy(features, alpha)
    assert -1e-10 <= value <= math.log(min(n, d)) + 1e-10
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    scale = 10 ** (8 * torch.rand(n, 1, generator=generator) - 4)
    changed = scale * features[torch.randperm(n, generator=generator)] @ rotation
    torch.testing.assert_close(feature_entropy(changed, alpha), value, atol=1e-9, rtol=0)


# Refusals


def test_wrong_inputs_are_refused_saying_what_came() -> None:
    with pytest.raises(ValueError, match=r"Expected `features` of shape \[\.\.\., N, D\], got shape \[3\]"):
        gram_matrix(torch.ones(3))
    with pytest.raises(ValueError, match=r"Expected `features` to be floating point, got torch\.int64"):
        feature_entropy(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Expected `gram` to be square, .* got shape \[3, 2\]"):
        matrix_entropy(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"Expected `gram` to be square, .* got shape \[2, 3\]"):
        effective_rank(torch.ones(2, 3))
    for alpha in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="Expected `alpha` to be finite and above 0, got"):
            matrix_entropy(torch.eye(2), alpha)
        with pytest.raises(ValueError, match="Expected `alpha` to be finite and above 0, got"):
            feature_entropy(torch.eye(2), alpha)


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(entropy)
    assert results.attempted > 3 and results.failed == 0
