"""What tables are made of: figures over seeds, rows and tables, and what is said of the seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Literal

from cma_tune.report.groups import Group

BASE_TO_NOVEL = {"base_accuracy": "base", "novel_accuracy": "novel", "harmonic_mean": "H"}
AMONG_ALL = {f"{metric}_among_all": name for metric, name in BASE_TO_NOVEL.items()}
HALVES = {h: (base, novel) for base, novel, h in (tuple(BASE_TO_NOVEL), tuple(AMONG_ALL))}
"""H with what it is the harmonic mean of."""
Kind = Literal["accuracy", "alignment", "calibration"]


@dataclass(frozen=True)
class Cell:
    """One figure over seeds.

    Attributes:
        metric: key of the figure in a record.
        shots: training images per class, 0 for zero-shot.
        values: one a seed; percent for accuracies, a cosine for similarities, percentage points for the ECE.
        seeds: of the values, in the same order.
        of_means: the figure made of means over seeds, where that is another than the mean of the values: H.
    """

    metric: str
    shots: int
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    of_means: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds; of H, see `of_means`."""
        return math.fsum(self.values) / len(self.values) if self.of_means is None else self.of_means

    @property
    def interval(self) -> float | None:
        """Half width of the 95 % interval, 1.96·population standard deviation/√n; None for one seed."""
        if len(self.values) < 2:
            return None
        from cma_tune.metrics import confidence_interval_95  # loads torch

        return confidence_interval_95(self.values)


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: method with λ, and the settings that tell it from other rows.
        group: the runs behind it.
        cells: one a column, None where there is no run.
    """

    name: str
    group: Group
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: what it shows, with unit.
        kind: accuracy (percent; higher is better), alignment (cosines) or calibration (points
            between confidence and accuracy; lower is better).
        protocol: few-shot (with zero-shot beside it), base-to-novel, generalised base-to-novel, cross-dataset
            or domain-generalization.
        dataset: name of the dataset.
        backbone: name of the backbone.
        shots: of all rows, or None where they vary.
        columns: headers.
        rows: in the order of methods and λ.
        notes: sentences on seeds and settings.
        seeds: the usual number of seeds of a cell; 0 if nothing was learned.
        targets: of a transfer, where other tables are of the same source tested on others; else empty.
    """

    title: str
    kind: Kind
    protocol: str
    dataset: str
    backbone: str
    shots: int | None
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    seeds: int
    targets: tuple[str, ...] = ()


def h_of(base: Cell, novel: Cell) -> float:
    """The harmonic mean of two means."""
    return harmonic_mean([base.mean, novel.mean])


def seed_notes(cells: Sequence[Cell]) -> tuple[int, list[str]]:
    """The usual number of seeds, and what to say of it."""
    if not cells:
        return 0, []
    counts = Counter(len(cell.values) for cell in cells)
    usual = max(counts, key=lambda count: (counts[count], count))
    sets = {cell.seeds for cell in cells if len(cell.seeds) == usual}
    which = f" ({', '.join(map(str, next(iter(sets))))})" if len(sets) == 1 else ""
    number = f"{usual} seed{'' if usual == 1 else 's'}{which}"
    unless = "" if len(counts) == 1 else ", where a cell does not give another number n"
    if max(counts) == 1:
        notes = [f"One seed{which}: no interval."]
    else:
        notes = [f"Mean ± 95 % interval (1.96·population standard deviation/√n) over {number}{unless}."]
    if len(sets) > 1:
        listed = "; ".join(", ".join(map(str, seeds)) for seeds in sorted(sets))
        notes.append(f"Not every cell has the same seeds: {listed}.")
    return usual, notes
