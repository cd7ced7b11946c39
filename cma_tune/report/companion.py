"""Tables of the companion's runs: one row a method, one column a number of labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cma_tune.companion_run import noticed
from cma_tune.errors import UserError
from cma_tune.records import Record
from cma_tune.report.cells import Cell, seed_notes
from cma_tune.report.sheets import Content, Entry, Sheet

PROTOCOLS = ("supervised", "semi-supervised")

ALGORITHMS = {
    "supervised": "Supervised",
    "pseudo-label": "Pseudo-label",
    "fixmatch": "FixMatch",
    "flexmatch": "FlexMatch",
    "freematch": "FreeMatch",
    "softmatch": "SoftMatch",
    "otmatch": "OTMatch",
}
"""Methods as the literature writes them, in the order of the tables."""

FIGURES = {
    "accuracy": ("accuracy (%)", "The model after the last step."),
    "best_accuracy": (
        "best accuracy (%)",
        "The best of the evaluations on test images, as the references report it: an optimistic figure.",
    ),
}
INTERPLAY = {
    "feature_entropy": "H(G(f))",
    "mutual_information_ratio": "MIR",
    "entropy_difference_ratio": "HDR",
    "nc1": "NC1",
}
SETTINGS = {
    "schedule.steps": "steps",
    "schedule.batch_size": "labelled images a step",
    "schedule.ratio": "unlabelled for each",
    "schedule.lr": "learning rate",
    "schedule.ema": "EMA",
    "image_size": "image size",
}
"""What a note says of all runs of a table."""

BOLD = "Bold: the highest mean of a column, which is no test of significance."

# Where and how a run was computed, and what rows and columns say.
_ELSEWHERE = {
    *("output", "data_root", "eval_batch_size", "checkpoint_every", "resume", "tracker", "compile"),
    *("channels_last", "labels", "seeds", "algorithm", "max_mi", "min_hd", "dataset", "network"),
}


@dataclass(frozen=True)
class Method:
    """Runs that differ in seed and number of labels alone.

    Attributes:
        name: algorithm and added losses, and the settings that tell it from other rows.
        place: of the rows in a table.
        settings: what else decides the result, values as JSON.
        records: the runs.
    """

    name: str
    place: tuple[int, float, float]
    settings: Mapping[str, str]
    records: tuple[Record, ...]


def companion_sheets(records: Iterable[Record]) -> list[Sheet]:
    """Tables of accuracy, of the best accuracy and of the interplay figures, for every dataset and network.

    Args:
        records: of supervised and semi-supervised runs.

    Raises:
        UserError: two records claim different figures for the same run.
    """
    places: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in records:
        key = (str(record.config["dataset"]), str(record.backbone["name"]), record.protocol)
        runs = places.setdefault(key, {})
        if record.run in runs and runs[record.run].figures != record.figures:
            raise UserError(
                f"Expected one result for run {record.run[:12]}, got two that differ; "
                "report on one of their folders alone."
            )
        runs[record.run] = record
    sheets = []
    for (dataset, network, protocol), runs in sorted(places.items()):
        methods = _methods(list(runs.values()))
        where = f"dataset {dataset}, network {network}"
        for figure, (title, note) in FIGURES.items():
            name = f"{protocol.capitalize()} {title}: {where}"
            sheets.append(_accuracy_sheet(name, methods, figure, note))
        sheets.append(_interplay_sheet(f"{protocol.capitalize()} interplay: {where}", methods))
    return sheets


def _methods(records: Sequence[Record]) -> list[Method]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps([_name(record), _settings(record)], sort_keys=True), []).append(record)
    found = [Method(_name(g[0]), _place(g[0]), _settings(g[0]), tuple(g)) for g in groups.values()]
    keys = sorted({key for method in found for key in method.settings})
    varying = [key for key in keys if len({m.settings[key] for m in found if key in m.settings}) > 1]
    named = [replace(method, name=", ".join([method.name, *_variant(method, varying)])) for method in found]
    return sorted(named, key=lambda method: (method.place, method.name))


def _variant(method: Method, keys: Iterable[str]) -> list[str]:
    return [f"{key.split('.')[-1]}={method.settings[key]}" for key in keys if key in method.settings]


def _name(record: Record) -> str:
    config = record.config
    name = ALGORITHMS.get(str(config.get("algorithm", "supervised")), str(config.get("algorithm")))
    for option, what in (("max_mi", "MI"), ("min_hd", "HD")):
        name += f" + {what}, λ={config[option]:g}" if config[option] else ""
    return name


def _place(record: Record) -> tuple[int, float, float]:
    config = record.config
    known = list(ALGORITHMS)
    algorithm = config.get("algorithm", "supervised")
    number = known.index(algorithm) if algorithm in known else len(known)
    return (number, float(config["max_mi"]), float(config["min_hd"]))


def _settings(record: Record) -> dict[str, str]:
    content = {name: value for name, value in noticed(record.config).items() if name not in _ELSEWHERE}
    content["split"] = str(record.dataset["split"])[:12]
    return dict(_flat(content))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _accuracy_sheet(title: str, methods: Sequence[Method], figure: str, note: str) -> Sheet:
    numbers = sorted({_labels(record) for m in methods for record in m.records}, key=lambda n: n or 10**12)
    cells = [[_cell(method, figure, number) for number in numbers] for method in methods]
    best = [max((c.mean for c in column if c), default=0.0) for column in zip(*cells, strict=True)]
    rows = [
        (method.name, *(_entry(cell, top) for cell, top in zip(row, best, strict=True)))
        for method, row in zip(methods, cells, strict=True)
    ]
    headers = ("method", *(f"{number} labels" if number else "all labels" for number in numbers))
    notes = (note, *seed_notes([c for row in cells for c in row if c])[1], *_common(methods))
    return Sheet(title, headers, tuple(rows), notes, bold=BOLD)


def _interplay_sheet(title: str, methods: Sequence[Method]) -> Sheet:
    rows: list[tuple[Content, ...]] = []
    for method in methods:
        for number in sorted({_labels(record) for record in method.records}):
            cells = [_cell(method, figure, number) for figure in INTERPLAY]
            entries = [None if c is None else Entry(c.mean, c.interval, digits=3) for c in cells]
            rows.append((method.name, str(number or "all"), *entries))
    note = "Of test features against the classifier's rows, after the last step, in nats and ratios"
    theory = methods[0].records[0].figures
    if "log_samples" in theory:
        note += f", of {theory['samples']:.0f} images (ln n {theory['log_samples']:.2f})"
    if "collapse_entropy" in theory:
        entropy, ratio = theory["collapse_entropy"], theory["collapse_mutual_information_ratio"]
        note += f"; at neural collapse H is {entropy:.3f}, MIR {ratio:.3f}, HDR 0"
    return Sheet(title, ("method", "labels", *INTERPLAY.values()), tuple(rows), (f"{note}.",), labels=2)


def _labels(record: Record) -> int:
    return int(record.config["labels"][0])


def _cell(method: Method, figure: str, labels: int) -> Cell | None:
    found = [r for r in method.records if _labels(r) == labels and figure in r.figures]
    found.sort(key=lambda record: record.seed)
    if not found:
        return None
    return Cell(figure, labels, tuple(r.figures[figure] for r in found), tuple(r.seed for r in found))


def _entry(cell: Cell | None, best: float) -> Entry | None:
    return None if cell is None else Entry(cell.mean, cell.interval, best=cell.mean == best)


def _common(methods: Sequence[Method]) -> list[str]:
    """One sentence on settings that all runs share."""
    said = []
    for key, name in SETTINGS.items():
        values = {method.settings[key] for method in methods if key in method.settings}
        if len(values) == 1 and values != {"null"}:
            said.append(f"{name} {values.pop()}")
    return [f"Of all rows: {', '.join(said)}."] if said else []
