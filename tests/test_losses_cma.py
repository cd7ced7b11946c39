"""The Cross-Modal Alignment loss against hand values and plain loops."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cma_tune.losses import CMALoss, cma, cma_objective, cross_modal_entropy
from cma_tune.losses._groups import class_groups

torch.set_num_threads(1)


def class_rows(images: Tensor, texts: Tensor, labels: Tensor) -> list[Tensor]:
    """The rows of each class present, picked one by one."""
    groups = []
    for c in sorted(set(labels.tolist())):
        rows = []
        for i in range(len(labels)):
            if labels[i] == c:
                rows.append(images[i])
                if texts.ndim == 3:
                    rows.append(texts[i, c])
        if texts.ndim == 2:
            rows.append(texts[c])
        groups.append(torch.stack(rows))
    return groups


def loop_entropy(rows: Tensor) -> Tensor:
    """−Σ p ln p with p = σ²/n: singular values of the rows, where the package takes eigenvalues."""
    unit = torch.stack([row / row.dot(row).sqrt() for row in rows])
    shares = torch.linalg.svdvals(unit) ** 2 / len(rows)
    return torch.stack([-p * p.log() if p > 1e-16 else p * 0 for p in shares]).sum()


def paper_form(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([loop_entropy(rows) for rows in class_rows(images, texts, labels)]).sum()


def release_form(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(
        [loop_entropy(rows) / math.log(len(rows)) for rows in class_rows(images, texts, labels)]
    ).mean()


def release_numerics(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """The release's form with its ridge, trace and clamp, in float32."""
    entropies = []
    for rows in class_rows(images.float(), texts.float(), labels):
        unit = torch.nn.functional.normalize(rows, dim=1)
        gram = unit @ unit.T + 1e-6 * torch.eye(len(rows))
        shares = torch.linalg.eigvalsh(gram / gram.trace()).clamp(min=1e-7)
        entropies.append(-(shares * shares.log()).sum() / math.log(len(rows)))
    return torch.stack(entropies).mean()


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


def binary_entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


FORMS = pytest.mark.parametrize("conditioned", [False, True], ids=["C,D", "B,C,D"])


# Hand values


@pytest.mark.parametrize("cosine", [-1.0, -0.3, 0.0, 0.5, 0.999999, 1.0])
def test_one_image_and_one_text_give_binary_entropy_of_the_half_angle(cosine: float) -> None:
    image = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    text = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    value = cross_modal_entropy(image, text, torch.tensor([0])).item()
    assert value == pytest.approx(binary_entropy((1 + cosine) / 2), abs=1e-10)


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 9])
def test_identical_rows_give_zero_and_orthonormal_rows_ln_n(rows: int) -> None:
    basis = torch.eye(rows, dtype=torch.float64)
    labels = torch.zeros(rows - 1, dtype=torch.long)
    same = cross_modal_entropy(basis[:1].repeat(rows - 1, 1), basis[:1], labels).item()
    orthonormal = cross_modal_entropy(basis[1:], basis[:1], labels).item()
    assert same == pytest.approx(0.0, abs=1e-12)
    assert orthonormal == pytest.approx(math.log(rows), abs=1e-12)


def test_text_conditioned_on_the_image_by_hand() -> None:
    # Class 0 holds images 0 and 1 with their own rows for class 0: e1, e1, e2, e2 -> ln 2.
    # Class 2 holds image 2 (e1) and its row for class 2 (60 degrees away) -> binary entropy of 3/4.
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 0.0]], dtype=torch.float64)
    texts = torch.full((3, 3, 2), math.nan, dtype=torch.float64)  # rows of other classes must not be read
    texts[0, 0] = torch.tensor([1.0, 0.0])
    texts[1, 0] = torch.tensor([0.0, 1.0])
    texts[2, 2] = torch.tensor([0.5, math.sqrt(0.75)], dtype=torch.float64)
    labels = torch.tensor([0, 0, 2])
    first, second = math.log(2), binary_entropy(0.75)
    assert CMALoss()(images, texts, labels).item() == pytest.approx(first + second, abs=1e-12)
    release = CMALoss(reduction="mean", normalize=True)(images, texts, labels).item()
    assert release == pytest.approx((first / math.log(4) + second / math.log(2)) / 2, abs=1e-12)


def test_absent_classes_count_for_nothing() -> None:
    images, texts, labels = batch(6, 3, 8, conditioned=False)
    wide = torch.full((10, 8), math.nan, dtype=torch.float64)
    wide[4:7] = texts
    reductions: tuple[cma.Reduction, ...] = ("sum", "mean")
    for reduction in reductions:
        loss = CMALoss(reduction)
        assert torch.equal(loss(images, texts, labels), loss(images, wide, labels + 4))


