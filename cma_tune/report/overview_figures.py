"""Figures over datasets: average few-shot curves, novel against base accuracy, the similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cma_tune.files import slug
from cma_tune.report.cells import Cell, Table
from cma_tune.report.drawing import (
    COLORS,
    GREY,
    MARKERS,
    STYLES,
    draw_line,
    finish,
    new_figure,
    shot_axis,
    wrapped,
)
from cma_tune.report.groups import shots_text
from cma_tune.report.methods import Method, Place, average, places

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Scatter:
    """Two figures against each other: a point for each dataset, a large one for their mean."""

    kind: str
    x: str
    y: str
    x_label: str
    y_label: str
    title: str


_SCATTERS = {
    "base-to-novel": (
        _Scatter(
            *("base_novel", "base_accuracy", "novel_accuracy", "base accuracy (%)", "novel accuracy (%)"),
            "Novel against base accuracy",
        ),
        _Scatter(
            *("similarity", "novel_class_similarity", "novel_modal_similarity"),
            *("class similarity (cosine)", "modal similarity (cosine)", "Similarities of novel classes"),
        ),
    ),
    "few-shot": (
        _Scatter(
            *("similarity", "class_similarity", "modal_similarity"),
            *("class similarity (cosine)", "modal similarity (cosine)", "Similarities"),
        ),
    ),
}


def overview_figures(tables: Sequence[Table]) -> list[tuple[str, Figure]]:
    """Names and figures: curves averaged from two datasets on, and scatters of them.

    Curves are averaged over datasets that all of their methods have at all shots of the figure, so that no
    line mixes other datasets than its neighbours. Methods with too few datasets are left out of them, and
    named below. Scatters show the largest number of shots.
    """
    drawn: list[tuple[str, Figure]] = []
    for place in places(tables):
        if place.protocol == "few-shot" and (figure := _average_curves(place)) is not None:
            drawn.append((f"few_shot-average-{slug(place.backbone)}.png", figure))
        for scatter in _SCATTERS[place.protocol]:
            if place.shots and (figure := _scatter(place, scatter)) is not None:
                protocol = "" if scatter.kind == "base_novel" else f"-{place.protocol.replace('-', '_')}"
                drawn.append((f"{scatter.kind}{protocol}-{slug(place.backbone)}.png", figure))
    return drawn


def _average_curves(place: Place) -> Figure | None:
    averaged, common = _averaged(place)
    if len(common) < 2:
        return None
    figure, (axes,) = new_figure(1, -(-len(place.methods) // 2))
    for number, method in enumerate(place.zero_shot):
        if cells := _cells(method, common, 0, "accuracy"):
            style = STYLES[(number + 1) % len(STYLES)]
            axes.axhline(average(cells).mean, color=GREY, linestyle=style, linewidth=1.3, label=method.name)
    seeds: set[int] = set()
    step = min(0.05, 0.25 / len(averaged))  # side by side, or error bars would hide one another
    for position, method in enumerate(averaged):
        means = [average(_cells(method, common, shots, "accuracy")) for shots in _shots(method)]
        seeds |= {len(mean.values) for mean in means}
        shift = 2 ** (step * (position - (len(averaged) - 1) / 2))
        number = place.learned.index(method)  # its colour in the scatters
        draw_line(axes, [mean.shots * shift for mean in means], means, number, wrapped(method.name, 44))
    shot_axis(axes, place.shots)
    title = f"Few-shot: average over {len(common)} datasets, backbone {place.backbone}"
    bars = "one seed: no intervals" if seeds == {1} else "error bars: 95 % interval of the average over seeds"
    without = [method.name for method in place.learned if method not in averaged]
    if without:
        more = f" and {len(without) - 2} more" if len(without) > 2 else ""
        bars += "\n" + wrapped(f"left out, not on all datasets: {'; '.join(without[:2])}{more}", 90)
    finish(figure, [axes], title, bars, 2)
    return figure


def _averaged(place: Place) -> tuple[list[Method], list[str]]:
    """Methods and datasets of the average: those that together show the most, at least two of each.

    Methods are added one by one, each the one that leaves the most datasets to all. Where the last ones would
    take away more than they bring, a λ that ran on one dataset for example, they are left out.
    """
    rest = {
        id(method): (method, [d for d in place.datasets if _has_all(method, d)]) for method in place.learned
    }
    methods: list[Method] = []
    common = list(place.datasets)
    best: tuple[list[Method], list[str]] = ([], [])
    while rest:
        left = {key: [d for d in common if d in datasets] for key, (_, datasets) in rest.items()}
        key = max(left, key=lambda one: len(left[one]))  # of several, the first in the order of the tables
        methods, common = [*methods, rest.pop(key)[0]], left[key]
        more = len(methods) * len(common) >= len(best[0]) * len(best[1])
        if len(common) >= 2 and (more or len(methods) <= 2):
            best = methods, common
    return [method for method in place.learned if method in best[0]], best[1]


def _has_all(method: Method, dataset: str) -> bool:
    return all(method.cell(dataset, shots, "accuracy") for shots in _shots(method))


def _shots(method: Method) -> list[int]:
    return sorted({shots for _, shots, metric in method.cells if metric == "accuracy"})


def _cells(method: Method, datasets: Sequence[str], shots: int, metric: str) -> list[Cell]:
    """The figure on all of the datasets, or nothing."""
    cells = [method.cell(dataset, shots, metric) for dataset in datasets]
    return [cell for cell in cells if cell] if all(cells) else []


def _scatter(place: Place, scatter: _Scatter) -> Figure | None:
    shots = place.shots[-1]
    points: list[tuple[Method, list[tuple[float, float]]]] = []
    for method in place.methods:
        pairs = [
            (x.mean, y.mean)
            for dataset in place.datasets
            if (x := method.cell(dataset, shots, scatter.x)) and (y := method.cell(dataset, shots, scatter.y))
        ]
        if pairs:
            points.append((method, pairs))
    if max((len(pairs) for method, pairs in points if method.learner != "zero_shot"), default=0) < 2:
        return None
    figure, (axes,) = new_figure(1, -(-len(points) // 2))
    for method, pairs in points:
        zero_shot = method.learner == "zero_shot"
        number = 0 if zero_shot else place.learned.index(method)  # the colours of the curves
        look: dict[str, Any] = {
            "color": GREY if zero_shot else COLORS[number % len(COLORS)],
            # Beyond the palette the sign changes, so that no two methods look the same.
            "marker": "x" if zero_shot else MARKERS[(number + number // len(COLORS)) % len(MARKERS)],
            "linestyle": "none",
        }
        across, up = ([pair[side] for pair in pairs] for side in (0, 1))
        axes.plot(across, up, markersize=4.5, alpha=0.45, **look)
        look |= {"markersize": 9, "zorder": 3, "label": wrapped(method.name, 44)}
        axes.plot(sum(across) / len(across), sum(up) / len(up), **look)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_xlabel(scatter.x_label)
    axes.set_ylabel(scatter.y_label)
    title = f"{scatter.title} at {shots_text(shots)}: backbone {place.backbone}"
    finish(figure, [axes], title, "small: each dataset; large: their mean", 2)
    return figure
