"""The table of runs that `method_runs.py` writes and `method_page.py` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cma_tune.files import write_text

FIGURES = ("accuracy", "base_accuracy", "novel_accuracy", "harmonic_mean", "validation_accuracy", "ece")
COLUMNS = ("method", "protocol", "shots", "seed", "weight", "selected", "seconds", "peak_mib", *FIGURES)


@dataclass(frozen=True)
class Cell:
    """All seeds and λ of a method in a protocol at a number of shots."""

    method: str
    protocol: str
    shots: int


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        cell: where it belongs.
        seed, weight: of the run.
        selected: it stands for the λ that was chosen on validation images.
        seconds: of training.
        peak_mib: peak resident memory of the cell's process, in MiB; None where it did not run all of it.
        figures: those of `FIGURES` that the run has, in percent.
    """

    cell: Cell
    seed: int
    weight: float
    selected: bool
    seconds: float
    peak_mib: float | None
    figures: dict[str, float]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace the table by these rows, in order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda one: (one.cell.protocol, one.cell.method, one.cell.shots, one.seed)):
        cell, peak = row.cell, "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        figures = [f"{row.figures[name]:.4f}" if name in row.figures else "" for name in FIGURES]
        place = [cell.method, cell.protocol, cell.shots, row.seed, f"{row.weight:g}", int(row.selected)]
        writer.writerow([*place, f"{row.seconds:.2f}", peak, *figures])
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """The rows of a table; none where there is no table yet."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        return [_row(line) for line in csv.DictReader(handle)]


def _row(line: dict[str, str]) -> Row:
    return Row(
        Cell(line["method"], line["protocol"], int(line["shots"])),
        int(line["seed"]),
        float(line["weight"]),
        line["selected"] == "1",
        float(line["seconds"]),
        float(line["peak_mib"]) if line["peak_mib"] else None,
        {name: float(line[name]) for name in FIGURES if line[name]},
    )
