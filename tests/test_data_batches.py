"""Noise, order and shares of batches depend on seed, epoch and image alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cma_tune.data.batches import Batch, LiveBatches, Share, StoredBatches, encode_items, epoch_order
from cma_tune.data.dataset import FileImages
from cma_tune.data.images import Augmentation, ItemImages, generator_seed, noise_from, train_transform
from cma_tune.data.splits import Item
from cma_tune.errors import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
TRANSFORM = train_transform((16, 16), MEAN, STD, Augmentation())
ITEMS = tuple(Item(f"class{i % 3}/{i:02d}.png", i % 3) for i in range(11))


class DrawnImages:
    """Images of noise that are decided by their key."""

    def load(self, key: str) -> Image.Image:
        """An image whose size depends on the key as well."""
        rng = np.random.default_rng(generator_seed(key))
        height, width = rng.integers(20, 40, 2)
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def fingerprint(self, key: str) -> str:
        """The key."""
        return key


IMAGES = DrawnImages()


def encode(images: Tensor) -> Tensor:
    """A cheap encoder that treats every image apart, to the last bit: ``[B, 3, H, W] → [B, 12]``."""
    assert len(images), "an encoder need not take an empty batch"
    return images.flatten(1)[:, ::64]


def live(
    batch_size: int = 4,
    seed: int = 3,
    workers: int = 0,
    share: Share | None = None,
    items: tuple[Item, ...] = ITEMS,
) -> LiveBatches:
    return LiveBatches(items, IMAGES, TRANSFORM, encode, CPU, batch_size, seed, workers, share or Share())


def same(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels) and one.size == two.size
    )


def views(seed: int, epochs: int) -> Tensor:
    """Features ``[epochs, N, D]`` of every epoch's crops."""
    parts = [encode_items(ITEMS, IMAGES, TRANSFORM, encode, CPU, noise=(seed, e)) for e in range(epochs)]
    return torch.stack(parts)


# noise


def test_workers_do_not_change_the_noise() -> None:
    plain, two = (list(live(workers=workers).batches(epoch=5)) for workers in (0, 2))
    assert len(plain) == len(two) == 2
    assert all(same(a, b) for a, b in zip(plain, two, strict=True))
    alone, spread = (
        encode_items(ITEMS, IMAGES, TRANSFORM, encode, CPU, 3, workers, noise=(1, 2)) for workers in (0, 2)
    )
    assert torch.equal(alone, spread)


def test_noise_depends_on_seed_epoch_and_key_and_nothing_else() -> None:
    def crop(items: tuple[Item, ...], index: int, seed: int = 0, epoch: int = 0) -> Tensor:
        return ItemImages(items, IMAGES, TRANSFORM, seed, epoch)[index][0]

    first = crop(ITEMS, 4)
    torch.rand(17)
    assert torch.equal(first, crop(ITEMS, 4))
    assert torch.equal(first, crop(ITEMS[::-1], 6))
    assert torch.equal(first, crop((Item(ITEMS[4].key, 9),), 0))
    assert not torch.equal(first, crop(ITEMS, 4, seed=1))
    assert not torch.equal(first, crop(ITEMS, 4, epoch=1))

    def draw(seed: int, epoch: int, key: str) -> float:
        with noise_from(seed, epoch, key):
            return float(torch.rand(()))

    drawn = {
        draw(seed, epoch, key) for seed in (0, 1, 11) for epoch in (0, 1, 11) for key in ("a", "b", "1/a")
    }
    assert len(drawn) == 27
    assert draw(1, 2, "b\udcff") != draw(1, 2, "b")  # a file name that is not UTF-8


def test_noise_is_the_same_on_every_machine() -> None:
    with noise_from(1, 2, "a/b.jpg"):
        drawn = torch.randint(10**6, (3,)).tolist()
    generator = torch.Generator().manual_seed(generator_seed(1, 2, "a/b.jpg"))
    assert drawn == torch.randint(10**6, (3,), generator=generator).tolist()
    digest = hashlib.sha256(b"1/2/a/b.jpg").digest()
    assert generator_seed(1, 2, "a/b.jpg") == int.from_bytes(digest[:7], "little") == 27969678188514425


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_stay_untouched(workers: int) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    list(live(workers=workers).batches(epoch=0))
    encode_items(ITEMS, IMAGES, TRANSFORM, encode, CPU, workers=workers, noise=(0, 0))
    encode_items(ITEMS, IMAGES, TRANSFORM_TEST, encode, CPU, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == before[2]


def test_the_global_state_comes_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), noise_from(0, 0, "a"):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


# order


