"""What all figures share: colours that everybody can tell apart, lines with intervals, title and legend."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cma_tune.report.cells import Cell

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


def bare_figure(width: float, height: float) -> Figure:
    """An empty figure of these inches: nothing is registered with pyplot, and no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(
    panels: int, legend_rows: int, rows: int = 1, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of panels.

    Args:
        panels: number of panels; places that are left over in the last row stay empty.
        legend_rows: lines of the legend below.
        rows: of panels.
        share_y: all panels have one scale.
    """
    columns = math.ceil(panels / rows)
    figure = bare_figure(WIDTH + (columns - 1) * 0.7 * WIDTH, rows * HEIGHT + 0.22 * legend_rows)
    axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for over in axes[panels:]:
        over.remove()
    axes = axes[:panels]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def draw_line(axes: Axes, x: Sequence[float], cells: Sequence[Cell], number: int, label: str) -> None:
    """The means with their intervals, in the look of this number."""
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


def shot_axis(axes: Axes, shots: Sequence[int]) -> None:
    """A logarithmic axis with a tick at every number of shots, and the accuracy's label."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlim(shots[0] / 1.35, shots[-1] * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(list(shots)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(shots), [str(number) for number in shots])
    axes.set_xlabel("training images per class (shots)")
    axes.set_ylabel("accuracy (%)")


def finish(
    figure: Figure, panels: Sequence[Axes], title: str, bars: str, columns: int, width: int = 70
) -> None:
    """Title in lines of `width` letters, legend below everything, and what `bars` says of the error bars."""
    figure.suptitle(wrapped(title, width), fontsize=11)
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        # Without its bars a handle shows how the line is dashed.
        [handle[0] if isinstance(handle, tuple) else handle for handle in handles.values()],
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=3.2,
        title=bars,
        title_fontsize=8.5,
    )


def wrapped(text: str, width: int) -> str:
    """`text` in lines of `width` letters."""
    return textwrap.fill(text, width)