# Plain loops


@FORMS
@pytest.mark.parametrize(
    ("size", "classes", "dims"),
    [(1, 1, 4), (1, 5, 4), (7, 3, 16), (32, 10, 64), (40, 2, 5), (64, 4, 512), (50, 100, 8)],
)
def test_both_forms_equal_a_loop_over_classes(size: int, classes: int, dims: int, conditioned: bool) -> None:
    images, texts, labels = batch(size, classes, dims, conditioned=conditioned)
    paper = cross_modal_entropy(images, texts, labels)
    release = cross_modal_entropy(images, texts, labels, reduction="mean", normalize=True)
    torch.testing.assert_close(paper, paper_form(images, texts, labels), atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(release, release_form(images, texts, labels), atol=1e-10, rtol=1e-12)


@FORMS
def test_unbalanced_batches_fill_every_bucket(conditioned: bool) -> None:
    counts = [1, 2, 3, 4, 7, 8, 15, 30]
    labels = torch.arange(8).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    images, texts, _ = batch(len(labels), 8, 12, conditioned=conditioned)
    expected = paper_form(images, texts, labels)
    torch.testing.assert_close(cross_modal_entropy(images, texts, labels), expected, atol=1e-10, rtol=1e-12)


@FORMS
def test_the_release_numerics_differ_by_less_than_a_thousandth(conditioned: bool) -> None:
    loss = CMALoss(reduction="mean", normalize=True)
    for seed, dims in [(0, 512), (1, 64), (2, 1024)]:
        images, texts, labels = batch(32, 20, dims, conditioned=conditioned, seed=seed, dtype=torch.float32)
        assert loss(images, texts, labels).item() == pytest.approx(
            release_numerics(images, texts, labels).item(), abs=1e-3
        )


@FORMS
def test_gradients_equal_those_of_the_loop(conditioned: bool) -> None:
    images, texts, labels = batch(12, 4, 32, conditioned=conditioned)  # more dimensions than rows: smooth
    grads = []
    for function in (cross_modal_entropy, paper_form):
        leaves = (images.clone().requires_grad_(), texts.clone().requires_grad_())
        grads.append(torch.autograd.grad(function(leaves[0], leaves[1], labels), leaves))
    for ours, loop in zip(*grads, strict=True):
        torch.testing.assert_close(ours, loop, atol=1e-10, rtol=1e-9)


# Invariances


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 24), conditioned=st.booleans())
def test_the_order_of_rows_a_rotation_and_their_scale_change_nothing(
    seed: int, size: int, conditioned: bool
) -> None:
    images, texts, labels = batch(size, 4, 6, conditioned=conditioned, seed=seed)
    value = cross_modal_entropy(images, texts, labels)
    generator = torch.Generator().manual_seed(seed)

    order = torch.randperm(size, generator=generator)
    classes = torch.randperm(4, generator=generator)  # and the classes' names
    shuffled = texts[order][:, classes.argsort()] if conditioned else texts[classes.argsort()]
    reordered = cross_modal_entropy(images[order], shuffled, classes[labels[order]])
    torch.testing.assert_close(reordered, value, atol=1e-10, rtol=0)

    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    rotated = cross_modal_entropy(images @ rotation, texts @ rotation, labels)
    torch.testing.assert_close(rotated, value, atol=1e-10, rtol=0)

    scales = [
        10 ** (8 * torch.rand(x.shape[:-1], generator=generator) - 4)[..., None] for x in (images, texts)
    ]
    scaled = cross_modal_entropy(images * scales[0], texts * scales[1], labels)
    torch.testing.assert_close(scaled, value, atol=1e-10, rtol=0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.booleans())
def test_the_plan_gives_every_row_a_slot_of_its_own_in_its_group(labels: list[int], per_image: bool) -> None:
    plan = class_groups(torch.tensor(labels), texts_per_image=per_image)
    owners = labels + (labels if per_image else sorted(set(labels)))
    widths = [b.width for b in plan.buckets for _ in range(b.groups)]
    ends = torch.tensor(widths).cumsum(0)
    assert len(set(plan.slots.tolist())) == len(owners)
    groups: dict[int, set[int]] = {}
    for owner, slot in zip(owners, plan.slots.tolist(), strict=True):
        groups.setdefault(int((ends <= slot).sum()), set()).add(owner)
    assert all(len(members) == 1 for members in groups.values())
    sizes = [owners.count(groups[g].pop()) for g in range(len(ends))]
    assert plan.sizes.tolist() == sizes
    # Padding never as much as doubles a group, and none is cut.
    assert all(size <= width < 2 * size for size, width in zip(sizes, widths, strict=True))


