"""Images whose prediction learning changed, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cma_tune.data.dataset import ImageSource
from cma_tune.inspection.figures import examples
from cma_tune.inspection.outputs import Part
from cma_tune.inspection.pictures import short
from cma_tune.report.drawing import COLORS, bare_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 4
SIDE = 224
"""Pixels that an image is scaled down to."""


def changes_picture(part: Part, images: ImageSource, count: int) -> Figure | None:
    """At most `count` images that are right after learning alone, then as many that were right before alone.

    Returns:
        The picture, None where there is neither.

    Raises:
        UserError: an image can't be read.
    """
    gained, lost = examples(part, count)
    blocks = [
        (f"gained: wrong before, right after ({_number(part, gained=True)} images)", gained),
        (f"lost: right before, wrong after ({_number(part, gained=False)} images)", lost),
    ]
    blocks = [(title, indices) for title, indices in blocks if indices]
    if not blocks:
        return None
    rows = [-(-len(indices) // COLUMNS) for _, indices in blocks]
    figure = bare_figure(COLUMNS * 2.4, sum(rows) * 2.9 + 0.4 * len(blocks))
    parts = figure.subfigures(len(blocks), 1, height_ratios=rows, squeeze=False)[:, 0]
    for place, (title, indices) in zip(parts, blocks, strict=True):
        _draw_block(place, title, indices, part, images)
    return figure


def _number(part: Part, gained: bool) -> int:
    changed = part.before.correct ^ part.after.correct
    return int((changed & (part.after.correct == gained)).sum())


def _draw_block(
    place: SubFigure, title: str, indices: Sequence[int], part: Part, images: ImageSource
) -> None:
    place.suptitle(title, fontsize=11, fontweight="bold")
    panels = place.subplots(-(-len(indices) // COLUMNS), COLUMNS, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, indices, strict=False):
        _draw_image(axes, index, part, images)


def _draw_image(axes: Axes, index: int, part: Part, images: ImageSource) -> None:
    item, before, after = part.items[index], part.before, part.after
    image = images.load(item.key)
    image.thumbnail((SIDE, SIDE))
    axes.imshow(image)
    names = part.class_names
    lines = [("true", names[item.label], "black")]
    for when, outputs in (("before", before), ("after", after)):
        color = COLORS[2] if outputs.correct[index] else COLORS[1]
        said = f"{names[int(outputs.predicted[index])]}"
        lines.append((when, f"{short(said, 18)} {100 * float(outputs.confidence[index]):.0f} %", color))
    for number, (when, text, color) in enumerate(reversed(lines)):
        axes.text(
            0,
            1.03 + 0.11 * number,
            f"{when}: {short(text, 26)}",
            transform=axes.transAxes,
            color=color,
            fontsize=7.5,
        )
