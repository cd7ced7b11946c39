"""Tables over datasets as plain rows of texts and figures, in every form a report has."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cma_tune.errors import UserError
from cma_tune.report.escapes import markdown_escaped
from cma_tune.report.latex import latex_table, latex_tables

NOTHING = "–"


@dataclass(frozen=True)
class Entry:
    """One figure.

    Attributes:
        value: percent, points, a cosine or a probability.
        interval: half width of its 95 % interval, None where there is none.
        note: stands behind it, such as "(λ=0.3)".
        best: the highest of those it stands among.
        digits: after the point.
        signed: a difference, shown with its sign.
    """

    value: float
    interval: float | None = None
    note: str = ""
    best: bool = False
    digits: int = 2
    signed: bool = False

    def text(self) -> str:
        """As a reader sees it: ``71.00 ± 0.92 (λ=0.3)``."""
        least = 10.0**-self.digits
        if 0 < self.value < least / 2 and not self.signed:  # a probability that is small, but not 0
            return f"<{least:.{self.digits}f}"
        number = f"{self.value:{'+' if self.signed else ''}.{self.digits}f}".replace("-", "−")
        spread = "" if self.interval is None else f" ± {self.interval:.{self.digits}f}"
        return f"{number}{spread}{f' {self.note}' if self.note else ''}"


Content = str | Entry | None


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: what it shows, with unit.
        headers: of the columns.
        rows: as many entries each; None where there is nothing.
        notes: sentences below it.
        rules: rows above which a line separates what stands before.
        labels: how many leading columns hold names.
        bold: sentence on what bold figures are, for the forms that have bold.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Content, ...], ...]
    notes: tuple[str, ...] = ()
    rules: frozenset[int] = frozenset()
    labels: int = 1
    bold: str = ""

    def notes_with_bold(self) -> tuple[str, ...]:
        """The notes of a form that has bold."""
        return (
            (*self.notes, self.bold) if self.bold and any(map(_is_best, sum(self.rows, ()))) else self.notes
        )


def shown(content: Content) -> str:
    """An entry as text."""
    if content is None:
        return NOTHING
    return content if isinstance(content, str) else content.text()


def format_sheets(sheets: Sequence[Sheet], form: str) -> str:
    """All sheets as "text", "markdown" or "latex"; as "csv", sheets of the same columns under one header.

    Raises:
        UserError: sheets of different columns as csv.
    """
    forms: dict[str, Callable[[Sequence[Sheet]], str]] = {
        "text": lambda several: "\n".join(map(_text, several)),
        "markdown": lambda several: "\n".join(map(_markdown, several)),
        "latex": lambda several: latex_tables([*map(_latex, several)]),
        "csv": _csv,
    }
    return forms[form](sheets)


def _text(sheet: Sheet) -> str:
    body = [list(sheet.headers), *([shown(entry) for entry in row] for row in sheet.rows)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = ["  ".join(t.ljust(w) for t, w in zip(texts, widths, strict=True)).rstrip() for texts in body]
    rule = "─" * max(map(len, lines))
    out = [sheet.title, rule, lines[0], rule]
    for number, line in enumerate(lines[1:]):
        out += [rule, line] if number in sheet.rules else [line]
    return "\n".join([*out, rule, *sheet.notes]) + "\n"


def _markdown(sheet: Sheet) -> str:
    sides = [":--" if column < sheet.labels else "--:" for column in range(len(sheet.headers))]
    lines = [f"### {markdown_escaped(sheet.title)}", "", f"| {' | '.join(sheet.headers)} |"]
    lines.append("|" + "|".join(f" {side} " for side in sides) + "|")
    for row in sheet.rows:
        texts = [markdown_escaped(shown(entry)) for entry in row]
        marked = [f"**{t}**" if _is_best(e) else t for t, e in zip(texts, row, strict=True)]
        lines.append(f"| {' | '.join(marked)} |")
    notes = list(map(markdown_escaped, sheet.notes_with_bold()))
    return "\n".join([*lines, "", *(f"{note}  " for note in notes[:-1]), *notes[-1:]]).rstrip() + "\n"


def _latex(sheet: Sheet) -> str:
    columns = "l" * sheet.labels + "r" * (len(sheet.headers) - sheet.labels)
    rows = [[(shown(entry), _is_best(entry)) for entry in row] for row in sheet.rows]
    caption = (f"{sheet.title}.", *sheet.notes_with_bold())
    return latex_table("table*", caption, columns, sheet.headers, rows, sheet.rules)


def _csv(sheets: Sequence[Sheet]) -> str:
    """Figures in full, intervals and notes in columns of their own where a column has any."""
    headers = {sheet.headers for sheet in sheets}
    if len(headers) > 1:
        raise UserError(
            f"Expected tables of the same columns for csv, got {len(headers)} kinds; "
            "choose another --format, or one table at a time."
        )
    rows = [row for sheet in sheets for row in sheet.rows]
    entries = [
        [row[i] for row in rows if isinstance(row[i], Entry)] for i in range(len(next(iter(headers), ())))
    ]
    with_interval = [any(e.interval is not None for e in column) for column in entries]  # type: ignore[union-attr]
    with_note = [any(e.note for e in column) for column in entries]  # type: ignore[union-attr]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for header in headers:
        names = ["table"]
        for i, name in enumerate(header):
            names += [name, *([f"{name} interval"] if with_interval[i] else [])]
            names += [f"{name} note"] if with_note[i] else []
        writer.writerow(names)
    for sheet in sheets:
        for row in sheet.rows:
            line: list[object] = [sheet.title]
            for i, entry in enumerate(row):
                figure = entry if isinstance(entry, Entry) else None
                line.append(entry.value if isinstance(entry, Entry) else entry or "")
                if with_interval[i]:
                    line.append("" if figure is None or figure.interval is None else figure.interval)
                if with_note[i]:
                    line.append(figure.note if figure else "")
            writer.writerow(line)
    return buffer.getvalue()


def _is_best(content: Content) -> bool:
    return isinstance(content, Entry) and content.best
