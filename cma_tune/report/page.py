"""The report as one self-contained HTML page: tables that sort, figures inside, nothing from the network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cma_tune.files import write_text
from cma_tune.report.cells import Table
from cma_tune.report.formats import BOLD_NOTE, best_cells, shown_cells
from cma_tune.report.sheets import Content, Entry, Sheet, Span, shown

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; }
body { margin: 0 auto; padding: 1.5rem; max-width: 1200px; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #ccc; }
nav ul { columns: 2; padding-left: 1.1rem; margin: .3rem 0; font-size: .9rem; }
nav li { break-inside: avoid; }
figure { margin: 1rem 0; }
figure img { max-width: min(100%, 660px); height: auto; border: 1px solid #ddd; }
section { margin: 1.4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
caption { caption-side: top; text-align: left; font-weight: 600; padding: .3rem 0; white-space: nowrap; }
th, td { padding: .18rem .6rem; text-align: right; white-space: nowrap; }
th { border-top: 2px solid #333; border-bottom: 1px solid #333; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
th.label, td.label { text-align: left; }
tr.rule td { border-top: 1px solid #999; }
table.sorted tr.rule td { border-top: none; }
table.sorted tr:not(.average) + tr.average td { border-top: 1px solid #999; }
tbody tr:last-child td { border-bottom: 2px solid #333; }
.notes { color: #444; font-size: .83rem; max-width: 70rem; margin: .3rem 0; }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = table.tHead.rows[0].cells;
  for (const [column, head] of [...heads].entries()) {
    head.querySelector("button").addEventListener("click", () => {
      // Names begin at A, figures at the highest; a second click turns it round.
      const label = head.classList.contains("label");
      const up = head.ariaSort ? head.ariaSort === "descending" : label;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = up ? "ascending" : "descending";
      const key = (row) => row.cells[column].dataset.value;
      const averages = [...body.querySelectorAll("tr.average")];
      const rows = [...body.querySelectorAll("tr:not(.average)")].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");  // nothing stands last, either way
        const words = label || Number.isNaN(Number(x)) || Number.isNaN(Number(y));
        const order = words ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y);
        return up ? order : -order;
      });
      table.classList.add("sorted");
      for (const cell of body.querySelectorAll("td.label"))  // a name stood for the rows below it too
        if (!cell.textContent) cell.textContent = cell.dataset.value;
      body.append(...rows, ...averages);
    });
  }
}
"""


@dataclass(frozen=True)
class _Cell:
    text: str
    value: str
    best: bool = False


def write_page(path: Path, tables: Sequence[Table], sheets: Sequence[Sheet], figures: Sequence[Path]) -> None:
    """Write the page, atomically.

    Tables over datasets and comparisons come first, then figures, then the tables of every dataset. A click
    on a column's head sorts by it; rows over all datasets stay below.

    Args:
        path: of the page.
        tables: of `build_tables`.
        sheets: tables over datasets, and comparisons.
        figures: PNG files, which become part of the page.
    """
    parts = [_sheet(sheet, number) for number, sheet in enumerate(sheets)]
    images = [_image(figure) for figure in figures]
    rest = [_table(table, len(sheets) + number) for number, table in enumerate(tables)]
    sections = [("Over datasets and comparisons", parts), ("Figures", images), ("Every dataset", rest)]
    over = _links([sheet.title for sheet in sheets], 0)
    each = _links([table.title for table in tables], len(sheets))
    # Many tables would push away those over datasets; alone they are what the page is about.
    more = f"<details{'' if sheets else ' open'}><summary>Tables of every dataset</summary>{each}</details>"
    body = "".join(f"<h2>{name}</h2>{''.join(several)}" for name, several in sections if several)
    write_text(
        path,
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>cma-tune report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><h1>cma-tune report</h1><nav>{over}{more}</nav>\n"
        f"{body}\n<script>{SCRIPT}</script></body></html>\n",
    )


def _links(titles: Sequence[str], first: int) -> str:
    lines = (f'<li><a href="#t{i}">{escape(title)}</a></li>' for i, title in enumerate(titles, first))
    return f"<ul>{''.join(lines)}</ul>" if titles else ""


def _sheet(sheet: Sheet, number: int) -> str:
    rows = []
    names = [""] * sheet.labels
    for row in sheet.rows:
        # A name that stands for the rows below it too goes with each of them when they are sorted.
        names = [shown(e) if e != "" else names[i] for i, e in enumerate(row[: sheet.labels])]
        rows.append([_cell(e, names[i] if i < sheet.labels else None) for i, e in enumerate(row)])
    return _html(
        number,
        sheet.title,
        sheet.headers,
        rows,
        sheet.notes_with_bold(),
        labels=sheet.labels,
        rules=sheet.rules,
        averages=sheet.averages,
    )


def _cell(content: Content, name: str | None) -> _Cell:
    if isinstance(content, Entry):
        return _Cell(content.text(), repr(content.value), content.best)
    if isinstance(content, Span):
        return _Cell(content.text(), repr(content.low))
    if content is None:
        return _Cell(shown(content), "")
    return _Cell(content, content if name is None else name)


def _table(table: Table, number: int) -> str:
    best = best_cells(table)
    rows = []
    for i, (row, texts) in enumerate(zip(table.rows, shown_cells(table), strict=True)):
        cells = [_Cell(row.name, row.name)]
        for j, (cell, text) in enumerate(zip(row.cells, texts, strict=True)):
            cells.append(_Cell(text, repr(cell.mean) if cell else "", (i, j) in best))
        rows.append(cells)
    notes = (*table.notes, BOLD_NOTE) if best else table.notes
    return _html(number, table.title, ("method", *table.columns), rows, notes)


def _html(
    number: int,
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[_Cell]],
    notes: Sequence[str],
    labels: int = 1,
    rules: frozenset[int] = frozenset(),
    averages: frozenset[int] = frozenset(),
) -> str:
    def kind(column: int) -> str:
        return ' class="label"' if column < labels else ""

    head = "".join(
        f'<th scope="col"{kind(i)}><button type="button">{escape(name)}</button></th>'
        for i, name in enumerate(headers)
    )
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(
            f'<td{kind(j)} data-value="{escape(cell.value)}">'
            f"{'<b>' if cell.best else ''}{escape(cell.text)}{'</b>' if cell.best else ''}</td>"
            for j, cell in enumerate(row)
        )
        kinds = " ".join(["rule"] * (i in rules) + ["average"] * (i in averages))
        lines.append(f'<tr class="{kinds}">{cells}</tr>' if kinds else f"<tr>{cells}</tr>")
    said = "".join(f'<p class="notes">{escape(note)}</p>' for note in notes)
    return (
        f'<section id="t{number}"><div class="scroll"><table><caption>{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{said}</section>\n"
    )


def _image(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    name = escape(path.stem.replace("_", " "))
    return f'<figure><img alt="{name}" src="data:image/png;base64,{content}"></figure>\n'
