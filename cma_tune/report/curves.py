"""Panels of curves with limits as lines, and of points in classes: what figures of the laboratory hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cma_tune.report.drawing import COLORS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = "value at collapse (theory)"

FEW = 25
"""Points up to which each has a marker."""


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        label: in the legend.
        points: (x, y).
        number: of its colour and marker.
        style: of the line; "" draws hollow markers alone.
    """

    label: str
    points: Sequence[tuple[float, float]]
    number: int
    style: str = "-"


@dataclass(frozen=True)
class Limit:
    """A horizontal line where theory has a value.

    Attributes:
        text: written beside it.
        value: its height; nan draws nothing.
        number: of its colour, that of the curves it belongs to.
    """

    text: str
    value: float
    number: int


@dataclass(frozen=True)
class Panel:
    """Curves over one axis.

    Attributes:
        title: above it.
        x_label, y_label: of the axes.
        curves: its lines.
        limits: of theory.
        log: the x axis is logarithmic.
        span: what the y axis covers at least, lest noise look large.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    limits: Sequence[Limit] = ()
    log: bool = False
    span: float = 0.0


@dataclass(frozen=True)
class Scatter:
    """Points in the plane, by class.

    Attributes:
        title: above it.
        points: (x, y).
        labels: class of each point.
        class_names: written above their points, if there are not too many.
    """

    title: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[int]
    class_names: Sequence[str]


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw all curves and limits."""
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.log:
        axes.set_xscale("log")
    for curve in panel.curves:
        _draw_curve(axes, curve)
    drawn = sorted((limit for limit in panel.limits if math.isfinite(limit.value)), key=lambda one: one.value)
    for place, limit in enumerate(drawn):
        _draw_limit(axes, limit, above=place == len(drawn) - 1)
    low, high = axes.get_ylim()
    missing = max(0.0, panel.span - (high - low))
    axes.set_ylim(low - missing / 2, high + missing / 2)
    if drawn:
        axes.plot([], [], color=GREY, linestyle=":", linewidth=1.4, label=LIMIT)  # one entry of the legend


def _draw_curve(axes: Axes, curve: Curve) -> None:
    color = COLORS[curve.number % len(COLORS)]
    look: dict[str, Any] = {"color": color, "label": curve.label, "linewidth": 1.6, "markersize": 4.5}
    if not curve.style:
        look |= {"markerfacecolor": "none", "markersize": 8, "linestyle": "none"}
    else:
        look |= {"linestyle": curve.style}
    marked = len(curve.points) <= FEW
    look |= {"marker": MARKERS[curve.number % len(MARKERS)]} if marked else {}
    axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], **look)


def _draw_limit(axes: Axes, limit: Limit, above: bool) -> None:
    color = COLORS[limit.number % len(COLORS)]
    axes.axhline(limit.value, color=color, linestyle=":", linewidth=1.4)
    axes.annotate(
        limit.text,
        (1.01, limit.value),  # outside, where no curve runs through it
        xycoords=axes.get_yaxis_transform(),
        va="bottom" if above else "top",
        fontsize=8,
        color=color,
    )


def draw_scatter(axes: Axes, scatter: Scatter) -> None:
    """Draw the points of every class in its own look, without axes: only who is near whom means anything."""
    axes.set_title(scatter.title, fontsize=10)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.margins(0.05, 0.1)  # so that the names above the points stay below the title
    classes = sorted(set(scatter.labels))
    for label in classes:
        own = [point for point, of in zip(scatter.points, scatter.labels, strict=True) if of == label]
        color, turn = COLORS[label % len(COLORS)], label // len(COLORS)
        marker = MARKERS[(label + turn) % len(MARKERS)]
        axes.plot(
            *zip(*own, strict=True), color=color, marker=marker, linestyle="none", markersize=3.5, alpha=0.6
        )
        if len(classes) <= 20:
            across, up = (sorted(side) for side in zip(*own, strict=True))
            # Nine of ten points lie below: a few strays don't carry the name away.
            axes.annotate(
                scatter.class_names[label],
                (across[len(own) // 2], up[len(own) * 9 // 10]),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
            )
