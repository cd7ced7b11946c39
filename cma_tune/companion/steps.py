"""The images of every training step: this process's share of a global batch, augmented and normalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cma_tune.companion.augmentation import Augment, normalize
from cma_tune.companion.image_sets import ImageSet
from cma_tune.companion.sampling import Stream
from cma_tune.data.batches import Share

LABELLED, WEAK, STRONG = 0, 1, 2
"""Views of a step; each has noise of its own."""


@dataclass(frozen=True)
class Step:
    """One step's data.

    Attributes:
        images: this process's share of labelled, weak and strong views one after another, normalised,
            ``[b, 3, H, W]``, float32.
        order: where each row of all processes' outputs, in the order of ranks, belongs in the global batch
            (all labelled, all weak, all strong), ``[B]``.
        labels: of all labelled images, on every process, ``[B_l]``.
        indices: places of all unlabelled images in the unlabelled pool, on every process, ``[B_u]``.
        sizes: numbers of labelled, weak and strong views in the global batch.
    """

    images: Tensor
    order: Tensor
    labels: Tensor
    indices: Tensor
    sizes: tuple[int, int, int]


class Steps:
    """Gives the data of a step by its number: it depends on the seed, not on what came before.

    Args:
        data: the images.
        labelled: positions of the labelled images in its train part.
        batch_size: labelled images a step, over all processes.
        unlabelled: unlabelled images a step; 0 takes none.
        strong: unlabelled images also in a strong view.
        seed: of order and noise.
        flip: probability of a horizontal flip.
        share: which rows are this process's.
        device: of the results.
    """

    def __init__(
        self,
        data: ImageSet,
        labelled: list[int],
        batch_size: int,
        unlabelled: int,
        strong: bool,
        seed: int,
        flip: float,
        share: Share,
        device: torch.device,
    ) -> None:
        self._data = data
        self._labelled = torch.tensor(labelled, dtype=torch.int64)
        self._labelled_stream = Stream(len(labelled), batch_size, seed, "labelled")
        # The labelled images stay among the unlabelled ones.
        self.pool_size = len(data.train) + (len(data.extra) if data.extra is not None else 0)
        self._unlabelled_stream = Stream(self.pool_size, unlabelled, seed, "unlabelled")
        self._strong = strong
        self._share = share
        self._device = device
        self._weak = Augment("weak", seed, flip=flip)
        self._hard = Augment("strong", seed, flip=flip)
        sizes = (batch_size, unlabelled, unlabelled if strong else 0)
        starts = (0, batch_size, batch_size + unlabelled)
        self._sizes = sizes
        self._order = torch.tensor(
            [
                row
                for rank in range(share.processes)
                for start, size in zip(starts, sizes, strict=True)
                for row in Share(rank, share.processes).of(range(start, start + size))
            ]
        )

    def step(self, number: int) -> Step:
        """The data of step `number`, from 0."""
        positions = self._labelled[self._labelled_stream.step(number)]
        indices = self._unlabelled_stream.step(number)
        parts = [self._view(self._data.train.images[self._mine(positions)], self._weak, number, LABELLED)]
        if self._sizes[1]:
            raw = self._unlabelled(self._mine(indices))
            parts.append(self._view(raw, self._weak, number, WEAK))
            if self._strong:
                parts.append(self._view(raw, self._hard, number, STRONG))
        return Step(
            torch.cat(parts),
            self._order.to(self._device),
            self._data.train.labels[positions].to(self._device),
            indices.to(self._device),
            self._sizes,
        )

    def _mine(self, rows: Tensor) -> Tensor:
        return rows[self._share.rank :: self._share.processes]

    def _view(self, images: Tensor, augment: Augment, number: int, view: int) -> Tensor:
        slots = self._mine(torch.arange(self._sizes[view]))
        noisy = augment(images.to(self._device), number, slots.to(self._device), view)
        return normalize(noisy, self._data.mean, self._data.std)

    def _unlabelled(self, indices: Tensor) -> Tensor:
        """Rows of train and extra images as one pool."""
        train, extra = self._data.train.images, self._data.extra
        if extra is None:
            return train[indices]
        images = torch.empty(len(indices), *train.shape[1:], dtype=torch.uint8)
        own = indices < len(train)
        images[own], images[~own] = train[indices[own]], extra[indices[~own] - len(train)]
        return images
