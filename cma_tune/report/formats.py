"""Tables as text, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import product

from cma_tune.errors import UserError, nearest
from cma_tune.report.cells import AMONG_ALL, BASE_TO_NOVEL, Cell, Table
from cma_tune.report.escapes import markdown_escaped
from cma_tune.report.latex import latex_table, latex_tables
from cma_tune.report.methods import Place, averages, having_all, places

CSV_COLUMNS = (
    "protocol", "dataset", "backbone", "method", "weight", "shots", "metric", "mean", "interval", "seeds"
)  # fmt: skip
"""`weight` is λ, empty for zero-shot, for a λ chosen by seed and in averages over several λ; `interval` is
empty for a single run; `seeds` is the number of runs behind the mean. Averages over datasets follow, with
"average over 11" (or "3 of 11") for the dataset; where these have other seeds, `seeds` is empty."""

NO_RUN = "–"
BOLD_NOTE = "Bold: the highest mean of a column, which is no test of significance."


def format_tables(tables: Sequence[Table], form: str) -> str:
    """All tables in one form; empty without tables, except for the header of CSV.

    Args:
        tables: of `build_tables`.
        form: "text" (aligned columns), "csv" (one line a figure, see `CSV_COLUMNS`), "markdown", or "latex"
            (needs the packages booktabs, graphicx and textcomp; a table longer than a page becomes several).

    Raises:
        UserError: there is no such form.
    """
    forms: dict[str, Callable[[Sequence[Table]], str]] = {
        "text": lambda several: "\n".join(map(_text, several)),
        "csv": _csv,
        "markdown": lambda several: "\n".join(map(_markdown, several)),
        "latex": lambda several: latex_tables([*map(_latex, several)]),
    }
    if form not in forms:
        raise UserError(f"Expected a format out of {', '.join(forms)}, got '{form}'{nearest(form, forms)}.")
    return forms[form](tables)


def shown_cells(table: Table) -> list[list[str]]:
    """Cells as text, row by row, with the number of seeds where it is not the usual one."""
    digits = 3 if table.kind == "alignment" else 2
    rows = []
    for row in table.rows:
        cells = []
        for cell in row.cells:
            if cell is None:
                cells.append(NO_RUN)
                continue
            text = f"{cell.mean:.{digits}f}"
            if cell.interval is not None:
                text += f" ± {cell.interval:.{digits}f}"
            if row.group.learner != "zero_shot" and len(cell.values) != table.seeds:
                text += f" (n={len(cell.values)})"
            cells.append(text)
        rows.append(cells)
    return rows


def best_cells(table: Table) -> set[tuple[int, int]]:
    """(row, column) of the highest mean as printed, in columns of accuracy where not all are the same."""
    best: set[tuple[int, int]] = set()
    if table.kind != "accuracy":
        return best
    for column in range(len(table.columns)):
        means = {
            row: round(cell.mean, 2)
            for row, content in enumerate(table.rows)
            if (cell := content.cells[column]) is not None
        }
        if len(set(means.values())) > 1:
            best |= {(row, column) for row, mean in means.items() if mean == max(means.values())}
    return best


def _text(table: Table) -> str:
    body = [["method", *table.columns]]
    body += [[row.name, *cells] for row, cells in zip(table.rows, shown_cells(table), strict=True)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = []
    for cells in body:
        first, *others = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([first, *others]).rstrip())
    rule = "─" * max(map(len, lines))
    return "\n".join([table.title, rule, lines[0], rule, *lines[1:], rule, *table.notes]) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            where = (row.group.records[0].protocol, table.dataset, table.backbone, row.group.name)
            for cell in filter(None, row.cells):
                writer.writerow(_csv_line(where, row.group.weight_at(cell.shots), cell, len(cell.values)))
    for place in places(tables):
        writer.writerows(_averages(place) if len(place.datasets) > 1 else ())
    return buffer.getvalue()


def _csv_line(
    where: tuple[str, ...], weight: float | None, cell: Cell, seeds: int | None
) -> tuple[object, ...]:
    """A line of `CSV_COLUMNS`; what there is not stays empty."""
    figures = (weight, cell.shots, cell.metric, cell.mean, cell.interval, seeds)
    return (*where, *("" if figure is None else figure for figure in figures))


def _averages(place: Place) -> Iterable[tuple[object, ...]]:
    """Lines of averages over datasets; those over fewer than the place has say so."""
    several = len(place.datasets)
    together = (("accuracy",),) if place.protocol == "few-shot" else (tuple(BASE_TO_NOVEL), tuple(AMONG_ALL))
    for method, metrics in product(place.methods, together):
        zero_shot = method.learner == "zero_shot"
        for shots in [0] if zero_shot else place.shots:
            having = len(having_all(method, place.datasets, shots, metrics))
            over = f"average over {several if having == several else f'{having} of {several}'}"
            where = ("zero-shot" if zero_shot else place.protocol, over, place.backbone, method.name)
            for cell in averages(method, place.datasets, shots, metrics).values():
                yield _csv_line(where, method.weight, cell, len(cell.seeds) or None)


def _markdown(table: Table) -> str:
    best = best_cells(table)
    lines = [f"### {markdown_escaped(table.title)}", ""]
    lines.append("| " + " | ".join(["method", *table.columns]) + " |")
    lines.append("|" + "|".join([" :-- ", *[" --: "] * len(table.columns)]) + "|")
    for number, (row, cells) in enumerate(zip(table.rows, shown_cells(table), strict=True)):
        marked = [f"**{text}**" if (number, column) in best else text for column, text in enumerate(cells)]
        lines.append("| " + " | ".join([markdown_escaped(row.name), *marked]) + " |")
    notes = [markdown_escaped(note) for note in _notes(table, best)]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes[:-1]), *notes[-1:]]).rstrip() + "\n"


def _latex(table: Table) -> list[str]:
    best = best_cells(table)
    rows = [
        [(row.name, False), *((text, (number, column) in best) for column, text in enumerate(cells))]
        for number, (row, cells) in enumerate(zip(table.rows, shown_cells(table), strict=True))
    ]
    caption = (f"{table.title}.", *_notes(table, best))
    return latex_table(caption, 1, ("method", *table.columns), rows)


def _notes(table: Table, best: set[tuple[int, int]]) -> list[str]:
    return [*table.notes, *([BOLD_NOTE] if best else [])]
