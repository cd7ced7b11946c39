"""Training batches: the batch is global, every process takes its share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cma_tune.data.dataset import ImageSource
from cma_tune.data.images import ItemImages, Transform, generator_seed
from cma_tune.data.splits import Item
from cma_tune.errors import UserError

Encode = Callable[[Tensor], Tensor]
"""Images ``[B, 3, H, W]`` → features ``[B, D]``, on the device of the run."""


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch.

    Attributes:
        images: features ``[b, D]``, or images ``[b, 3, H, W]`` for learners that encode them.
        labels: ``[b]``.
        size: images of the whole batch.
    """

    images: Tensor
    labels: Tensor
    size: int


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: every `processes`-th image from its `rank` on."""

    rank: int = 0
    processes: int = 1

    def of(self, indices: Sequence[int]) -> list[int]:
        """This process's indices."""
        return list(indices[self.rank :: self.processes])


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every batch of an epoch, the same for any number of processes.

    An incomplete last batch is dropped unless it is the only one (the reference's data manager).
    """
    generator = torch.Generator().manual_seed(generator_seed("order", seed, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


class TrainBatches(Protocol):
    """Training data of a run."""

    def steps_per_epoch(self) -> int:
        """Number of batches in every epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from number `start` on."""


@dataclass(frozen=True)
class StoredBatches:
    """Batches from stored features ``[K, N, D]``: epoch e sees view e mod K of every image.

    Features and labels ``[N]`` are on the device of the run.
    """

    features: Tensor
    labels: Tensor
    batch_size: int
    seed: int
    share: Share = Share()

    def steps_per_epoch(self) -> int:
        """See `TrainBatches`."""
        return len(epoch_order(len(self.labels), self.batch_size, self.seed, 0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See `TrainBatches`."""
        view = self.features[epoch % len(self.features)]
        for indices in epoch_order(len(self.labels), self.batch_size, self.seed, epoch)[start:]:
            mine = torch.tensor(self.share.of(indices), dtype=torch.long, device=view.device)
            yield Batch(view[mine], self.labels[mine], len(indices))


@dataclass(frozen=True)
class LiveBatches:
    """Batches from images that are augmented and encoded anew in every epoch, as the reference does.

    Without `encode` they hold the images themselves.
    """

    items: Sequence[Item]
    images: ImageSource
    transform: Transform
    encode: Encode | None
    device: torch.device
    batch_size: int
    seed: int
    workers: int = 0
    share: Share = Share()

    def steps_per_epoch(self) -> int:
        """See `TrainBatches`."""
        return len(epoch_order(len(self.items), self.batch_size, self.seed, 0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See `TrainBatches`."""
        order = epoch_order(len(self.items), self.batch_size, self.seed, epoch)[start:]
        shares = [self.share.of(indices) for indices in order]
        # A process without an image in a batch still loads one: its empty [0, …] needs the right shape.
        encoded = [share or indices[:1] for share, indices in zip(shares, order, strict=True)]
        dataset = ItemImages(self.items, self.images, self.transform, self.seed, epoch)
        loaded = _load(dataset, encoded, self.workers, self.device)
        for indices, share, (images, labels) in zip(order, shares, loaded, strict=True):
            images = images.to(self.device, non_blocking=True)
            given = images if self.encode is None else self.encode(images)
            labels = labels.to(self.device, non_blocking=True)
            yield Batch(given[: len(share)], labels[: len(share)], len(indices))


class _Caught(TorchDataset["tuple[Tensor, int, int] | UserError"]):
    """A user's mistake as a value: raised in a worker, it would come wrapped in the worker's traceback."""

    def __init__(self, dataset: ItemImages) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | UserError:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collate(samples: Sequence[tuple[Tensor, int, int] | UserError]) -> tuple[Tensor, Tensor] | UserError:
    """Images ``[b, 3, H, W]`` and labels ``[b]``, or the first mistake among them."""
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels, dtype=torch.long)


def _load(
    dataset: ItemImages, batches: Sequence[Sequence[int]], workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``[b, 3, H, W]`` and labels ``[b]`` of every batch of indices, on the CPU."""
    loader: DataLoader[tuple[Tensor, int, int] | UserError] = DataLoader(
        _Caught(dataset),
        batch_sampler=[list(indices) for indices in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else the loader draws its workers' seeds from the global generator
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def encode_items(
    items: Sequence[Item],
    images: ImageSource,
    transform: Transform,
    encode: Encode,
    device: torch.device,
    batch_size: int = 100,
    workers: int = 0,
    noise: tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Encode items in order: features ``[N, D]``, float32, on the CPU.

    Args:
        noise: (seed, epoch) of a random transform, None for a transform without noise.
        progress: called with the number of images after every batch.

    Raises:
        ValueError: there are no items.
        UserError: an image is missing or can't be decoded.
    """
    if not items:
        raise ValueError("Expected at least one image to encode, got none.")
    seed, epoch = noise if noise is not None else (0, None)
    batches = [
        range(start, min(start + batch_size, len(items))) for start in range(0, len(items), batch_size)
    ]
    parts = []
    for batch, _ in _load(ItemImages(items, images, transform, seed, epoch), batches, workers, device):
        parts.append(encode(batch.to(device, non_blocking=True)).detach().float().cpu())
        if progress is not None:
            progress(len(batch))
    return torch.cat(parts)