@given(
    count=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 300),
)
def test_an_epoch_sees_every_image_at_most_once(count: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_order(count, batch_size, seed, epoch)
    seen = [index for batch in batches for index in batch]
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(count))
    if count < batch_size:  # the only batch stays, incomplete
        assert [len(batch) for batch in batches] == [count]
    else:
        assert [len(batch) for batch in batches] == [batch_size] * (count // batch_size)


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(epoch_order(20, 20, seed, epoch)[0]) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert epoch_order(20, 4, 1, 2) == epoch_order(20, 4, 1, 2)


# batches


def test_stored_views_equal_live_crops() -> None:
    epochs, seed = 3, 3
    labels = torch.tensor([item.label for item in ITEMS])
    stored = StoredBatches(views(seed, epochs), labels, 4, seed)
    for epoch in range(epochs):
        pairs = list(zip(stored.batches(epoch), live(4, seed).batches(epoch), strict=True))
        assert len(pairs) == stored.steps_per_epoch() == live(4, seed).steps_per_epoch() == 2
        assert all(same(a, b) for a, b in pairs)
    one, again = next(stored.batches(0)), next(live(4, seed).batches(epochs))
    assert not torch.equal(one.images, again.images)


def test_stored_views_go_round() -> None:
    features = torch.arange(2 * 6, dtype=torch.float32).reshape(2, 6, 1)
    stored = StoredBatches(features, torch.arange(6), 6, seed=0)
    for epoch in range(5):
        (batch,) = stored.batches(epoch)
        assert torch.equal(batch.images[:, 0], batch.labels + 6 * (epoch % 2))


def sources() -> Iterator[tuple[str, Callable[[int, Share], StoredBatches | LiveBatches]]]:
    labels = torch.tensor([item.label for item in ITEMS])
    yield "stored", lambda size, share: StoredBatches(views(3, 1), labels, size, 3, share)
    yield "live", lambda size, share: live(size, 3, share=share)


@pytest.mark.parametrize(("kind", "make"), list(sources()), ids=["stored", "live"])
@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [2, 4, 32])
def test_shares_put_together_are_the_batch(
    kind: str, make: Callable[[int, Share], StoredBatches | LiveBatches], processes: int, batch_size: int
) -> None:
    whole = list(make(batch_size, Share()).batches(0))
    shares = [list(make(batch_size, Share(rank, processes)).batches(0)) for rank in range(processes)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch.size == len(batch.labels) == min(batch_size, len(ITEMS))
        assert sum(len(part.labels) for part in parts) == batch.size
        for rank, part in enumerate(parts):
            assert part.size == batch.size
            assert part.images.shape == (len(part.labels), batch.images.shape[1])
            assert torch.equal(part.images, batch.images[rank::processes])
            assert torch.equal(part.labels, batch.labels[rank::processes])


@pytest.mark.parametrize(("kind", "make"), list(sources()), ids=["stored", "live"])
def test_an_epoch_goes_on_where_it_stopped(
    kind: str, make: Callable[[int, Share], StoredBatches | LiveBatches]
) -> None:
    whole = list(make(3, Share()).batches(0))
    rest = list(make(3, Share()).batches(0, start=2))
    assert len(whole) == 3 and len(rest) == 1 and same(whole[2], rest[0])
    assert list(make(3, Share()).batches(0, start=3)) == []


def test_labels_belong_to_their_images() -> None:
    plain = {tuple(row.tolist()): item.label for row, item in zip(views(3, 1)[0], ITEMS, strict=True)}
    for batch in live().batches(0):
        for row, label in zip(batch.images, batch.labels, strict=True):
            assert plain[tuple(row.tolist())] == label


# encoding


def test_items_are_encoded_in_order_whatever_the_batches() -> None:
    expected = torch.stack([encode(TRANSFORM_TEST(IMAGES.load(i.key))[None])[0] for i in ITEMS])
    for batch_size in (1, 4, 11, 100):
        done: list[int] = []
        features = encode_items(ITEMS, IMAGES, TRANSFORM_TEST, encode, CPU, batch_size, progress=done.append)
        assert torch.equal(features, expected)
        assert sum(done) == len(ITEMS) and len(done) == -(-len(ITEMS) // batch_size)


def TRANSFORM_TEST(image: Image.Image) -> Tensor:
    pixels = np.asarray(image.resize((16, 16))).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy()).float()


def test_encoded_features_are_float32_and_hold_no_graph() -> None:
    weight = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    features = encode_items(
        ITEMS, IMAGES, TRANSFORM_TEST, lambda images: encode(images).bfloat16() * weight, CPU
    )
    assert features.dtype == torch.float32 and not features.requires_grad


def test_nothing_to_encode() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        encode_items((), IMAGES, TRANSFORM, encode, CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_one_sentence_from_workers_too(workers: int, tmp_path: Path) -> None:
    for i in range(4):
        IMAGES.load(str(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:300])
    items = [Item(f"{i}.png", i) for i in range(4)]
    files = FileImages(tmp_path)
    batches = LiveBatches(items, files, TRANSFORM, encode, CPU, 2, seed=0, workers=workers)
    for run in (
        lambda: list(batches.batches(0)),
        lambda: encode_items(items, files, TRANSFORM, encode, CPU, 2, workers),
    ):
        with pytest.raises(UserError) as caught:
            run()
        message = str(caught.value)
        assert message.startswith(f"Expected an image at {tmp_path / '2.png'}, but it can't be decoded")
        assert "\n" not in message and "Traceback" not in message
