"""Tables of records: mean and 95 % interval over seeds, one row a method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cma_tune.errors import UserError
from cma_tune.records import Record
from cma_tune.report.cells import AMONG_ALL, BASE_TO_NOVEL, HALVES, Cell, Kind, Row, Table, h_of, seed_notes
from cma_tune.report.groups import Group, group_records, shots_text, zero_shot_beside
from cma_tune.report.naming import backbone_of, name_groups, setting_notes, shown_backbones

H_OF_MEANS = (
    "H: the harmonic mean of mean base and mean novel accuracy, as in the literature; its interval is that "
    "of the seeds' own H."
)
TRANSFER = ("cross-dataset", "domain-generalization")
ON_TARGET = "accuracy: "
"""What the figure of a target is called, before its name."""
SIMILARITIES = {
    "class_similarity": "class similarity",
    "modal_similarity": "modal similarity",
    "novel_class_similarity": "novel class similarity",
    "novel_modal_similarity": "novel modal similarity",
}
BESIDE: dict[Kind, dict[str, str]] = {
    "alignment": SIMILARITIES,
    "calibration": {"ece": "ECE", "novel_ece": "novel ECE"},
}
"""Figures in tables of their own, behind the accuracy of the same runs."""
UNITS = {"accuracy": "%", "alignment": "mean cosines", "calibration": "expected error in points"}


def build_tables(records: Iterable[Record]) -> list[Table]:
    """Tables of accuracy, alignment and calibration for every dataset and backbone.

    Runs are averaged only if they differ in nothing but the seed; where other settings differ, each has a row
    of its own that names them. Zero-shot stands in the few-shot table, at 0 shots, and in base-to-novel's.

    Args:
        records: of zero-shot, few-shot, base-to-novel, cross-dataset and domain generalisation.

    Returns:
        Few-shot accuracy, its alignment and calibration, then the same of base-to-novel by shots; then the
        transfers.

    Raises:
        UserError: a record is of another protocol, or two claim different figures for the same run.
    """
    few_shot: dict[tuple[str, str], list[Record]] = {}
    base_to_novel: dict[tuple[str, str], dict[int, list[Record]]] = {}
    transfers: dict[tuple[str, str, str, int, tuple[str, ...]], list[Record]] = {}
    records = list(records)
    shown = shown_backbones(records)
    for record in records:
        place = (str(record.config["dataset"]), shown[backbone_of(record)])
        if record.protocol in ("zero-shot", "few-shot"):
            few_shot.setdefault(place, []).append(record)
        elif record.protocol == "base-to-novel":
            base_to_novel.setdefault(place, {}).setdefault(record.shots, []).append(record)
        elif record.protocol in TRANSFER:
            targets = tuple(map(str, record.config.get("targets", ())))
            transfers.setdefault((record.protocol, *place, record.shots, targets), []).append(record)
        else:
            raise UserError(
                f"Expected records of zero-shot, few-shot, base-to-novel, {' or '.join(TRANSFER)}, "
                f"got one of '{record.protocol}'; move it out of the folder."
            )
    tables: list[Table] = []
    for place in sorted(few_shot.keys() | base_to_novel.keys()):
        if place in few_shot:
            tables += _few_shot_tables(few_shot[place], *place)
        # Zero-shot needs no shots: where it was measured on both halves, it stands beside each of them.
        beside = [
            r for r in few_shot.get(place, []) if r.protocol == "zero-shot" and "base_accuracy" in r.figures
        ]
        for shots, members in sorted(base_to_novel.get(place, {}).items()):
            tables += _base_to_novel_tables([*beside, *members], *place, shots)
    alike = Counter(place[:-1] for place in transfers)
    return tables + [
        _transfer_table(several, few_shot.get(place[1:3], []), *place, named=alike[place[:-1]] > 1)
        for place, several in sorted(transfers.items())
    ]


def _few_shot_tables(records: Sequence[Record], dataset: str, backbone: str) -> list[Table]:
    groups = name_groups(group_records(records))
    all_shots = sorted({record.shots for record in records})
    rows = [Row(g.name, g, tuple(_cell(g, "accuracy", shots) for shots in all_shots)) for g in groups]
    columns = [shots_text(shots) for shots in all_shots]
    protocol = "few-shot" if any(all_shots) else "zero-shot"
    accuracy = _table("accuracy", protocol, dataset, backbone, None, columns, rows, groups)

    named = [
        (f"{group.name}, {shots_text(shots)}" if shots else group.name, group, shots)
        for group in groups
        for shots in sorted({record.shots for record in group.records})
    ]

    def beside(metrics: Iterable[str]) -> list[Row]:
        return [Row(name, g, tuple(_cell(g, metric, at) for metric in metrics)) for name, g, at in named]

    return [accuracy, *_tables_beside(protocol, dataset, backbone, None, beside, groups)]


def _base_to_novel_tables(records: Sequence[Record], dataset: str, backbone: str, shots: int) -> list[Table]:
    groups = name_groups(group_records(records))

    def rows(of: Iterable[Group], metrics: Iterable[str]) -> list[Row]:
        at = {group.name: 0 if group.learner == "zero_shot" else shots for group in groups}
        return [Row(g.name, g, tuple(_cell(g, metric, at[g.name]) for metric in metrics)) for g in of]

    columns = list(BASE_TO_NOVEL.values())
    place = ("base-to-novel", dataset, backbone, shots)
    accuracy = [_table("accuracy", *place, columns, rows(groups, BASE_TO_NOVEL), groups)]
    generalised = [row for row in rows(groups, AMONG_ALL) if any(row.cells)]
    if generalised:  # each half's images among the names of both
        place_of_all = (f"generalised {place[0]}", *place[1:])
        accuracy.append(_table("accuracy", *place_of_all, list(AMONG_ALL.values()), generalised, groups))
    # Zero-shot's are over all classes, those of the others over one half.
    learned = [group for group in groups if group.learner != "zero_shot"]
    return [*accuracy, *_tables_beside(*place, lambda metrics: rows(learned, metrics), groups)]


def _transfer_table(
    records: Sequence[Record],
    on_source: Sequence[Record],
    protocol: str,
    dataset: str,
    backbone: str,
    shots: int,
    targets: tuple[str, ...],
    named: bool,
) -> Table:
    """What was learned on one dataset, on all targets; zero-shot, which the records hold too, beside it.

    Zero-shot on the source is among `on_source`, if anywhere. With `named`, the title names the targets.
    """
    groups = name_groups(group_records(records))
    others = [name for name in targets if name != dataset]
    source = f"{ON_TARGET}{dataset}" if dataset in targets else "source_accuracy"
    columns = {source: f"{dataset} (source)", **{f"{ON_TARGET}{name}": name for name in others}}
    columns["mean_accuracy"] = "mean of targets"
    plain = Group("zero_shot", None, False, {}, {}, (records[0],))
    beside = [records[0].figures.get(f"zero_shot_{metric}") for metric in columns]
    if beside[0] is None and (same := zero_shot_beside(records[0], on_source)):
        beside[0] = same.figures["accuracy"]
    cells = [None if v is None else Cell(m, 0, (v,), (0,)) for m, v in zip(columns, beside, strict=True)]
    rows = [Row(plain.name, plain, tuple(cells))] if any(cells) else []
    rows += [Row(g.name, g, tuple(_cell(g, metric, shots) for metric in columns)) for g in groups]
    table = _table("accuracy", protocol, dataset, backbone, shots, list(columns.values()), rows, groups)
    if not named:
        return table
    return replace(table, title=f"{table.title}, targets {', '.join(targets)}", targets=targets)


def _tables_beside(
    protocol: str,
    dataset: str,
    backbone: str,
    shots: int | None,
    rows: Callable[[Iterable[str]], list[Row]],
    groups: Sequence[Group],
) -> list[Table]:
    """The tables of other figures than accuracy, without columns that no run has; none without any."""
    tables = []
    for kind, metrics in BESIDE.items():
        whole = rows(metrics)
        kept = [i for i in range(len(metrics)) if any(row.cells[i] for row in whole)]
        if not kept:
            continue
        columns = [list(metrics.values())[i] for i in kept]
        if protocol == "base-to-novel":
            columns = [name if name.startswith("novel") else f"base {name}" for name in columns]
        slim = [Row(r.name, r.group, tuple(r.cells[i] for i in kept)) for r in whole if any(r.cells)]
        tables.append(_table(kind, protocol, dataset, backbone, shots, columns, slim, groups))
    return tables


def _cell(group: Group, metric: str, shots: int) -> Cell | None:
    found = [r for r in group.records if r.shots == shots and metric in r.figures]
    if not found:
        return None
    cell = Cell(metric, shots, tuple(float(r.figures[metric]) for r in found), tuple(r.seed for r in found))
    if metric not in HALVES:
        return cell
    base, novel = (_cell(group, half, shots) for half in HALVES[metric])
    return replace(cell, of_means=h_of(base, novel)) if base and novel else cell


def _table(
    kind: Kind,
    protocol: str,
    dataset: str,
    backbone: str,
    shots: int | None,
    columns: Sequence[str],
    rows: Sequence[Row],
    groups: Sequence[Group],
) -> Table:
    at = f" at {shots_text(shots)}" if shots is not None else ""
    figure = f"{kind} ({UNITS[kind]})"
    title = f"{protocol.capitalize()} {figure}{at}: dataset {dataset}, backbone {backbone}"
    cells = [cell for row in rows for cell in row.cells if cell and row.group.learner != "zero_shot"]
    seeds, said_of_seeds = seed_notes(cells)
    # The others follow the accuracy of the same runs, where their settings are said.
    if seeds > 1 and any(cell.metric in HALVES for cell in cells):
        said_of_seeds.append(H_OF_MEANS)
    notes = (*said_of_seeds, *(setting_notes(groups) if kind == "accuracy" else ()))
    return Table(title, kind, protocol, dataset, backbone, shots, tuple(columns), tuple(rows), notes, seeds)
