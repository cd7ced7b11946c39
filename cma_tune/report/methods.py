"""The same method on several datasets: what tables, comparisons and figures over datasets start from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import harmonic_mean

from cma_tune.report.cells import HALVES, Cell, Row, Table, h_of
from cma_tune.report.groups import LEARNERS, Group, is_of_release, learner_name, of_own_recipe
from cma_tune.report.tables import ON_TARGET, TRANSFER

Key = tuple[str, int, str]
"""Dataset, shots, figure."""
_PROTOCOLS = {
    "zero-shot": "few-shot",
    "few-shot": "few-shot",
    "base-to-novel": "base-to-novel",
    "generalised base-to-novel": "base-to-novel",  # the same runs, other figures
}
AVERAGE_OF_H = (
    "Average H: the harmonic mean of average base and average novel accuracy, as in the literature."
)


@dataclass
class Method:
    """One method on one backbone in one protocol, over datasets.

    Attributes:
        name: as in the tables.
        key: short, for the command line, such as "coop+cma-0.3".
        learner: the method's key.
        weight: λ, None where it is not one number.
        selected: λ was chosen on validation images.
        variant: settings that tell it from its like.
        release: λ is the release's, in its form of the loss, wherever it ran.
        cells: figures over seeds.
        groups: the runs behind it, by dataset and shots.
    """

    name: str
    key: str
    learner: str
    weight: float | None
    selected: bool
    variant: str
    release: bool = False
    cells: dict[Key, Cell] = field(default_factory=dict)
    groups: dict[tuple[str, int], Group] = field(default_factory=dict)

    def cell(self, dataset: str, shots: int, metric: str) -> Cell | None:
        """A figure, None where there is no run. Zero-shot has the same whatever the shots."""
        return self.cells.get((dataset, 0 if self.learner == "zero_shot" else shots, metric))


@dataclass
class Place:
    """All methods of one protocol on one backbone.

    Attributes:
        protocol: few-shot or base-to-novel; for `transfer_places` cross-dataset or domain-generalization.
        backbone: as in the tables.
        datasets: in alphabetical order; where methods learned, those on which one did;
            of a transfer, the targets.
        untouched: the others, which have zero-shot alone.
        replaced: λ whose place "λ of the release" takes, which only the tables by λ show.
        source: of a transfer, the dataset that was learned on, with the targets where others were tested too.
        shots: of the learned methods, ascending.
        methods: in the order of the tables.
    """

    protocol: str
    backbone: str
    datasets: list[str]
    shots: list[int]
    methods: list[Method]
    untouched: list[str] = field(default_factory=list)
    replaced: list[Method] = field(default_factory=list)
    source: str = ""

    @property
    def learned(self) -> list[Method]:
        """All but zero-shot."""
        return [method for method in self.methods if method.learner != "zero_shot"]

    @property
    def zero_shot(self) -> list[Method]:
        """One for each kind of templates."""
        return [method for method in self.methods if method.learner == "zero_shot"]


def places(tables: Iterable[Table]) -> list[Place]:
    """Methods by protocol and backbone, from the tables of every dataset.

    Besides the λ themselves there is "λ of the release": the release's at each dataset and shots. It takes
    the place of λ that are there for its sake alone; base-to-novel, for which the release's were not chosen,
    has it only where there are such.
    """
    found: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        if table.protocol in _PROTOCOLS:
            protocol = _PROTOCOLS[table.protocol]
            found.setdefault((protocol, table.backbone), []).append(table)
    return [_place(*key, several) for key, several in sorted(found.items(), reverse=True)]


def transfer_places(tables: Iterable[Table]) -> list[Place]:
    """Methods that were learned on one dataset by the others they were tested on, a place for every table."""
    return [_transfer_place(table) for table in tables if table.protocol in TRANSFER]


def _transfer_place(table: Table) -> Place:
    methods: list[Method] = []
    targets: dict[str, None] = {}
    for row in table.rows:
        one = _method(row.name, row.group, row.group.weight, row.group.release)
        for cell in filter(None, row.cells):
            name = cell.metric.removeprefix(ON_TARGET)
            if name in (cell.metric, table.dataset):
                continue
            targets[name] = None
            one.cells[(name, cell.shots, "accuracy")] = cell
            one.groups[(name, cell.shots)] = row.group
        methods.append(one)
    shots = [table.shots] if table.shots else []
    source = ", targets ".join(filter(None, (table.dataset, ", ".join(table.targets))))
    return Place(table.protocol, table.backbone, list(targets), shots, methods, source=source)


def _place(protocol: str, backbone: str, tables: Sequence[Table]) -> Place:
    methods: dict[str, Method] = {}
    for table in tables:
        for row in table.rows:
            for cell in filter(None, row.cells):
                for name, weight, release in _names(row, cell):
                    one = methods.setdefault(name, _method(name, row.group, weight, release))
                    one.cells[(table.dataset, cell.shots, cell.metric)] = cell
                    one.groups[(table.dataset, cell.shots)] = row.group
    dropped = _doubles(list(methods.values()), only_in_place=protocol == "base-to-novel")
    kept = [method for name, method in methods.items() if name not in dropped]
    replaced = [method for name, method in methods.items() if name in dropped and not method.release]
    shots = sorted({shots for method in kept for _, shots, _ in method.cells if shots})
    every = {table.dataset for table in tables}
    learned = {dataset for method in kept if method.learner != "zero_shot" for dataset, _, _ in method.cells}
    datasets, untouched = sorted(learned or every), sorted(every - learned if learned else ())
    return Place(protocol, backbone, datasets, shots, sorted(kept, key=_order), untouched, replaced)


def _names(row: Row, cell: Cell) -> list[tuple[str, float | None, bool]]:
    """(name, λ, whether it is the release's) of the methods that a figure belongs to."""
    group = row.group
    names: list[tuple[str, float | None, bool]] = []
    if not group.release:
        names.append((group.name, group.weight, False))
    runs = [record for record in group.records if record.shots == cell.shots]
    if group.weight_at(cell.shots) and not group.selected and all(map(is_of_release, runs)):
        names.append((name_of_release(group.learner, group.variant), None, True))
    return names


def name_of_release(learner: str, variant: str) -> str:
    """What the method is called with the release's λ at each dataset and shots."""
    suffix = f" ({variant})" if variant else ""
    return f"{learner_name(learner)} + CMA, λ of the release{suffix}"


def _method(name: str, group: Group, weight: float | None, release: bool) -> Method:
    if group.selected:
        key = f"{group.learner}+cma-selected"
    elif release:
        key = f"{group.learner}+cma-release"
    else:
        key = f"{group.learner}+cma-{weight:g}" if weight else group.learner
    return Method(name, key, group.learner, weight, group.selected, group.variant, release)


def _doubles(methods: list[Method], only_in_place: bool) -> set[str]:
    """Names of λ that are all the release's, or of the release's where that is one λ everywhere.

    Args:
        methods: of one place.
        only_in_place: also of the release's where it takes the place of none.
    """
    release = [method for method in methods if method.release]
    dropped: set[str] = set()
    for one in release:
        parts = [m for m in methods if m.weight and m.learner == one.learner and m.variant == one.variant]
        inside = [part for part in parts if all(one.cells.get(k) is cell for k, cell in part.cells.items())]
        if len(inside) == 1 and inside[0].cells.keys() == one.cells.keys():
            dropped.add(one.name)
            inside[0].release = True
        elif inside or not only_in_place:
            dropped |= {part.name for part in inside}
        else:
            dropped.add(one.name)
    return dropped


def _order(method: Method) -> tuple[int, str, bool, bool, float, str]:
    known = list(LEARNERS)
    place = known.index(method.learner) if method.learner in known else len(known)
    last = method.selected, method.weight is None
    return (place, method.learner, *last, method.weight or 0.0, method.name)


def own_recipe_notes(methods: Iterable[Method]) -> list[str]:
    """Of which datasets "λ of the release" are those of the user's catalogue."""
    release = [method for method in methods if method.release]
    own = sorted({name for m in release for (name, _), group in m.groups.items() if of_own_recipe(group)})
    return [f"λ of the release: of {', '.join(own)} those of the user's catalogue."] if own else []


def average(cells: Sequence[Cell]) -> Cell:
    """The mean over datasets: by seed where all have the same seeds, which gives an interval; else of means.

    Args:
        cells: the same accuracy or similarity, one a dataset; at least one. H has `average_figure`.
    """
    first = cells[0]
    if all(cell.seeds == first.seeds for cell in cells):
        values = tuple(math.fsum(v) / len(v) for v in zip(*(c.values for c in cells), strict=True))
        return Cell(first.metric, first.shots, values, first.seeds)
    mean = math.fsum(cell.mean for cell in cells) / len(cells)
    return Cell(first.metric, first.shots, (mean,), ())


def having_all(method: Method, datasets: Iterable[str], shots: int, metrics: Sequence[str]) -> list[str]:
    """Those of the datasets on which the method has every figure."""
    return [name for name in datasets if all(method.cell(name, shots, metric) for metric in metrics)]


def averages(
    method: Method, datasets: Iterable[str], shots: int, metrics: Sequence[str]
) -> Mapping[str, Cell]:
    """Averages over datasets that have every figure; H as `average_figure` has it."""
    full = having_all(method, datasets, shots, metrics)
    found = {metric: average_figure(dict.fromkeys(full, method), shots, metric) for metric in metrics}
    return {metric: cell for metric, cell in found.items() if cell}


def average_figure(methods: Mapping[str, Method], shots: int, metric: str) -> Cell | None:
    """The average over datasets, of one method at each. None where one of them has no figure.

    H is the harmonic mean of the averages of base and novel accuracy, as in the literature's tables; the mean
    of the datasets' H is another number. Its values by seed are for the interval.
    """
    if metric in HALVES:
        base, novel = (average_figure(methods, shots, half) for half in HALVES[metric])
        if base is None or novel is None:
            return None
        values = tuple(harmonic_mean([b, n]) for b, n in zip(base.values, novel.values, strict=True))
        return Cell(metric, base.shots, values, base.seeds, h_of(base, novel))
    cells = [method.cell(dataset, shots, metric) for dataset, method in methods.items()]
    return average([cell for cell in cells if cell]) if cells and all(cells) else None