# The objective


def test_the_objective_mixes_and_its_ends_are_exact() -> None:
    ce = torch.tensor(1.7, requires_grad=True)
    penalty = torch.tensor(0.3, requires_grad=True)
    assert cma_objective(ce, penalty, 0.3).item() == pytest.approx(0.7 * 1.7 + 0.3 * 0.3)
    assert torch.autograd.grad(cma_objective(ce, penalty, 0.3), (ce, penalty)) == pytest.approx((0.7, 0.3))
    nan = torch.tensor(math.nan)
    assert torch.equal(cma_objective(ce, nan, 0.0), ce)
    assert torch.equal(cma_objective(nan, penalty, 1.0), penalty)


@pytest.mark.parametrize("weight", [-0.1, 1.0001, math.nan, math.inf])
def test_a_weight_outside_0_to_1_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"Expected `weight` .* in 0\.\.1, got"):
        cma_objective(torch.tensor(1.0), torch.tensor(1.0), weight)


# Refusals


@pytest.mark.parametrize(
    ("images", "texts", "labels", "message"),
    [
        ((4,), (3, 8), [0], r"`image_features` of shape \[B, D\], got shape \[4\]"),
        ((2, 8), (8,), [0, 1], r"`text_features` of shape \[C, D\] or \[B, C, D\], got shape \[8\]"),
        ((2, 8), (3, 7), [0, 1], r"8 dimensions .*, got shape \[3, 7\]"),
        ((2, 8), (3, 3, 8), [0, 1], r"each of the 2 images, got shape \[3, 3, 8\]"),
        ((2, 8), (3, 8), [0, 1, 2], r"`labels` of shape \[2\].* got shape \[3\]"),
        ((2, 8), (3, 8), [[0], [1]], r"`labels` of shape \[2\].* got shape \[2, 1\]"),
        ((2, 8), (3, 8), [0.0, 1.0], r"`labels` to be integers, got torch\.float32"),
        ((2, 8), (3, 8), [True, False], r"`labels` to be integers, got torch\.bool"),
        ((2, 8), (3, 8), [0, 3], r"`labels` in 0\.\.2 for 3 classes, got 3 \(1 of 2"),
        ((2, 8), (2, 3, 8), [-1, -100], r"`labels` in 0\.\.2 for 3 classes, got -1 \(2 of 2"),
    ],
)
def test_wrong_inputs_are_refused_saying_what_came(
    images: tuple[int, ...], texts: tuple[int, ...], labels: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match="Expected .*" + message):
        CMALoss()(torch.ones(images), torch.ones(texts), torch.tensor(labels))


def test_integer_features_and_unknown_reductions_are_refused() -> None:
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match=r"Expected `image_features` to be floating point, got torch\.int64"):
        cross_modal_entropy(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2), labels)
    with pytest.raises(ValueError, match=r"Expected `text_features` to be floating point, got torch\.int64"):
        cross_modal_entropy(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.long), labels)
    with pytest.raises(ValueError, match=r"Expected `reduction` to be 'sum' or 'mean', got 'none'"):
        CMALoss(reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected `reduction` to be 'sum' or 'mean', got 'none'"):
        cross_modal_entropy(torch.ones(1, 2), torch.ones(1, 2), labels, reduction="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["x", "false", 1, None])
def test_a_switch_that_is_no_bool_is_refused(value: Any) -> None:
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match=rf"Expected `normalize` to be True or False, got {value!r}\."):
        CMALoss(normalize=value)
    with pytest.raises(ValueError, match=r"Expected `gather_across_processes` to be True or False"):
        CMALoss(gather_across_processes=value)
    for name in ("normalize", "gather"):
        with pytest.raises(ValueError, match=rf"Expected `{name}` to be True or False, got {value!r}\."):
            cross_modal_entropy(torch.ones(1, 2), torch.ones(1, 2), labels, **{name: value})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_labels_serve(dtype: torch.dtype) -> None:
    for conditioned in (False, True):
        images, texts, labels = batch(6, 3, 8, conditioned=conditioned)
        expected = cross_modal_entropy(images, texts, labels)
        assert torch.equal(cross_modal_entropy(images, texts, labels.to(dtype)), expected)


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(cma)
    assert results.attempted > 5 and results.failed == 0
