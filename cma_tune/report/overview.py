"""Tables over datasets: few-shot as the literature's Table 1, base, novel and H, each with averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cma_tune.report.cells import AMONG_ALL, BASE_TO_NOVEL, Cell, Table
from cma_tune.report.groups import miniatures, shots_text
from cma_tune.report.methods import (
    AVERAGE_OF_H,
    Method,
    Place,
    averages,
    having_all,
    own_recipe_notes,
    places,
)
from cma_tune.report.sheets import Content, Entry, Sheet
from cma_tune.report.weights import weight_sheets

BOLD = "Bold: the highest mean of a dataset's methods, which is no test of significance."
_PER_DATASET = ("split", "source.", "templates", "weights", "preprocessing", "candidates")


def overview_sheets(tables: Sequence[Table]) -> list[Sheet]:
    """What needs several datasets: none where every protocol and backbone has but one."""
    sheets: list[Sheet] = []
    for place in places(tables):
        if len(place.datasets) < 2:
            continue
        if place.protocol == "few-shot":
            sheets.append(few_shot_sheet(place))
        else:
            sheets += [halves_sheet(place, shots) for shots in place.shots]
            among_all = [halves_sheet(place, shots, AMONG_ALL) for shots in place.shots]
            sheets += [sheet for sheet in among_all if sheet.rows]
        sheets += weight_sheets(place)
    return sheets


def few_shot_sheet(place: Place) -> Sheet:
    """Accuracy of every dataset by method and shots, with zero-shot beside it and averages below."""
    zero_shot = [(method.name, method) for method in place.zero_shot]
    headers = ("dataset", *(name for name, _ in zero_shot), "method", *map(shots_text, place.shots))
    if not place.learned:
        headers = ("dataset", *(name for name, _ in zero_shot))
    rows: list[tuple[Content, ...]] = []
    rules: set[int] = set()
    for dataset in [*place.datasets, None]:
        if rows and (place.learned or dataset is None):
            rules.add(len(rows))
        beside = [_figure(method, place, dataset, 0, "accuracy") for _, method in zero_shot]
        name = dataset or f"average over {len(place.datasets)}"
        body = [
            (method, [_figure(method, place, dataset, shots, "accuracy") for shots in place.shots])
            for method in place.learned
        ]
        body = [(method, figures) for method, figures in body if any(figures)]
        marked = _mark_best([figures for _, figures in body])
        for number, ((method, _), figures) in enumerate(zip(body, marked, strict=True)):
            lead = (name, *beside) if number == 0 else ("", *[""] * len(beside))
            rows.append((*lead, method.name, *figures))
        if not body:
            rest = ["", *[None] * len(place.shots)] if place.learned else []
            rows.append((name, *beside, *rest))
    protocol = "Few-shot" if place.learned else "Zero-shot"
    title = f"{protocol} accuracy (%) over datasets: backbone {place.backbone}"
    labels = 2 + len(zero_shot) if place.learned else 1
    averages = frozenset(range(max(rules), len(rows)))
    notes = _notes(place, "accuracy")
    return Sheet(title, headers, tuple(rows), notes, frozenset(rules), labels, BOLD, averages)


def halves_sheet(place: Place, shots: int, metrics: Mapping[str, str] = BASE_TO_NOVEL) -> Sheet:
    """Base, novel and harmonic mean of every dataset by method, with averages below.

    Args:
        place: of base-to-novel.
        shots: training images per class.
        metrics: `BASE_TO_NOVEL`, or `AMONG_ALL` for each half's images among the names of both.
    """
    rows: list[tuple[Content, ...]] = []
    rules: set[int] = set()
    for dataset in [*place.datasets, None]:
        if rows:
            rules.add(len(rows))
        body = [
            (method, [_figure(method, place, dataset, shots, metric) for metric in metrics])
            for method in place.methods
        ]
        body = [(method, figures) for method, figures in body if any(figures)]
        marked = _mark_best([figures for _, figures in body])
        for number, ((method, _), figures) in enumerate(zip(body, marked, strict=True)):
            name = (dataset or f"average over {len(place.datasets)}") if number == 0 else ""
            rows.append((name, method.name, *figures))
    *_, h = metrics
    kind = "Base-to-novel" if metrics is BASE_TO_NOVEL else "Generalised base-to-novel"
    title = f"{kind} accuracy (%) over datasets at {shots_text(shots)}: backbone {place.backbone}"
    notes = (*_notes(place, h), AVERAGE_OF_H)
    return Sheet(
        title,
        ("dataset", "method", *metrics.values()),
        tuple(rows),
        notes,
        frozenset(rules),
        2,
        BOLD,
        frozenset(range(max(rules, default=0), len(rows))),
    )


def _figure(method: Method, place: Place, dataset: str | None, shots: int, metric: str) -> Entry | None:
    """The figure of a dataset, or the average where there is none to name."""
    if dataset is not None:
        cell = method.cell(dataset, shots, metric)
        return _entry(cell) if cell else None
    metrics = next((list(several) for several in (BASE_TO_NOVEL, AMONG_ALL) if metric in several), [metric])
    cell = averages(method, place.datasets, shots, metrics).get(metric)
    if cell is None:
        return None
    having = len(having_all(method, place.datasets, shots, metrics))
    partial = "" if having == len(place.datasets) else f"({having} of {len(place.datasets)})"
    return replace(_entry(cell), note=partial)


def _entry(cell: Cell) -> Entry:
    return Entry(cell.mean, cell.interval)


def _mark_best(rows: Sequence[Sequence[Entry | None]]) -> list[list[Entry | None]]:
    """Mark the highest mean of every column, as printed, where not all are the same."""
    marked = [list(row) for row in rows]
    for column in range(len(marked[0]) if marked else 0):
        # An average over fewer datasets is another figure.
        comparable = [entry for row in marked if (entry := row[column]) and not entry.note]
        means = {round(entry.value, 2) for entry in comparable}
        for row in marked if len(means) > 1 else []:
            entry = row[column]
            if entry and not entry.note and round(entry.value, 2) == max(means):
                row[column] = replace(entry, best=True)
    return marked


def _notes(place: Place, metric: str) -> tuple[str, ...]:
    cells = [cell for method in place.learned for key, cell in method.cells.items() if key[2] == metric]
    counts = sorted({len(cell.values) for cell in cells})
    notes = []
    if counts:
        number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        if counts[-1] > 1:
            notes.append(f"Mean ± 95 % interval (1.96·population standard deviation/√n) over {number} seeds.")
            notes.append(
                "An average has the interval of its values by seed, where all datasets have the same seeds."
            )
        else:
            notes.append("One seed: no interval.")
    if place.protocol == "base-to-novel" and any(m.release and m.weight is None for m in place.learned):
        notes.append("λ of the release: those of its few-shot runs.")
    notes += [f"{m.name}: λ of the release." for m in place.learned if m.release and m.weight]
    notes += own_recipe_notes(place.learned)
    drawn = sorted(set().union(*(miniatures(group) for m in place.methods for group in m.groups.values())))
    if drawn:
        notes.append(f"On miniatures, which are drawn images: {', '.join(drawn)}.")
    if place.untouched:
        notes.append(f"Without a learned method, and so left out: {', '.join(place.untouched)}.")
    for method in place.learned:
        if differing := _between_datasets(method):
            notes.append(f"{method.name}: settings differ between datasets ({', '.join(differing)}).")
    return tuple(notes)


def _between_datasets(method: Method) -> list[str]:
    """Settings that are not the same on all datasets, and are not the datasets' own."""
    seen: dict[str, set[str]] = {}
    for group in method.groups.values():
        for key, value in group.settings.items():
            if not key.startswith(_PER_DATASET):
                seen.setdefault(key, set()).add(value)
    return sorted(key.rsplit(".", 1)[-1] for key, values in seen.items() if len(values) > 1)
