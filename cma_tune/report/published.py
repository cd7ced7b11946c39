"""The paper's Table 1 beside ours: few-shot with RN50, novel accuracy by λ with ViT-B/16."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cma_tune.errors import UserError
from cma_tune.report.cells import Cell, Table
from cma_tune.report.groups import in_release_form, shots_text
from cma_tune.report.methods import Method, Place, average, name_of_release, places
from cma_tune.report.sheets import Content, Entry, Sheet

BACKBONES = {"few-shot": "RN50", "base-to-novel": "ViT-B-16"}
SHOTS = 16
"""Of the paper's base-to-novel."""
NAMES = {"zero_shot": "Zero-shot", "coop": "CoOp", "coop_cma": "CoOp + CMA"}
HEADERS = ("dataset", "method", "ours", "paper", "difference", "outside both")
OUTSIDE, INSIDE = "yes", "no"
DIFFERS, EQUAL = "differs", "equal"
FORM = "form of the loss (reduction=mean, normalize=true), which the paper's table is taken to use"
FEWEST = 3
"""Seeds, which the paper has too: an interval over two is hardly one."""
ROUNDING = 0.005 + 1e-9
"""Of the paper's two digits."""
BOLD = "Bold: differences outside both intervals, and of zero-shot."


@dataclass(frozen=True)
class Published:
    """One figure of the paper.

    Attributes:
        dataset: key, or "average".
        method: zero_shot, coop or coop_cma; for base-to-novel λ as a text, such as "0.3".
        shots: training images per class.
        accuracy: percent; novel accuracy for base-to-novel.
        interval: half width of the 95 % interval, None where the paper gives none.
    """

    dataset: str
    method: str
    shots: int
    accuracy: float
    interval: float | None


@cache
def published(protocol: str) -> tuple[Published, ...]:
    """The paper's figures of "few-shot" or "base-to-novel"."""
    file = resources.files("cma_tune.report") / "paper" / f"{protocol.replace('-', '_')}.csv"
    lines = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    if protocol == "few-shot":
        return tuple(
            Published(r["dataset"], r["method"], int(r["shots"]), float(r["accuracy"]), _interval(r))
            for r in lines
        )
    return tuple(
        Published(
            r["dataset"], f"{float(r['cma_weight']):g}", SHOTS, float(r["novel_accuracy"]), _interval(r)
        )
        for r in lines
    )


def _interval(row: dict[str, str]) -> float | None:
    return float(row["ci95"]) if row["ci95"] else None


def against_paper(tables: Sequence[Table]) -> list[Sheet]:
    """Ours beside the paper's for every figure that both have.

    CoOp + CMA few-shot is compared where our λ is the release's, in its form of the loss. Averages are
    compared where all datasets of the paper are there.

    Raises:
        UserError: there is none.
    """
    found = places(tables)
    learned = {place.backbone for place in found if place.learned}
    # Zero-shot that stands beside base-to-novel alone was not run to be held against few-shot figures.
    asked = [place for place in found if place.learned or place.backbone not in learned]
    sheets = [sheet for place in asked if (sheet := _sheet(place))]
    if not sheets:
        names = ", ".join(sorted({one.dataset for one in published("few-shot")} - {"average"}))
        raise UserError(
            "Expected few-shot or base-to-novel records (16 shots) of the paper's datasets for --against "
            f"paper ({names}; CoOp + CMA few-shot with --weights recipe), got none; report another folder."
        )
    return sheets


def _sheet(place: Place) -> Sheet | None:
    metric = "accuracy" if place.protocol == "few-shot" else "novel_accuracy"
    rows: list[tuple[Content, ...]] = []
    rules: set[int] = set()
    last = ""
    for theirs in published(place.protocol):
        for method in _counterparts(place, theirs):
            cell = _ours(place, method, theirs, metric)
            if cell is None:
                continue
            if rows and theirs.dataset != last:
                rules.add(len(rows))
            last = theirs.dataset
            comparable = _same_backbone(place) and _same_form(method, theirs.dataset)
            comparable = comparable and not _of_other_images(method, theirs.dataset)
            rows.append(_row(theirs, method, cell, comparable))
    if not rows:
        return None
    figure = "accuracy" if place.protocol == "few-shot" else "novel accuracy"
    title = (
        f"{place.protocol.capitalize()} {figure} (%) against the paper's Table 1: backbone {place.backbone}"
    )
    averages = frozenset(number for number, row in enumerate(rows) if row[0] == "average")
    notes = tuple(_notes(place))
    return Sheet(title, HEADERS, tuple(rows), notes, frozenset(rules), 2, BOLD, averages)


