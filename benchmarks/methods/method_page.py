"""The tables of `benchmarks/results/methods.md`, from what `method_runs.py` and `method_costs.py` left.

python benchmarks/methods/method_page.py benchmarks/results/methods/caltech101.csv --name Caltech101 \
    --page benchmarks/results/methods.md
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean

from method_rows import Cell, Cost, Row, read_costs, read_rows

from cma_tune.files import write_text
from cma_tune.metrics.significance import PairedT, paired_t_test
from cma_tune.report.groups import learner_name, shots_text

METRICS = {"few-shot": ("accuracy",), "base-to-novel": ("base_accuracy", "novel_accuracy", "harmonic_mean")}
METRIC_NAMES = {
    "accuracy": "accuracy",
    "base_accuracy": "base accuracy",
    "novel_accuracy": "novel accuracy",
    "harmonic_mean": "H",
}
COST_HEADERS = ("epochs", "s an epoch, λ = 0", "s an epoch, λ > 0", "s a run", "peak MiB")
HALVES = ("base_accuracy", "novel_accuracy")
Choose = Callable[[Row], bool]


def by_seed(rows: Sequence[Row], choose: Choose, metric: str) -> dict[int, float]:
    """A figure (%) of the chosen rows of one cell by seed."""
    return {row.seed: row.figures[metric] for row in rows if choose(row)}


def run_with(weight: float) -> Choose:
    """Whether a row is a run with this λ."""
    return lambda row: not row.selected and row.weight == weight


def chosen_ones(row: Row) -> bool:
    """Whether a row is a choice on validation images."""
    return row.selected


def average(rows: Sequence[Row], choose: Choose, metric: str) -> float:
    """Mean of chosen rows; H is that of mean base and mean novel accuracy, as in the literature."""
    if metric == "harmonic_mean":
        return harmonic_mean([average(rows, choose, half) for half in HALVES])
    return fmean(by_seed(rows, choose, metric).values())


def interval(rows: Sequence[Row], choose: Choose, metric: str) -> str:
    """Mean ± 1.96·population standard deviation/√n of chosen rows, the paper's interval; – without any.

    The interval of H is by the seeds' own H.
    """
    values = list(by_seed(rows, choose, metric).values())
    if not values:
        return "–"
    mean = fmean(values)
    spread = math.sqrt(fmean((value - mean) ** 2 for value in values))
    return f"{average(rows, choose, metric):.2f} ± {1.96 * spread / math.sqrt(len(values)):.2f}"


def table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left."""
    rule = [":--", *["--:"] * (len(headers) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [headers, rule, *lines])


def weights(rows: Sequence[Row]) -> list[float]:
    """All λ that were run, ascending."""
    return sorted({row.weight for row in rows if not row.selected})


def overview(cells: Mapping[Cell, list[Row]], costs: Sequence[Cost]) -> str:
    """A method a line: λ = 0 and the validation choice at every number of shots, H, and what it costs."""
    there = {(cell.protocol, cell.shots) for cell in cells}
    places = sorted(there, key=lambda place: (list(METRICS).index(place[0]), place[1]))
    by_method = {one.method: one for one in costs}
    lines = []
    for method in dict.fromkeys(cell.method for cell in cells):
        line = [learner_name(method)]
        for protocol, shots in places:
            metric = METRICS[protocol][-1]
            line.append(_both(cells.get(Cell(method, protocol, shots), []), metric))
        lines.append(line + (_cost(by_method.get(method)) if costs else []))
    headers = [f"{METRIC_NAMES[METRICS[protocol][-1]]}, {shots_text(shots)}" for protocol, shots in places]
    return table(["method", *headers, *(COST_HEADERS if costs else ())], lines)


def _both(rows: Sequence[Row], metric: str) -> str:
    """λ = 0, the validation choice, and the paired t-test between them: ``48.41 → 48.70 (p 0.423)``."""
    plain, chosen = by_seed(rows, run_with(0), metric), by_seed(rows, chosen_ones, metric)
    if not plain:
        return "–"
    before = f"{average(rows, run_with(0), metric):.2f}"
    if not chosen:
        return before
    *_, p = _against(plain, chosen, rows)
    return f"{before} → {average(rows, chosen_ones, metric):.2f}" + (f" (p {p})" if p != "–" else "")


def comparison(cells: Mapping[Cell, list[Row]], protocol: str, shots: int, metric: str) -> str:
    """A method a line: every λ, the validation choice, and what that adds to λ = 0 with its paired t-test."""
    every = weights([row for rows in cells.values() for row in rows])
    lines = []
    for cell, rows in cells.items():
        if (cell.protocol, cell.shots) != (protocol, shots):
            continue
        line = [learner_name(cell.method)]
        line += [interval(rows, run_with(weight), metric) for weight in every]
        line.append(interval(rows, chosen_ones, metric))
        plain = by_seed(rows, run_with(0), metric)
        chosen = by_seed(rows, chosen_ones, metric)
        line += _against(plain, chosen, rows) if chosen else ["–"] * 3
        lines.append(line)
    headers = ["method", *(f"λ = {weight:g}" for weight in every)]
    return table([*headers, "λ by validation", "its λ", "less λ = 0", "p"], lines)


def _against(plain: Mapping[int, float], chosen: Mapping[int, float], rows: Sequence[Row]) -> list[str]:
    """The chosen λ by seed, what they add to λ = 0, and p."""
    seeds = sorted(plain.keys() & chosen.keys())
    before, after = [plain[seed] for seed in seeds], [chosen[seed] for seed in seeds]
    test = paired_t_test(before, after)
    which = ", ".join(f"{row.weight:g}" for row in rows if row.selected)
    if test is None:
        return [which, f"{after[0] - before[0]:+.2f}", "–"]
    return [which, f"{test.difference:+.2f}", p_text(test)]


def p_text(test: PairedT) -> str:
    """p, or nothing where all differences are the same: there is no spread to measure their mean by."""
    if not math.isfinite(test.t):
        return "–"
    return f"{test.p:.3f}" if test.p >= 0.001 else "<0.001"


def fixed(cells: Mapping[Cell, list[Row]]) -> str:
    """Every λ > 0 less λ = 0 over all seeds and shots of few-shot: mean difference, wins, p."""
    every = [weight for weight in weights([row for rows in cells.values() for row in rows]) if weight]
    lines = []
    for method in dict.fromkeys(cell.method for cell in cells):
        line = [learner_name(method)]
        for weight in every:
            before: list[float] = []
            after: list[float] = []
            for cell, rows in cells.items():
                if cell.method != method or cell.protocol != "few-shot":
                    continue
                plain = by_seed(rows, run_with(0), "accuracy")
                other = by_seed(rows, run_with(weight), "accuracy")
                for seed in sorted(plain.keys() & other.keys()):
                    before.append(plain[seed])
                    after.append(other[seed])
            test = paired_t_test(before, after) if before else None
            wins = sum(a > b for a, b in zip(after, before, strict=True))
            line += [f"{test.difference:+.2f}", f"{wins}/{len(after)}", p_text(test)] if test else ["–"] * 3
        lines.append(line)
    headers = [text for weight in every for text in (f"λ = {weight:g} less λ = 0", "higher in", "p")]
    return table(["method", *headers], lines)


def _cost(one: Cost | None) -> list[str]:
    """Epochs, seconds of one without and with the loss, seconds of a run at 16 shots, peak memory."""
    if one is None:
        return ["–"] * len(COST_HEADERS)
    penalised = "–" if one.penalised is None else f"{one.penalised:.3f}"
    return [f"{one.epochs:g}", f"{one.seconds:.3f}", penalised, f"{one.run:.1f}", f"{one.peak_mib:.0f}"]


def tables(name: str, rows: Sequence[Row], costs: Sequence[Cost]) -> dict[str, str]:
    """All tables of a dataset by their headings on the page."""
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    found = {f"{name}, overview (%)": overview(cells, costs)}
    found[f"{name}, over all shots and seeds (points)"] = fixed(cells)
    for protocol, metrics in METRICS.items():
        for shots in sorted({cell.shots for cell in cells if cell.protocol == protocol}):
            for metric in metrics:
                heading = f"{name}, {protocol}, {shots_text(shots)}: {METRIC_NAMES[metric]} (%)"
                found[heading] = comparison(cells, protocol, shots, metric)
    return found


def with_tables(page: str, found: Mapping[str, str]) -> str:
    """A page whose tables under these headings are replaced; its words stay.

    Raises:
        ValueError: a heading with a table under it is not on the page.
    """
    for heading, text in found.items():
        place = re.compile(rf"(?<=^### {re.escape(heading)}\n\n)(?:\|.*\n)+", re.MULTILINE)
        where = list(place.finditer(page))
        if len(where) != 1:
            wanted = f'Expected one table below "### {heading}" on the page'
            raise ValueError(f"{wanted}, found {len(where)}: put one there.")
        page = f"{page[: where[0].start()]}{text}\n{page[where[0].end() :]}"
    return page


def main() -> None:
    """Print the tables of one dataset, or put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--name", help="of the dataset in headings; by default the file's")
    parser.add_argument("--page", type=Path, help="replace the tables of this page")
    options = parser.parse_args()
    path: Path = options.table
    costs = read_costs(path.with_name(f"{path.stem}_costs.csv"))
    found = tables(options.name or path.stem, read_rows(path), costs)
    if options.page is None:
        print("\n\n".join(f"### {heading}\n\n{text}" for heading, text in found.items()))
        return
    try:
        write_text(options.page, with_tables(options.page.read_text(encoding="utf-8"), found))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
