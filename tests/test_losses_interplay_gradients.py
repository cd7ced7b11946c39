"""Gradients of the interplay losses, also where Gram matrices are singular and eigenvalues repeat."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cma_tune.losses import EntropyDifferenceLoss, InterplayLoss, MutualInformationLoss, interplay_terms

torch.set_num_threads(1)


def batch(
    size: int, dims: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    classifier = torch.randn(classes, dims, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    return features.to(dtype), classifier.to(dtype), labels


def simplex(classes: int, dims: int, seed: int = 0) -> Tensor:
    """C unit rows with cosine −1/(C−1), turned at random, ``[C, D]``."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    return torch.nn.functional.normalize(corners, dim=1) @ turn[:classes]


@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("size", "dims"), [(6, 9), (8, 3), (7, 7)])
def test_gradcheck(size: int, dims: int, center: bool, alpha: float) -> None:
    features, classifier, _ = batch(size, dims, 4)
    labels = torch.arange(size) % 3  # class 3 is absent
    inputs = (features.requires_grad_(), classifier.requires_grad_())
    for loss in (
        MutualInformationLoss(alpha, center),
        EntropyDifferenceLoss(alpha, center),
        lambda *given: InterplayLoss(0.7, 1.3, alpha, center)(*given).loss,
    ):
        assert torch.autograd.gradcheck(lambda f, c: loss(f, c, labels), inputs)  # noqa: B023


DEGENERATE: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "repeated rows": lambda: (batch(4, 6, 4)[0].repeat(2, 1), batch(4, 6, 4)[1]),
    "orthogonal rows": lambda: (torch.eye(8, dtype=torch.float64), batch(4, 8, 4)[1]),
    "orthogonal classifier": lambda: (batch(8, 6, 4)[0], torch.eye(6, dtype=torch.float64)[:4]),
    "collapse": lambda: (simplex(4, 6).repeat(2, 1), simplex(4, 6, seed=1)),
    "equal classifier rows": lambda: (batch(8, 6, 4)[0], batch(1, 6, 1)[1].repeat(4, 1)),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_gradcheck_where_gram_matrices_are_singular_and_eigenvalues_repeat(kind: str) -> None:
    features, classifier = (part.clone().requires_grad_() for part in DEGENERATE[kind]())
    labels = torch.arange(4).repeat(2)

    # x ln x has no second derivative at 0: beside a zero eigenvalue the difference quotient is off by ε ln ε.
    def information(f: Tensor, c: Tensor) -> Tensor:
        return interplay_terms(f, c, labels).mutual_information

    assert torch.autograd.gradcheck(information, (features, classifier), eps=1e-7, atol=2e-5)
    if kind != "collapse":  # there the entropies are equal, and |ΔH| has a kink
        difference = EntropyDifferenceLoss()
        assert torch.autograd.gradcheck(
            lambda f, c: difference(f, c, labels), (features, classifier), eps=1e-7, atol=2e-5
        )


def test_only_one_side_may_need_a_gradient() -> None:
    features, classifier, labels = batch(9, 6, 4)
    leaves = features.clone().requires_grad_(), classifier.clone().requires_grad_()
    loss = InterplayLoss(1.0, 1.0)
    both = torch.autograd.grad(loss(*leaves, labels).loss, leaves)
    (of_features,) = torch.autograd.grad(loss(leaves[0], classifier, labels).loss, leaves[:1])
    (of_classifier,) = torch.autograd.grad(loss(features, leaves[1], labels).loss, leaves[1:])
    assert torch.equal(of_features, both[0]) and torch.equal(of_classifier, both[1])
    detached = InterplayLoss(1.0, 1.0, detach_classifier=True)
    value = detached(*leaves, labels).loss
    assert torch.equal(value, loss(*leaves, labels).loss)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    assert found[0] is not None and torch.equal(found[0], both[0]) and found[1] is None


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    features, classifier, labels = batch(6, 8, 3)
    features.requires_grad_()
    value = MutualInformationLoss()(features, classifier, labels)
    (gradient,) = torch.autograd.grad(value, features, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), features)
