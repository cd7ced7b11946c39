"""The images of a step: a plain loop gives the same, and so do all processes together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cma_tune.companion.augmentation import Augment
from cma_tune.companion.image_sets import ImageSet
from cma_tune.companion.pools import Pool
from cma_tune.companion.sampling import Stream
from cma_tune.companion.steps import LABELLED, STRONG, WEAK, Step, Steps
from cma_tune.data.batches import Share

CPU = torch.device("cpu")
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
LABELLED_IMAGES = [0, 3, 4, 8, 10]


def made_set(extra: int = 6) -> ImageSet:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=generator)

    train = Pool(images(13), torch.arange(13) % 4)
    further = images(extra) if extra else None
    if further is not None:  # as the file's columns give them
        further = further.transpose(2, 3).contiguous().transpose(2, 3)
    none = Pool(images(0), torch.empty(0, dtype=torch.int64))
    return ImageSet("made", "here", tuple("abcd"), train, further, none, none, MEAN, STD)


DATA = made_set()


def steps(
    share: Share | None = None,
    data: ImageSet = DATA,
    batch_size: int = 4,
    unlabelled: int = 7,
    strong: bool = True,
    seed: int = 5,
    flip: float = 0.5,
) -> Steps:
    return Steps(data, LABELLED_IMAGES, batch_size, unlabelled, strong, seed, flip, share or Share(), CPU)


def plain_step(data: ImageSet, number: int, batch_size: int, unlabelled: int, seed: int, flip: float) -> Any:
    """Labelled, weak and strong views, labels and places, image by image."""

    def view(image: Tensor, strength: Any, slot: int, which: int) -> Tensor:
        made = Augment(strength, seed, flip=flip)(image[None], number, torch.tensor([slot]), which)[0]
        return torch.stack([(made[c].float() - MEAN[c]) / STD[c] for c in range(3)])

    chosen = Stream(len(LABELLED_IMAGES), batch_size, seed, "labelled").step(number)
    positions = [LABELLED_IMAGES[int(place)] for place in chosen]
    views = [
        view(data.train.images[position], "weak", slot, LABELLED) for slot, position in enumerate(positions)
    ]
    pool = list(data.train.images) + (list(data.extra) if data.extra is not None else [])
    places = Stream(len(pool), unlabelled, seed, "unlabelled").step(number).tolist()
    for strength, which in (("weak", WEAK), ("strong", STRONG)):
        views += [view(pool[place], strength, slot, which) for slot, place in enumerate(places)]
    return torch.stack(views), data.train.labels[positions], places


@pytest.mark.parametrize("extra", [0, 6])
def test_a_step_is_what_a_plain_loop_gives(extra: int) -> None:
    data = made_set(extra)
    made = steps(data=data)
    assert made.pool_size == 13 + extra
    for number in (0, 1, 2, 30):
        step = made.step(number)
        views, labels, places = plain_step(data, number, 4, 7, 5, 0.5)
        torch.testing.assert_close(step.images, views, rtol=0, atol=1e-6)
        assert torch.equal(step.labels, labels) and step.indices.tolist() == places
        assert step.order.tolist() == list(range(18)) and step.sizes == (4, 7, 7)


def test_labelled_images_stay_in_the_unlabelled_pool() -> None:
    made = steps()
    seen = torch.cat([made.step(number).indices for number in range(19)])
    assert torch.bincount(seen, minlength=19).tolist() == [7] * 19  # 19 steps of 7: 7 orders of all 19


def together(processes: int, number: int, **options: Any) -> tuple[Tensor, list[Step]]:
    """Rows of all processes one after another, as gathering gives them, put in their order."""
    shares = [steps(Share(rank, processes), **options).step(number) for rank in range(processes)]
    gathered = torch.cat([step.images for step in shares])
    order = shares[0].order
    assert sorted(order.tolist()) == list(range(len(gathered)))
    whole = torch.empty_like(gathered)
    whole[order] = gathered
    return whole, shares


@settings(max_examples=25, deadline=None)
@given(
    processes=st.sampled_from([2, 3]),
    number=st.integers(0, 40),
    batch_size=st.integers(1, 6),
    unlabelled=st.integers(0, 9),
    strong=st.booleans(),
)
def test_processes_together_have_the_global_batch_and_its_noise(
    processes: int, number: int, batch_size: int, unlabelled: int, strong: bool
) -> None:
    options = {"batch_size": batch_size, "unlabelled": unlabelled, "strong": strong}
    one = steps(**options).step(number)  # type: ignore[arg-type]
    whole, shares = together(processes, number, **options)
    assert torch.equal(whole, one.images)
    for step in shares:
        assert torch.equal(step.labels, one.labels) and torch.equal(step.indices, one.indices)
        assert torch.equal(step.order, shares[0].order) and step.sizes == one.sizes
    counts = [len(step.images) for step in shares]
    views = 2 + strong if unlabelled else 1
    assert max(counts) - min(counts) <= views


def test_steps_depend_on_their_number_alone() -> None:
    forward = [steps().step(number) for number in range(6)]
    again = steps()
    for number in (5, 2, 4, 0):
        assert torch.equal(again.step(number).images, forward[number].images)
    assert not torch.equal(forward[0].images, forward[1].images)
    assert not torch.equal(steps(seed=6).step(0).images, forward[0].images)


def test_views_have_noise_of_their_own() -> None:
    """Of one image in one slot."""
    plain = torch.arange(3 * 12 * 12, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(1, 3, 12, 12)
    slots = torch.arange(200)
    images = plain.expand(200, -1, -1, -1)
    views = [Augment("weak", 5)(images, 0, slots, view) for view in (LABELLED, WEAK, STRONG)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        same = (views[one] == views[other]).flatten(1).all(dim=1).double().mean()
        assert same < 0.05  # 162 equally likely outcomes


def test_without_unlabelled_images_and_without_a_strong_view() -> None:
    alone = steps(unlabelled=0, strong=False).step(3)
    assert alone.sizes == (4, 0, 0) and len(alone.images) == 4 and len(alone.indices) == 0
    weak = steps(strong=False).step(3)
    assert weak.sizes == (4, 7, 0) and len(weak.images) == 11
    both = steps().step(3)
    assert torch.equal(both.images[:11], weak.images) and torch.equal(weak.images[:4], alone.images)


def test_flips_are_an_option() -> None:
    """A dark left half stays at the left where nothing is flipped."""
    images = torch.zeros(13, 3, 12, 12, dtype=torch.uint8)
    images[..., 6:] = 255
    data = ImageSet(
        "made", "", ("a",), Pool(images, torch.zeros(13).long()), None, DATA.val, DATA.test, MEAN, STD
    )
    for flip, expected in ((0.0, 0.0), (1.0, 1.0)):
        made = steps(data=data, flip=flip, batch_size=50, unlabelled=0, strong=False).step(0).images
        assert (made[..., 0] > made[..., -1]).all(dim=2).all(dim=1).double().mean() == expected
