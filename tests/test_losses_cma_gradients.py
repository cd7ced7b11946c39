"""Gradients, degenerate groups and precision of the Cross-Modal Alignment loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cma_tune.losses import CMALoss, cross_modal_entropy

torch.set_num_threads(1)


def batch(
    size: int,
    classes: int,
    dims: int,
    *,
    conditioned: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    shape = (size, classes, dims) if conditioned else (classes, dims)
    texts = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    return images.to(dtype), texts.to(dtype), labels


FORMS = pytest.mark.parametrize("conditioned", [False, True], ids=["C,D", "B,C,D"])


# Gradients


@FORMS
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dims", [3, 16])
def test_gradcheck(conditioned: bool, normalize: bool, dims: int) -> None:
    images, texts, _ = batch(9, 4, dims, conditioned=conditioned)
    labels = torch.tensor([0, 1, 1, 1, 1, 3, 1, 3, 1])  # a pair, a wide group, an absent class
    loss = CMALoss(reduction="mean" if normalize else "sum", normalize=normalize)
    inputs = (images.requires_grad_(), texts.requires_grad_())
    assert torch.autograd.gradcheck(lambda i, t: loss(i, t, labels), inputs)


@FORMS
def test_a_frozen_side_gets_no_gradient_and_changes_none(conditioned: bool) -> None:
    images, texts, labels = batch(9, 4, 16, conditioned=conditioned)
    leaves = images.clone().requires_grad_(), texts.clone().requires_grad_()
    both = torch.autograd.grad(cross_modal_entropy(leaves[0], leaves[1], labels), leaves)
    (of_images,) = torch.autograd.grad(cross_modal_entropy(leaves[0], texts, labels), leaves[:1])
    (of_texts,) = torch.autograd.grad(cross_modal_entropy(images, leaves[1], labels), leaves[1:])
    assert torch.equal(of_images, both[0]) and torch.equal(of_texts, both[1])
    assert not cross_modal_entropy(images, texts, labels).requires_grad
    with torch.no_grad():  # eigenvalues without vectors: another routine, the same values to rounding
        plain = cross_modal_entropy(leaves[0], leaves[1], labels)
    torch.testing.assert_close(plain, cross_modal_entropy(leaves[0], leaves[1], labels), atol=1e-12, rtol=0)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    images, texts, labels = batch(6, 2, 8, conditioned=False)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_modal_entropy(images, texts, labels), images, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), images)


def degenerate(kind: str, conditioned: bool) -> tuple[Tensor, Tensor, Tensor]:
    images, texts, labels = batch(8, 3, 6, conditioned=conditioned)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    flat = texts.reshape(-1, 6)
    if kind == "identical":
        images[:], texts[:] = images[0], images[0]
    elif kind == "opposite":
        images[:], texts[:] = images[0], -images[0]
    elif kind == "duplicates":
        images[:4], images[4:] = images[0], images[7]
    elif kind == "zero image":
        images[[0, 7]] = 0
    elif kind == "zero text":
        flat[:] = 0
    elif kind == "all zero":
        images[:] = 0
        flat[:] = 0
    elif kind == "one-member groups":
        images, texts, labels = images[:3], texts[:3], torch.tensor([0, 1, 2])
        images = images.clone()
        images[0] = texts[0, 0] if conditioned else texts[0]  # and one of them at the top of the cosine
    elif kind == "more rows than dimensions":
        images, texts = images[:, :2].clone(), texts[..., :2].clone()
    elif kind == "orthogonal":
        images[:] = torch.eye(6, dtype=images.dtype)[[0, 1, 2, 0, 1, 2, 3, 4]]
        flat[:] = torch.eye(6, dtype=images.dtype)[5]
    return images, texts, labels


KINDS = [
    "identical",
    "opposite",
    "duplicates",
    "zero image",
    "zero text",
    "all zero",
    "one-member groups",
    "more rows than dimensions",
    "orthogonal",
]


@FORMS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_value_and_gradient_stay_finite_in_degenerate_groups(
    kind: str, dtype: torch.dtype, conditioned: bool
) -> None:
    images, texts, labels = degenerate(kind, conditioned)
    images, texts = images.to(dtype).requires_grad_(), texts.to(dtype).requires_grad_()
    value = cross_modal_entropy(images, texts, labels)
    torch.autograd.backward(value)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert -1e-5 <= value.item() <= sum(math.log(n) for n in (8, 8, 2))
    for leaf in (images, texts):
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
        # dH/dx is bounded: no row here is shorter than 1, unless it is 0 and then it gets no gradient.
        assert leaf.grad.abs().max() < 5
        assert (leaf.grad[leaf.detach().abs().sum(-1) == 0] == 0).all()


def test_zero_rows_count_as_rows_that_add_nothing() -> None:
    e = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    pair = cross_modal_entropy(zero, e[:1], torch.tensor([0])).item()
    assert pair == pytest.approx(0.5 * math.log(2), abs=1e-12)  # shares 1/2 and 0
    four = cross_modal_entropy(torch.cat([e[:2], zero]), e[:1], torch.tensor([0, 0, 0])).item()
    shares = (0.5, 0.25)  # two rows on e1, one on e2, one nowhere
    assert four == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-12)
    assert cross_modal_entropy(zero, zero, torch.tensor([0])).item() == 0.0


def test_a_step_against_the_gradient_lowers_the_entropy_of_a_group_near_collapse() -> None:
    images, texts, labels = batch(6, 1, 16, conditioned=False)
    images = (images[0] + 1e-3 * images).requires_grad_()
    texts = images.detach()[:1].clone()
    value = cross_modal_entropy(images, texts, labels)
    torch.autograd.backward(value)
    assert images.grad is not None and images.grad.abs().max() > 1e-4
    with torch.no_grad():
        assert cross_modal_entropy(images - 1e-3 * images.grad, texts, labels) < value


@FORMS
def test_an_empty_batch_gives_zero_on_the_graph(conditioned: bool) -> None:
    images, texts, labels = batch(0, 3, 4, conditioned=conditioned)
    images.requires_grad_()
    texts.requires_grad_()
    for loss in (CMALoss(), CMALoss(reduction="mean", normalize=True)):
        value = loss(images, texts, labels)
        assert value.item() == 0.0
        grads = torch.autograd.grad(value, (images, texts))
        assert [g.shape for g in grads] == [images.shape, texts.shape]
        assert grads[1].abs().sum() == 0


@FORMS
def test_non_finite_embeddings_give_nan_and_no_exception(conditioned: bool) -> None:
    images, texts, labels = batch(9, 2, 4, conditioned=conditioned)
    for poison in (math.nan, math.inf):
        broken = images.clone()
        broken[3] = poison
        assert cross_modal_entropy(broken, texts, labels).isnan()
        assert cross_modal_entropy(broken[3:4], texts[3:4] if conditioned else texts, labels[3:4]).isnan()


# Precision


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_even_under_autocast(
    conditioned: bool, dtype: torch.dtype
) -> None:
    images, texts, labels = batch(20, 5, 32, conditioned=conditioned, dtype=dtype)
    expected = cross_modal_entropy(images.float(), texts.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cross_modal_entropy(images, texts, labels), expected)
        assert torch.equal(cross_modal_entropy(images.float(), texts, labels), expected)
    assert cross_modal_entropy(images.double(), texts, labels).dtype == torch.float64


@FORMS
def test_float32_is_close_to_float64(conditioned: bool) -> None:
    images, texts, labels = batch(64, 5, 128, conditioned=conditioned, dtype=torch.float32)
    exact = cross_modal_entropy(images.double(), texts.double(), labels)
    assert cross_modal_entropy(images, texts, labels).item() == pytest.approx(exact.item(), rel=1e-6)
