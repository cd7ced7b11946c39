"""Tables over datasets as plain rows of texts and figures, in every form a report has."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        value = round(self.value, self.digits) + 0.0  # which turns −0 into 0
        number = f"{value:{'+' if self.signed else ''}.{self.digits}f}".replace("-", "−")
        spread = "" if self.interval is None else f" ± {self.interval:.{self.digits}f}"
        return f"{number}{spread}{f' {self.note}' if self.note else ''}"


@dataclass(frozen=True)
class Span:
    """An interval by its two ends, both shown with their sign."""

    low: float
    high: float

    def text(self) -> str:
        """As a reader sees it: ``−1.50 to +0.00``."""
        return f"{Entry(self.low, signed=True).text()} to {Entry(self.high, signed=True).text()}"


Content = str | Entry | Span | None


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
        averages: rows over all datasets, which stay below the others however these are sorted.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Content, ...], ...]
    notes: tuple[str, ...] = ()
    rules: frozenset[int] = frozenset()
    labels: int = 1
    bold: str = ""
    averages: frozenset[int] = frozenset()

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
    """All sheets as "text", "markdown" or "latex"; as "csv", see `_csv`."""
    forms: dict[str, Callable[[Sequence[Sheet]], str]] = {
        "text": lambda several: "\n".join(map(_text, several)),
        "markdown": lambda several: "\n".join(map(_markdown, several)),
        "latex": lambda several: latex_tables([*map(_latex, several)]),
        "csv": _csv,
    }
    return forms[form](sheets)


def _csv(sheets: Sequence[Sheet]) -> str:
    """Sheets of the same columns under one header; an empty line stands before every other header."""
    by_headers: dict[tuple[str, ...], list[Sheet]] = {}
    for sheet in sheets:
        by_headers.setdefault(sheet.headers, []).append(sheet)
    return "\n".join(_csv_of(headers, several) for headers, several in by_headers.items())


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


def _latex(sheet: Sheet) -> list[str]:
    rows = [[(shown(entry), _is_best(entry)) for entry in row] for row in sheet.rows]
    caption = (f"{sheet.title}.", *sheet.notes_with_bold())
    return latex_table(caption, sheet.labels, sheet.headers, rows, sheet.rules, over_columns=True)


def _csv_of(headers: Sequence[str], sheets: Sequence[Sheet]) -> str:
    """Figures in full; intervals, ends of intervals and notes in columns of their own where there are any."""
    columns = [[row[i] for sheet in sheets for row in sheet.rows] for i in range(len(headers))]
    shapes = [_Shape.of(column) for column in columns]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [name for header, shape in zip(headers, shapes, strict=True) for name in shape.names(header)]
    writer.writerow(["table", *names])
    for sheet in sheets:
        for row in sheet.rows:
            fields = [
                field for content, shape in zip(row, shapes, strict=True) for field in shape.fields(content)
            ]
            writer.writerow([sheet.title, *fields])
    return buffer.getvalue()


@dataclass(frozen=True)
class _Shape:
    """Which columns of a CSV file one column of sheets takes."""

    interval: bool
    note: bool
    ends: bool

    @classmethod
    def of(cls, column: Sequence[Content]) -> _Shape:
        entries = [content for content in column if isinstance(content, Entry)]
        return cls(
            interval=any(entry.interval is not None for entry in entries),
            note=any(entry.note for entry in entries),
            ends=any(isinstance(content, Span) for content in column),
        )

    def names(self, header: str) -> list[str]:
        if self.ends:
            return [f"{header} low", f"{header} high"]
        return [header, *([f"{header} interval"] * self.interval), *([f"{header} note"] * self.note)]

    def fields(self, content: Content) -> list[object]:
        if self.ends:
            return [content.low, content.high] if isinstance(content, Span) else ["", ""]
        if not isinstance(content, Entry):
            return [content or "", *([""] * (self.interval + self.note))]
        interval = "" if content.interval is None else content.interval
        return [content.value, *([interval] * self.interval), *([content.note] * self.note)]


def _is_best(content: Content) -> bool:
    return isinstance(content, Entry) and content.best
