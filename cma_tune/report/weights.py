"""λ over datasets: every λ, the best single one, the best of each dataset, and the fair choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cma_tune.report.cells import Cell
from cma_tune.report.groups import learner_name, shots_text
from cma_tune.report.methods import AVERAGE_OF_H, Method, Place, average_figure
from cma_tune.report.sheets import Content, Entry, Sheet

METRICS = {
    "few-shot": {"accuracy": "accuracy"},
    "base-to-novel": {"novel_accuracy": "novel accuracy", "harmonic_mean": "harmonic mean (H)"},
}
NOTES = (
    "Best single λ (the highest average) and best λ per dataset are chosen on the test images: they say what "
    "one λ for all seeds could have reached at most, and are not comparable to figures whose λ was not.",
    "λ by validation is chosen on few-shot validation images alone: the fair choice.",
)

UNASKED = (
    "The fair choice, by few-shot validation images, is made by the same command with --select-weight: it "
    "trains nothing anew."
)


@dataclass(frozen=True)
class Family:
    """One method with its λ.

    Attributes:
        name: the method, with the settings that tell it from others.
        by_weight: its runs by λ, ascending.
        selected: its choice on validation images, if there is one.
    """

    name: str
    by_weight: dict[float, Method]
    selected: Method | None


def families(place: Place) -> list[Family]:
    """Methods of which several λ ran. λ = 0, which has no form of the loss, begins every family."""
    found: dict[tuple[str, str], dict[float, Method]] = {}
    plain: dict[str, list[Method]] = {}
    for method in [*place.learned, *place.replaced]:
        if method.weight:
            found.setdefault((method.learner, method.variant), {})[method.weight] = method
        elif method.weight == 0:
            plain.setdefault(method.learner, []).append(method)
    result = []
    for (learner, variant), by_weight in found.items():
        if start := _like(plain.get(learner, []), variant):
            by_weight[0.0] = start
        if len(by_weight) > 1:
            chosen = [m for m in place.learned if m.selected and m.learner == learner]
            name = learner_name(learner) + (f" ({variant})" if variant else "")
            result.append(Family(name, dict(sorted(by_weight.items())), _like(chosen, variant)))
    return result


def _like(methods: Sequence[Method], variant: str) -> Method | None:
    """The only one, or the one of the same settings."""
    same = [method for method in methods if method.variant == variant] or methods
    return same[0] if len(same) == 1 else None


def weight_sheets(place: Place) -> list[Sheet]:
    """One table for each family, number of shots and figure, where a λ ran on several datasets."""
    sheets = []
    for family in families(place):
        for shots in place.shots:
            for metric, shown in METRICS[place.protocol].items():
                sheet = _sheet(place, family, shots, metric, shown)
                if sheet is not None:
                    sheets.append(sheet)
    return sheets


def _sheet(place: Place, family: Family, shots: int, metric: str, shown: str) -> Sheet | None:
    cells = {
        dataset: {w: cell for w, m in family.by_weight.items() if (cell := m.cell(dataset, shots, metric))}
        for dataset in place.datasets
    }
    cells = {dataset: by_weight for dataset, by_weight in cells.items() if len(by_weight) > 1}
    everywhere = [
        w for w in family.by_weight if cells and all(w in by_weight for by_weight in cells.values())
    ]
    if len(cells) < 2 or len(everywhere) < 2:
        return None
    averaged = {
        w: average_figure(dict.fromkeys(cells, family.by_weight[w]), shots, metric) for w in everywhere
    }
    means = {w: cell for w, cell in averaged.items() if cell}
    single = best(means)
    weights = sorted({w for by_weight in cells.values() for w in by_weight})
    chosen = {d: family.selected.cell(d, shots, metric) for d in cells} if family.selected else {}
    rows: list[tuple[Content, ...]] = []
    for dataset, by_weight in cells.items():
        own = best(by_weight)
        by_validation = chosen.get(dataset)
        rows.append(
            (
                dataset,
                *(_entry(by_weight[w], best=w == own) if w in by_weight else None for w in weights),
                _entry(by_weight[single]),
                _entry(by_weight[own], f"(λ={own:g})"),
                _entry(by_validation, _chosen(family, dataset, shots)) if by_validation else None,
            )
        )
    own_best = {dataset: family.by_weight[best(by_weight)] for dataset, by_weight in cells.items()}
    bests = average_figure(own_best, shots, metric)
    fair = average_figure(dict.fromkeys(cells, family.selected), shots, metric) if family.selected else None
    rows.append(
        (
            f"average over {len(cells)}",
            *(_entry(means[w], best=w == single) if w in means else None for w in weights),
            _entry(means[single]),
            _entry(bests) if bests else None,
            _entry(fair) if fair else None,
        )
    )
    headers = ("dataset", *(f"λ={w:g}" for w in weights), f"best single λ={single:g}", "best λ per dataset")
    title = f"{place.protocol.capitalize()} {shown} (%) by λ at {shots_text(shots)}: {family.name}, backbone "
    sheet = Sheet(
        title + place.backbone,
        (*headers, "λ by validation"),
        tuple(rows),
        (*NOTES, *((AVERAGE_OF_H,) if metric == "harmonic_mean" else ())),
        frozenset({len(rows) - 1}),
        bold="Bold: the highest mean over the λ.",
        averages=frozenset({len(rows) - 1}),
    )
    return sheet if any(chosen.values()) else _without_last_column(sheet)


def best(cells: dict[float, Cell]) -> float:
    """λ of the highest mean; of several, the smallest."""
    return min(cells, key=lambda weight: (-cells[weight].mean, weight))


def _entry(cell: Cell, note: str = "", best: bool = False) -> Entry:
    return Entry(cell.mean, cell.interval, note, best)


def _chosen(family: Family, dataset: str, shots: int) -> str:
    assert family.selected is not None
    records = family.selected.groups[(dataset, shots)].records
    weights = [record.weight for record in records if record.shots == shots]
    shown = f"{weights[0]:g}" if len(set(weights)) == 1 else ", ".join(f"{w:g}" for w in weights)
    return f"(λ={shown})"


def _without_last_column(sheet: Sheet) -> Sheet:
    return replace(
        sheet,
        headers=sheet.headers[:-1],
        rows=tuple(row[:-1] for row in sheet.rows),
        notes=(sheet.notes[0], UNASKED, *sheet.notes[2:]),
    )
