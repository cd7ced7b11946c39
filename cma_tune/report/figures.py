"""Few-shot curves and λ curves as PNG, from the same tables that are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cma_tune.files import slug, write_atomically
from cma_tune.records import Record
from cma_tune.report.cells import BASE_TO_NOVEL, Cell, Row, Table
from cma_tune.report.drawing import GREY, STYLES, draw_line, finish, new_figure, shot_axis, wrapped
from cma_tune.report.groups import learner_name, shots_text
from cma_tune.report.overview_figures import overview_figures
from cma_tune.report.tables import build_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_figures(records: Iterable[Record], folder: Path) -> list[Path]:
    """Draw few-shot curves (accuracy against shots) and λ curves (accuracies against λ).

    One file for each dataset and backbone, for base-to-novel's λ curves (base, novel, H) also for each number
    of shots, and none where there is a single λ. Few-shot's λ curves, a line for each number of shots, need
    three λ at the same shots. The λ are those of the runs: a λ chosen on validation images has no place on a
    λ curve. Error bars are 95 % intervals over seeds. From two datasets on there are averages and
    scatters over them too, see `overview_figures`.

    Args:
        records: of zero-shot, few-shot and base-to-novel.
        folder: where the PNG files go; made if it is not there.

    Returns:
        Paths of the files.

    Raises:
        UserError: as `build_tables`.
    """
    drawn: list[tuple[str, Figure]] = []
    tables = build_tables(records)
    for table in tables:
        if table.kind != "accuracy" or table.protocol not in ("zero-shot", "few-shot", "base-to-novel"):
            continue
        name = f"{slug(table.dataset)}-{slug(table.backbone)}.png"
        few_shot = table.protocol == "few-shot"
        if few_shot:
            drawn.append((f"few_shot-{name}", _few_shot_figure(table)))
        if panels := _weight_panels(table):
            kind = "few_shot_weights" if few_shot else f"weights-{table.shots}shots"
            drawn.append((f"{kind}-{name}", _weight_figure(table, panels)))
    drawn = [*overview_figures(tables), *drawn]
    for name, figure in drawn:
        write_atomically(folder / name, partial(figure.savefig, format="png"))
    return [folder / name for name, _ in drawn]


def _few_shot_figure(table: Table) -> Figure:
    learned = [row for row in table.rows if row.group.learner != "zero_shot"]
    references = [row for row in table.rows if row.group.learner == "zero_shot"]
    names = [wrapped(row.name, 44) for row in table.rows]
    columns = 2 if max(len(row.name) for row in table.rows) > 14 else 4
    legend_rows = -(-sum(name.count("\n") + 1 for name in names) // columns)
    figure, (axes,) = new_figure(1, legend_rows)
    for number, row in enumerate(references):
        cell = next(cell for cell in row.cells if cell)
        style = STYLES[(number + 1) % len(STYLES)]
        axes.axhline(cell.mean, color=GREY, linestyle=style, linewidth=1.3, label=wrapped(row.name, 44))
    shots = sorted({cell.shots for row in learned for cell in row.cells if cell})
    for number, row in enumerate(learned):
        cells = [cell for cell in row.cells if cell]
        # Points of the same shots stand beside each other, or their error bars would hide one another.
        step = min(0.05, 0.25 / len(learned))
        shift = 2 ** (step * (number - (len(learned) - 1) / 2))
        positions = [cell.shots * shift for cell in cells]
        draw_line(axes, positions, cells, number, wrapped(row.name, 44))
    shot_axis(axes, shots)
    finish(
        figure, [axes], f"Few-shot: dataset {table.dataset}, backbone {table.backbone}", _bars(table), columns
    )
    return figure


@dataclass(frozen=True)
class _Line:
    """One line of a λ curve, from one column of the table: points are (λ, figure over seeds)."""

    label: str
    column: int
    points: list[tuple[float, Cell]]


def _weight_panels(table: Table) -> list[tuple[str, list[_Line]]]:
    """The λ curves of a table by method and settings: one panel each, with its lines."""
    if table.protocol == "base-to-novel":
        return [
            (
                name,
                [_Line(_metric_label(label), i, _points(rows, i)) for i, label in enumerate(table.columns)],
            )
            for name, rows in _weight_curves(table.rows, 2)
        ]
    panels: dict[str, list[_Line]] = {}
    for column, label in enumerate(table.columns):
        there = [row for row in table.rows if row.cells[column] is not None]
        for name, rows in _weight_curves(there, 3, column):
            panels.setdefault(name, []).append(_Line(label, column, _points(rows, column)))
    in_order = [_curve_name(row) for row in table.rows]
    return sorted(panels.items(), key=lambda panel: in_order.index(panel[0]))


def _metric_label(column: str) -> str:
    return "harmonic mean (H)" if column == BASE_TO_NOVEL["harmonic_mean"] else f"{column} classes"


def _points(rows: Sequence[Row], column: int) -> list[tuple[float, Cell]]:
    return [(row.group.weight or 0.0, cell) for row in rows if (cell := row.cells[column])]


def _weight_curves(rows: Sequence[Row], least: int, column: int | None = None) -> list[tuple[str, list[Row]]]:
    """Rows with a fixed λ by method and settings, for those with `least` λ.

    Epochs must agree too: all of them, or those for the shots of one column.
    """
    fixed = [row for row in rows if row.group.weight is not None]
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in (row for row in fixed if row.group.weight):
        curves.setdefault((*_without_loss(row, column), str(_loss(row))), []).append(row)
    for row in (row for row in fixed if row.group.weight == 0):
        # Without the penalty its form means nothing, so λ = 0 starts the curve of every form.
        starts = [several for key, several in curves.items() if key[:-1] == _without_loss(row, column)]
        for several in starts:
            several.insert(0, row)
    return [(_curve_name(several[-1]), several) for several in curves.values() if len(several) >= least]


def _without_loss(row: Row, column: int | None) -> tuple[str, ...]:
    rest = sorted((key, value) for key, value in row.group.settings.items() if not key.startswith("loss."))
    epochs = dict(row.group.epochs)
    if column is not None and (cell := row.cells[column]):
        epochs = {cell.shots: epochs.get(cell.shots, 0)}
    return row.group.learner, str(rest), str(sorted(epochs.items()))


def _loss(row: Row) -> list[tuple[str, str]]:
    return sorted((key, value) for key, value in row.group.settings.items() if key.startswith("loss."))


def _curve_name(row: Row) -> str:
    name = learner_name(row.group.learner)
    return f"{name} ({row.group.variant})" if row.group.variant else name


def _weight_figure(table: Table, panels: Sequence[tuple[str, list[_Line]]]) -> Figure:
    figure, all_axes = new_figure(len(panels), 1)
    columns = sorted({line.column for _, lines in panels for line in lines})
    for axes, (name, lines) in zip(all_axes, panels, strict=True):
        for line in lines:
            weights, cells = [weight for weight, _ in line.points], [cell for _, cell in line.points]
            draw_line(axes, weights, cells, columns.index(line.column), line.label)
        axes.set_xlabel("weight λ of (1−λ)·CE + λ·CMA")
        if len(panels) > 1:
            axes.set_title(wrapped(name, 40), fontsize=9)
    all_axes[0].set_ylabel("accuracy (%)")
    protocol = f"{table.protocol.capitalize()}" + (f", {shots_text(table.shots)}" if table.shots else "")
    title = f"{protocol}: dataset {table.dataset}, backbone {table.backbone}"
    if len(panels) == 1:
        title += f", {panels[0][0]}"
    finish(figure, all_axes, title, _bars(table), max(3, min(len(columns), 5)))
    return figure


def _bars(table: Table) -> str:
    """What the error bars say."""
    learned = [row for row in table.rows if row.group.learner != "zero_shot"]
    counts = sorted({len(cell.values) for row in learned for cell in row.cells if cell})
    if counts == [1]:
        return "one seed: no intervals"
    over = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"error bars: 95 % interval over {over} seeds"
