"""Training batches: the batch is global, every process takes its share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cma_tune.data.images import ItemImages, Transform
from cma_tune.data.sources import ImageSource
from cma_tune.data.splits import Item

Encode = Callable[[Tensor], Tensor]
"""Images ``[B, 3, H, W]`` → features ``[B, D]``, on the device of the run."""


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch: features ``[b, D]``, labels ``[b]``; `size` counts the whole batch."""

    image_features: Tensor
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
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
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
    """Batches from stored features ``[K, N, D]``: epoch e sees view e mod K of every image."""

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
    """Batches from images that are augmented and encoded anew in every epoch, as the reference does."""

    items: Sequence[Item]
    images: ImageSource
    transform: Transform
    encode: Encode
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
        dataset = ItemImages(self.items, self.images, self.transform, self.seed, epoch)
        shares = [self.share.of(indices) for indices in order]
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            dataset,
            batch_sampler=shares,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for indices, (images, labels) in zip(order, loader, strict=True):
            features = self.encode(images.to(self.device, non_blocking=True))
            yield Batch(features, labels.to(self.device, non_blocking=True), len(indices))


def _collate(samples: Sequence[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor]:
    """Images ``[b, 3, H, W]`` and labels ``[b]``; b is 0 where a batch has fewer images than there are processes."""
    if not samples:
        return torch.zeros(0, 3, 1, 1), torch.zeros(0, dtype=torch.long)
    images, labels, _ = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels, dtype=torch.long)


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
    """Encode items in order: features ``[N, D]`` on the CPU.

    Args:
        noise: (seed, epoch) of a random transform, None for a transform without noise.
        progress: called with the number of images after every batch.
    """
    seed, epoch = noise if noise is not None else (0, None)
    dataset = ItemImages(items, images, transform, seed, epoch)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=_collate
    )
    parts = []
    for batch, _ in loader:
        parts.append(encode(batch.to(device, non_blocking=True)).float().cpu())
        if progress is not None:
            progress(len(batch))
    return torch.cat(parts)
