"""The tables that `method_runs.py` and `method_costs.py` write and `method_page.py` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cma_tune.files import write_text

FIGURES = ("accuracy", "base_accuracy", "novel_accuracy", "harmonic_mean", "validation_accuracy", "ece")
COLUMNS = ("method", "protocol", "shots", "seed", "weight", "selected", *FIGURES)
COSTS = ("method", "epochs", "seconds_an_epoch", "seconds_an_epoch_with_cma", "seconds_a_run", "peak_mib")


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
        figures: those of `FIGURES` that the run has, in percent.
    """

    cell: Cell
    seed: int
    weight: float
    selected: bool
    figures: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """What a method costs at 16 shots.

    Attributes:
        method: its name.
        epochs: how many times it goes through its training images; 0 for a method without training.
        seconds: of an epoch at λ = 0.
        penalised: of an epoch at λ > 0; None for a method without a loss.
        run: seconds of a whole run at λ = 0, with the making of the learner and the evaluation.
        peak_mib: peak resident memory of the process, in MiB.
    """

    method: str
    epochs: float
    seconds: float
    penalised: float | None
    run: float
    peak_mib: float


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace the table by these rows, in order."""
    lines = []
    for row in sorted(rows, key=lambda one: (one.cell.protocol, one.cell.method, one.cell.shots, one.seed)):
        cell = row.cell
        figures = [f"{row.figures[name]:.4f}" if name in row.figures else "" for name in FIGURES]
        place = [cell.method, cell.protocol, cell.shots, row.seed, f"{row.weight:g}", int(row.selected)]
        lines.append([*place, *figures])
    _write(path, COLUMNS, lines)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table; none where there is no table yet."""
    return [_row(line) for line in _read(path)]


def _row(line: dict[str, str]) -> Row:
    return Row(
        Cell(line["method"], line["protocol"], int(line["shots"])),
        int(line["seed"]),
        float(line["weight"]),
        line["selected"] == "1",
        {name: float(line[name]) for name in FIGURES if line[name]},
    )


def write_costs(path: Path, costs: Sequence[Cost]) -> None:
    """Replace the table by these costs, in order."""
    lines = [
        [
            one.method,
            f"{one.epochs:g}",
            f"{one.seconds:.5f}",
            "" if one.penalised is None else f"{one.penalised:.5f}",
            f"{one.run:.3f}",
            f"{one.peak_mib:.0f}",
        ]
        for one in costs
    ]
    _write(path, COSTS, lines)


def read_costs(path: Path) -> list[Cost]:
    """The costs of a table; none where there is no table yet."""
    return [
        Cost(
            name,
            float(epochs),
            float(seconds),
            float(penalised) if penalised else None,
            float(run),
            float(peak),
        )
        for name, epochs, seconds, penalised, run, peak in (
            [line[key] for key in COSTS] for line in _read(path)
        )
    ]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _write(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    write_text(path, text.getvalue())