def _notes(place: Place) -> Iterable[str]:
    yield (
        "Outside both: the difference is larger than our 95 % interval and larger than the paper's, so that "
        "neither mean lies in the other's interval. – where one of the two has none, or one of ± 0.00 (seeds "
        f"that agree by chance say nothing of the spread), or ours is over fewer than {FEWEST} seeds."
    )
    if place.zero_shot and place.protocol == "few-shot":
        yield (
            "Zero-shot has no seeds and no interval, here and in the paper: equal where both are the same to "
            "the paper's two digits, else differs."
        )
    backbone = BACKBONES[place.protocol]
    if not _same_backbone(place):
        yield f"The paper's backbone is {backbone}: differences to {place.backbone} are not judged."
    elif "openai" not in place.backbone.split():
        yield f"The paper's {backbone} has OpenAI's weights."
    other = sorted({name for m in (*place.zero_shot, *place.learned) for name in _of_other_images(m)})
    if other:
        yield f"Not judged, on a miniature or another split than the published one: {', '.join(other)}."
    if place.protocol == "few-shot":
        yield f"CoOp + CMA: λ of the authors' release in its {FORM}."
        others = [
            m.name for m in place.learned if m.learner == "coop" and not m.selected and not _same_form(m)
        ]
        if others:
            yield f"Left out, in another form of the loss: {'; '.join(others)}."
    else:
        yield f"CoOp + CMA is judged in the release's {FORM}: elsewhere the same λ weighs another penalty."


def _same_backbone(place: Place) -> bool:
    return place.backbone.split()[0].removesuffix("-quickgelu") == BACKBONES[place.protocol]


def _same_form(method: Method, dataset: str = "average") -> bool:
    """Whether the runs on the dataset, or on all, had no penalty or the release's form of it."""
    groups = [group for (name, _), group in method.groups.items() if dataset in (name, "average")]
    return not any(r.weight and not in_release_form(r) for group in groups for r in group.records)


def _of_other_images(method: Method, dataset: str = "average") -> set[str]:
    """Out of a dataset, or of all, those whose runs were not on the images of the published split."""
    return {
        name
        for (name, _), group in method.groups.items()
        if dataset in (name, "average")
        for record in group.records
        if "not the published split" in (origin := str(record.dataset.get("origin", "")))
        or origin.startswith("miniature")
    }


def _counterparts(place: Place, theirs: Published) -> list[Method]:
    """Our methods that stand for a published one; several where there are several settings."""
    if place.protocol == "base-to-novel":
        weight = float(theirs.method)
        return [m for m in place.learned if m.learner == "coop" and m.weight == weight]
    if theirs.method == "zero_shot":
        return place.zero_shot
    if theirs.method == "coop":
        return [m for m in place.learned if m.learner == "coop" and m.weight == 0]
    return [m for m in place.learned if m.learner == "coop" and m.release]


def _ours(place: Place, method: Method, theirs: Published, metric: str) -> Cell | None:
    if theirs.dataset != "average":
        return method.cell(theirs.dataset, theirs.shots, metric)
    named = sorted({one.dataset for one in published(place.protocol)} - {"average"})
    cells = [method.cell(dataset, theirs.shots, metric) for dataset in named]
    return average([cell for cell in cells if cell]) if all(cells) else None


def _row(theirs: Published, method: Method, cell: Cell, comparable: bool) -> tuple[Content, ...]:
    difference = cell.mean - theirs.accuracy
    outside = _verdict(cell, theirs, difference) if comparable else None
    name = name_of_release(method.learner, method.variant) if theirs.method == "coop_cma" else method.name
    at = f", {shots_text(theirs.shots)}" if theirs.shots and method.learner != "zero_shot" else ""
    return (
        theirs.dataset,
        f"{name}{at}",
        Entry(cell.mean, cell.interval),
        Entry(theirs.accuracy, theirs.interval),
        Entry(difference, signed=True, best=outside in (OUTSIDE, DIFFERS)),
        outside,
    )


def _verdict(cell: Cell, theirs: Published, difference: float) -> str | None:
    """Whether ours and the paper's differ by more than their spread, None where too little is known of it."""
    if theirs.method == "zero_shot":
        return DIFFERS if abs(difference) > ROUNDING else EQUAL
    if len(cell.values) < FEWEST or not _is_spread(cell.interval) or not _is_spread(theirs.interval):
        return None
    return OUTSIDE if abs(difference) > max(cell.interval or 0, theirs.interval or 0) else INSIDE


def _is_spread(interval: float | None) -> bool:
    """Whether it is more than 0 in the two digits that are shown."""
    return interval is not None and interval >= 0.005
