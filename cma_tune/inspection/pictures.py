"""Heat maps of similarity and confusion, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cma_tune.inspection.figures import BINS, confusion_matrix, most_confused, summary
from cma_tune.inspection.outputs import Outputs, Part
from cma_tune.metrics import reliability_bins
from cma_tune.report.drawing import COLORS, GREY, bare_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NAMED, NUMBERED = 32, 16
"""Classes up to which an axis has names, and cells have numbers."""
LONGEST = 22
"""Letters of a class name on an axis."""
BEFORE, AFTER = "before: zero-shot", "after learning"


def similarity_picture(part: Part) -> Figure:
    """Cosines between classes, and between classes' images and classes: before, after, and the difference.

    A class is what the method has for it: its text's features, or a classifier's row. Before and after have
    one scale in each row; the difference's has 0 in its middle. A class's cosine with itself is left out.
    """
    figure = bare_figure(18, 11)
    panels = figure.subplots(2, 3)
    sides = (part.before, part.after)
    rows = (
        (
            "class and other class",
            "cosine",
            [side.class_cosines.clone().fill_diagonal_(torch.nan) for side in sides],
        ),
        ("images (row) and class (column)", "mean cosine", [side.image_cosines for side in sides]),
    )
    for axes, (what, value, matrices) in zip(panels, rows, strict=True):
        known = torch.cat([matrix[matrix.isfinite()] for matrix in matrices])
        scale = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for one, matrix, when in zip(axes[:2], matrices, (BEFORE, AFTER), strict=True):
            drawn = _heat_map(one, matrix, part.class_names, f"{what}, {when}", scale)
        figure.colorbar(drawn, ax=list(axes[:2]), label=value, shrink=0.8)
        change = matrices[1] - matrices[0]
        most = float(change.abs().nan_to_num(0.0).max()) or 1.0
        drawn = _heat_map(
            axes[2], change, part.class_names, f"{what}, after less before", (-most, most), "RdBu_r"
        )
        figure.colorbar(drawn, ax=axes[2], label=f"difference of {value}", shrink=0.8)
    return figure


def confusion_picture(part: Part) -> Figure:
    """Shares of each true class's images by predicted class: before and after learning.

    With more classes than can be named, the whole matrix after learning, and beside it, named, the classes
    that are confused most.
    """
    figure = bare_figure(14, 6.8)
    panels = figure.subplots(1, 2)
    names = part.class_names
    before, after = confusion_matrix(part.before), confusion_matrix(part.after)
    if len(names) <= NAMED:
        for axes, counts, when in zip(panels, (before, after), (BEFORE, AFTER), strict=True):
            drawn = _confusion(axes, counts, counts.sum(dim=1), names, when)
    else:
        _confusion(panels[0], after, after.sum(dim=1), names, f"all {len(names)} classes, {AFTER}")
        worst = _most_confused_classes(part)
        chosen = [names[label] for label in worst]
        counts, totals = after[worst][:, worst], after.sum(dim=1)[worst]
        drawn = _confusion(panels[1], counts, totals, chosen, f"those confused most, {AFTER}")
    for axes in panels:
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    figure.colorbar(drawn, ax=list(panels), label="share of the true class's images (%)", shrink=0.8)
    return figure


def _most_confused_classes(part: Part, count: int = 20) -> list[int]:
    """Labels of at most so many classes of the most confused pairs, in the order of the labels."""
    labels: set[int] = set()
    places = {name: label for label, name in enumerate(part.class_names)}
    for pair in most_confused(part, count):
        both = labels | {places[pair.true], places[pair.predicted]}
        if len(both) > count:
            break
        labels = both
    return sorted(labels)


def _confusion(axes: Axes, counts: Tensor, totals: Tensor, names: Sequence[str], title: str) -> AxesImage:
    percent = 100 * counts.double() / totals[:, None]
    drawn = _heat_map(axes, percent, names, title, (0.0, 100.0), "Blues")
    if len(names) <= NAMED:
        size = 7 if len(names) <= NUMBERED else 5
        for row, column in counts.nonzero().tolist():
            color = "white" if percent[row, column] > 55 else "black"
            number = str(int(counts[row, column]))
            axes.text(column, row, number, ha="center", va="center", color=color, fontsize=size)
    return drawn


def _heat_map(
    axes: Axes,
    matrix: Tensor,
    names: Sequence[str],
    title: str,
    scale: tuple[float, float],
    colors: str = "cividis",
) -> AxesImage:
    axes.set_facecolor("#DDDDDD")  # where there is nothing
    drawn = axes.imshow(matrix.numpy(), cmap=colors, vmin=scale[0], vmax=scale[1], interpolation="nearest")
    axes.set_title(title, fontsize=10)
    if len(names) <= NAMED:
        size = 8 if len(names) <= NUMBERED else 6
        shown = [short(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), shown, fontsize=size)
    else:
        axes.set_xlabel("class, by its number")
        axes.set_ylabel("class, by its number")
    return drawn


def short(name: str, longest: int = LONGEST) -> str:
    """`name` in so many letters, its middle left out."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def reliability_picture(part: Part) -> Figure:
    """Accuracy against confidence in bins, before and after, over the share of images in each bin."""
    figure = bare_figure(9, 5.6)
    panels = figure.subplots(2, 2, height_ratios=[3, 1], sharex=True, sharey="row")
    for column, (outputs, when) in enumerate(((part.before, BEFORE), (part.after, AFTER))):
        _reliability(panels[0, column], panels[1, column], outputs, when)
    panels[0, 0].set_ylabel("accuracy (%)")
    panels[1, 0].set_ylabel("images (%)")
    panels[0, 0].legend(loc="upper left", frameon=False, fontsize=8.5)
    return figure


def _reliability(above: Axes, below: Axes, outputs: Outputs, when: str) -> None:
    found = reliability_bins(outputs.confidence, outputs.correct, BINS)
    filled = found.counts > 0
    width = 100 / BINS
    middles = (torch.arange(BINS) + 0.5) * width
    right, sure = 100 * found.accuracy[filled], 100 * found.confidence[filled]
    places = middles[filled].tolist()
    above.bar(places, right.tolist(), width, color=COLORS[4], edgecolor="white", label="accuracy of the bin")
    # Down from the bars where predictions are surer than right, up where they are less sure.
    gaps = (sure - right).tolist()
    above.bar(
        places, gaps, width * 0.5, right.tolist(), color=COLORS[1], alpha=0.55, label="to its confidence"
    )
    above.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
    figures = summary(outputs)
    above.set_title(
        f"{when}\nECE {figures['ece']:.1f}, accuracy {figures['accuracy']:.1f} %, "
        f"mean confidence {figures['confidence']:.1f} %",
        fontsize=10,
    )
    below.bar(middles.tolist(), (100 * found.counts / len(outputs.labels)).tolist(), width, color=GREY)
    below.set_xlabel("confidence (%)")
    above.set_xlim(0, 100)
    above.set_ylim(0, 100)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
