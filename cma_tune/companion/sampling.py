"""Which images are labelled, and which go into a step: functions of the seed, never of the processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cma_tune.data.images import generator_seed
from cma_tune.errors import UserError


def balanced_labels(labels: Tensor, classes: int, count: int, seed: int) -> list[int]:
    """Positions of `count` images, as many of every class, drawn without replacement.

    Args:
        labels: of the images, ``[N]``.
        classes: C.
        count: how many in all; 0 is every image.
        seed: of the draw.

    Returns:
        Ascending positions.

    Raises:
        UserError: `count` is no multiple of C, or a class has too few images.
    """
    if count == 0:
        return list(range(len(labels)))
    if count % classes:
        near = max(classes, round(count / classes) * classes)
        raise UserError(
            f"Expected --labels as a multiple of the {classes} classes, got {count}; use {near}, "
            "or 0 for all labels."
        )
    chosen: list[int] = []
    for label in range(classes):
        rows = torch.nonzero(labels == label)[:, 0]
        if len(rows) < count // classes:
            raise UserError(
                f"Expected at least {count // classes} images of class {label} for {count} labels, "
                f"got {len(rows)}; use fewer --labels."
            )
        generator = torch.Generator().manual_seed(generator_seed("labels", seed, label))
        order = torch.randperm(len(rows), generator=generator)[: count // classes]
        chosen += rows[order].tolist()
    return sorted(chosen)


def fold_labels(folds: Sequence[Sequence[int]], fold: int, dataset: str) -> list[int]:
    """Positions of one of the published folds.

    Raises:
        UserError: there is no such fold.
    """
    if not 0 <= fold < len(folds):
        if not folds:
            raise UserError(
                f"Expected no --fold for {dataset}, which has none here, got {fold}; leave it out."
            )
        raise UserError(
            f"Expected a --fold of {dataset} from 0 to {len(folds) - 1}, got {fold}; choose one of these."
        )
    return sorted(folds[fold])


class Stream:
    """An endless sequence of positions: one random order of all images after another.

    Every image comes once before any comes twice, and a step can be asked for by its number alone.

    Args:
        count: images, N.
        batch_size: positions a step, also beyond N.
        seed, name: of the orders.
    """

    def __init__(self, count: int, batch_size: int, seed: int, name: str) -> None:
        self.count = count
        self.batch_size = batch_size
        self._seed = seed
        self._name = name
        self._orders: dict[int, Tensor] = {}

    def step(self, step: int) -> Tensor:
        """Positions of the step's batch, ``[batch_size]``, int64."""
        start, left = step * self.batch_size, self.batch_size
        parts = [torch.empty(0, dtype=torch.int64)]
        while left:
            cycle, offset = divmod(start, self.count)
            part = self._order(cycle)[offset : offset + left]
            parts.append(part)
            start += len(part)
            left -= len(part)
        self._orders = {cycle: order for cycle, order in self._orders.items() if cycle >= start // self.count}
        return torch.cat(parts)

    def _order(self, cycle: int) -> Tensor:
        if cycle not in self._orders:
            generator = torch.Generator().manual_seed(generator_seed(self._name, self._seed, cycle))
            self._orders[cycle] = torch.randperm(self.count, generator=generator)
        return self._orders[cycle]
