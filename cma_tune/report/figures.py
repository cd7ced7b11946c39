"""Few-shot curves and λ curves as PNG, from the same tables that are printed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cma_tune.config import slug
from cma_tune.files import write_atomically
from cma_tune.records import Record
from cma_tune.report.groups import learner_name, shots_text
from cma_tune.report.tables import BASE_TO_NOVEL, Cell, Row, Table, build_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, without the yellow that is lost on white; colour-blind readers can tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
STYLES = ("-", "--", ":", "-.")
DPI, WIDTH, HEIGHT = 150, 6.4, 4.2
"""Pixels per inch; inches of one panel. The legend below it adds to the height."""
GREY = "#666666"


def draw_figures(records: Iterable[Record], folder: Path) -> list[Path]:
    """Draw few-shot curves (accuracy against shots) and λ curves (base, novel, H against λ).

    One file for each dataset and backbone, for λ curves also for each number of shots, and none where there
    is a single λ. The λ are those of the runs: a λ chosen on validation images has no place on a λ curve.
    Error bars are 95 % intervals over seeds.

    Args:
        records: of zero-shot, few-shot and base-to-novel.
        folder: where the PNG files go; made if it is not there.

    Returns:
        Paths of the files.

    Raises:
        UserError: as `build_tables`.
    """
    paths = []
    for table in build_tables(records):
        if table.kind != "accuracy":
            continue
        name = f"{slug(table.dataset)}-{slug(table.backbone)}.png"
        if table.protocol == "few-shot":
            figure = _few_shot_figure(table)
            path = folder / f"few_shot-{name}"
        elif table.protocol == "base-to-novel" and (curves := _weight_curves(table)):
            figure = _weight_figure(table, curves)
            path = folder / f"weights-{table.shots}shots-{name}"
        else:
            continue
        write_atomically(path, partial(figure.savefig, format="png"))
        paths.append(path)
    return paths


def _new_figure(panels: int, legend_rows: int) -> tuple[Figure, list[Axes]]:
    """A figure of its own: nothing is registered with pyplot, and no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (WIDTH + (panels - 1) * 0.7 * WIDTH, HEIGHT + 0.22 * legend_rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def _few_shot_figure(table: Table) -> Figure:
    from matplotlib.ticker import FixedLocator, NullLocator

    learned = [row for row in table.rows if row.group.learner != "zero_shot"]
    references = [row for row in table.rows if row.group.learner == "zero_shot"]
    names = [_wrapped(row.name, 44) for row in table.rows]
    columns = 2 if max(len(row.name) for row in table.rows) > 14 else 4
    legend_rows = -(-sum(name.count("\n") + 1 for name in names) // columns)
    figure, (axes,) = _new_figure(1, legend_rows)
    for number, row in enumerate(references):
        cell = next(cell for cell in row.cells if cell)
        style = STYLES[(number + 1) % len(STYLES)]
        axes.axhline(cell.mean, color=GREY, linestyle=style, linewidth=1.3, label=_wrapped(row.name, 44))
    shots = sorted({cell.shots for row in learned for cell in row.cells if cell})
    axes.set_xscale("log", base=2)
    for number, row in enumerate(learned):
        cells = [cell for cell in row.cells if cell]
        # Points of the same shots stand beside each other, or their error bars would hide one another.
        step = min(0.05, 0.25 / len(learned))
        shift = 2 ** (step * (number - (len(learned) - 1) / 2))
        positions = [cell.shots * shift for cell in cells]
        _line(axes, positions, cells, number, _wrapped(row.name, 44))
    axes.set_xlim(shots[0] / 1.35, shots[-1] * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(shots))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shots, [str(number) for number in shots])
    axes.set_xlabel("training images per class (shots)")
    axes.set_ylabel("accuracy (%)")
    _finish(figure, axes, f"Few-shot: dataset {table.dataset}, backbone {table.backbone}", table, columns)
    return figure


def _weight_curves(table: Table) -> list[tuple[str, list[Row]]]:
    """Rows with a fixed λ by method and settings, for those with two λ at least."""
    fixed = [row for row in table.rows if row.group.weight is not None]
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in (row for row in fixed if row.group.weight):
        curves.setdefault((*_without_loss(row), str(_loss(row))), []).append(row)
    for row in (row for row in fixed if row.group.weight == 0):
        # Without the penalty its form means nothing, so λ = 0 starts the curve of every form.
        starts = [rows for key, rows in curves.items() if key[:-1] == _without_loss(row)]
        for rows in starts:
            rows.insert(0, row)
    return [(_curve_name(rows[-1]), rows) for rows in curves.values() if len(rows) > 1]


def _without_loss(row: Row) -> tuple[str, ...]:
    rest = sorted((key, value) for key, value in row.group.settings.items() if not key.startswith("loss."))
    return row.group.learner, str(rest), str(sorted(row.group.epochs.items()))


def _loss(row: Row) -> list[tuple[str, str]]:
    return sorted((key, value) for key, value in row.group.settings.items() if key.startswith("loss."))


def _curve_name(row: Row) -> str:
    name = learner_name(row.group.learner)
    return f"{name} ({row.group.variant})" if row.group.variant else name


def _weight_figure(table: Table, curves: Sequence[tuple[str, list[Row]]]) -> Figure:
    figure, panels = _new_figure(len(curves), 1)
    for axes, (name, rows) in zip(panels, curves, strict=True):
        for number, label in enumerate(BASE_TO_NOVEL.values()):
            points = [(row.group.weight or 0.0, cell) for row in rows if (cell := row.cells[number])]
            full = "harmonic mean (H)" if label == "H" else f"{label} classes"
            _line(axes, [weight for weight, _ in points], [cell for _, cell in points], number, full)
        axes.set_xlabel("weight λ of (1−λ)·CE + λ·CMA")
        if len(curves) > 1:
            axes.set_title(_wrapped(name, 40), fontsize=9)
    panels[0].set_ylabel("accuracy (%)")
    title = (
        f"Base-to-novel, {shots_text(table.shots or 0)}: dataset {table.dataset}, backbone {table.backbone}"
    )
    if len(curves) == 1:
        title += f", {curves[0][0]}"
    _finish(figure, panels[0], title, table, 3)
    return figure


def _line(axes: Axes, x: Sequence[float], cells: Sequence[Cell], number: int, label: str) -> None:
    axes.errorbar(
        x,
        [cell.mean for cell in cells],
        # A single seed has no interval, and so no bar: one of length 0 would claim that there is no spread.
        yerr=[math.nan if cell.interval is None else cell.interval for cell in cells],
        label=label,
        color=COLORS[number % len(COLORS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=STYLES[number // len(COLORS) % len(STYLES)],
        linewidth=1.6,
        markersize=5,
        elinewidth=1.0,
        capsize=2.5,
    )


def _finish(figure: Figure, axes: Axes, title: str, table: Table, columns: int) -> None:
    """Title, legend below everything, and what the error bars are."""
    figure.suptitle(_wrapped(title, 70), fontsize=11)
    handles: list[Any]
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        # Without its bars a handle shows how the line is dashed.
        [handle[0] if isinstance(handle, tuple) else handle for handle in handles],
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=3.2,
        title=_bars(table),
        title_fontsize=8.5,
    )


def _bars(table: Table) -> str:
    """What the error bars say."""
    learned = [row for row in table.rows if row.group.learner != "zero_shot"]
    counts = sorted({len(cell.values) for row in learned for cell in row.cells if cell})
    if counts == [1]:
        return "one seed: no intervals"
    over = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"error bars: 95 % interval over {over} seeds"


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width)
