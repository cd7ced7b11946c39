"""Labelled images are as many of every class; a stream of positions is one order of all after another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cma_tune.companion.sampling import Stream, balanced_labels, fold_labels
from cma_tune.data.images import generator_seed
from cma_tune.errors import UserError

LABELS = torch.randint(0, 10, (2000,), generator=torch.Generator().manual_seed(0))


@given(each=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
def test_as_many_labels_of_every_class(each: int, seed: int) -> None:
    chosen = balanced_labels(LABELS, 10, 10 * each, seed)
    assert chosen == sorted(set(chosen)) and len(chosen) == 10 * each
    assert torch.bincount(LABELS[chosen], minlength=10).tolist() == [each] * 10
    assert chosen == balanced_labels(LABELS, 10, 10 * each, seed)


def test_seeds_choose_differently_and_every_image_alike() -> None:
    draws = [tuple(balanced_labels(LABELS, 10, 100, seed)) for seed in range(400)]
    assert len(set(draws)) == len(draws)
    counts = torch.bincount(torch.tensor(draws).flatten(), minlength=len(LABELS)).double()
    share = 10 / torch.bincount(LABELS).double()[LABELS]  # of its class
    deviation = (counts - 400 * share) / (400 * share * (1 - share)).sqrt()
    assert deviation.abs().max() < 5 and abs(deviation.pow(2).mean() - 1) < 0.15


def test_the_choice_is_fixed_for_good() -> None:
    """Records hold positions, but a choice that changed would make other runs of the same command."""
    labels = torch.arange(20) % 2
    expected = []
    for label in (0, 1):
        order = torch.randperm(
            10, generator=torch.Generator().manual_seed(generator_seed("labels", 7, label))
        )
        expected += [int(place) * 2 + label for place in order[:3]]
    assert balanced_labels(labels, 2, 6, 7) == sorted(expected) == [6, 9, 12, 17, 18, 19]


def test_zero_is_all() -> None:
    assert balanced_labels(LABELS, 10, 0, 3) == list(range(2000))


@pytest.mark.parametrize(("count", "near"), [(41, 40), (4, 10), (19, 20), (45, 40)])
def test_labels_that_are_no_multiple_of_the_classes(count: int, near: int) -> None:
    with pytest.raises(UserError, match=f"multiple of the 10 classes, got {count}; use {near}, or 0"):
        balanced_labels(LABELS, 10, count, 1)


def test_more_labels_than_images() -> None:
    with pytest.raises(UserError, match="Expected at least 300 images of class 0 for 3000 labels, got"):
        balanced_labels(LABELS, 10, 3000, 1)
    with pytest.raises(UserError, match="Expected at least 1 images of class 10 for 11 labels, got 0"):
        balanced_labels(LABELS, 11, 11, 1)


def test_folds() -> None:
    assert fold_labels([(3, 1), (5, 2)], 1, "stl10") == [2, 5]
    for fold in (-1, 2):
        with pytest.raises(UserError, match=f"Expected a --fold of stl10 from 0 to 1, got {fold}"):
            fold_labels([(3, 1), (5, 2)], fold, "stl10")
    with pytest.raises(UserError, match="Expected no --fold for cifar10, which has none here, got 0"):
        fold_labels((), 0, "cifar10")


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    steps=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_a_stream_is_whole_orders_one_after_another(
    count: int, batch_size: int, steps: int, seed: int
) -> None:
    stream = Stream(count, batch_size, seed, "some")
    flat: list[int] = []
    cycle = 0
    while len(flat) < steps * batch_size:
        generator = torch.Generator().manual_seed(generator_seed("some", seed, cycle))
        flat += torch.randperm(count, generator=generator).tolist()
        cycle += 1
    for step in range(steps):
        assert stream.step(step).tolist() == flat[step * batch_size : (step + 1) * batch_size]
    # A resumed run asks for a step without those before it; a run may also go back.
    for step in (steps - 1, 0, steps // 2):
        fresh = Stream(count, batch_size, seed, "some").step(step)
        assert torch.equal(fresh, stream.step(step))
    for start in range(0, len(flat) - count + 1, count):
        assert sorted(flat[start : start + count]) == list(range(count))


def test_streams_of_other_names_and_seeds_differ() -> None:
    made = {
        tuple(Stream(100, 50, seed, name).step(0).tolist())
        for seed in (1, 2)
        for name in ("labelled", "unlabelled")
    }
    assert len(made) == 4


def test_a_long_stream_keeps_few_orders() -> None:
    stream = Stream(10, 25, 0, "some")
    for step in range(50):
        stream.step(step)
        assert len(stream._orders) <= 1
