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
"""Pixels of an image."""
SIZE, LINE = 7.5, 10
"""Of letters and of lines, in points."""


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
    place.suptitle(f"{title}\n", fontsize=10, fontweight="bold")  # the layout knows nothing of the captions
    panels = place.subplots(-(-len(indices) // COLUMNS), COLUMNS, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, indices, strict=False):
        _draw_image(axes, index, part, images)


def _draw_image(axes: Axes, index: int, part: Part, images: ImageSource) -> None:
    from PIL import ImageOps

    item, names = part.items[index], part.class_names
    # On a square, so that the captions of a row stand beside each other.
    axes.imshow(ImageOps.pad(images.load(item.key), (SIDE, SIDE), color="white"))
    axes.set_title(f"true: {short(names[item.label], 26)}", loc="left", fontsize=SIZE, pad=2.2 * LINE + 4)
    for line, (when, outputs) in enumerate((("after", part.after), ("before", part.before))):
        said = short(names[int(outputs.predicted[index])], 24)
        axes.annotate(
            f"{when}: {said} {100 * float(outputs.confidence[index]):.0f} %",
            (0, 1),
            (0, line * LINE + 4),
            xycoords="axes fraction",
            textcoords="offset points",
            color=COLORS[2] if outputs.correct[index] else COLORS[1],
            fontsize=SIZE,
        )
