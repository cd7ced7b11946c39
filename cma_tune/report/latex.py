"""Tables in LaTeX: booktabs, one float each, no wider than the text and no longer than a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise

from cma_tune.report.escapes import latex_escaped

HEAD = r"% \usepackage{booktabs,graphicx,textcomp}"

FLOATS = 12
"""Tables between two ``\\clearpage``: LaTeX gives up over too many that wait for a page."""

# Points in the standard class article at 10 pt with a table in \small: the text of its single column, one of
# its two columns, and what takes up the height.
TEXT_WIDTH, COLUMN_WIDTH, TEXT_HEIGHT = 345.0, 229.0, 550.0
_LETTER, _SEPARATION, _LINE, _RULE = 4.6, 12.0, 11.0, 5.6
_CAPTION_LINE, _CAPTION_LETTERS, _AROUND = 12.0, 66, 50.0
_HEADER_LETTERS = 16
"""Of a header's line, where what stands below is no longer."""

Texts = Sequence[tuple[str, bool]]
"""A row's texts, and whether they are bold."""


def latex_table(
    caption: Sequence[str],
    labels: int,
    header: Sequence[str],
    rows: Sequence[Texts],
    rules: frozenset[int] = frozenset(),
    over_columns: bool = False,
) -> list[str]:
    """One float, or several with the same number where the table is longer than a page.

    A table that is too wide is made smaller (graphicx).

    Args:
        caption: sentences, the title first.
        labels: how many leading columns stand left.
        header: names of the columns.
        rows: texts, and whether they are bold.
        rules: rows above which a line separates what stands before.
        over_columns: over both columns of a page also where the table would fit into one.
    """
    letters = [max((len(row[i][0]) for row in rows), default=0) for i in range(len(header))]
    names = [_wrapped(name, max(_HEADER_LETTERS, below)) for name, below in zip(header, letters, strict=True)]
    widest = [max(below, *map(len, lines)) for below, lines in zip(letters, names, strict=True)]
    width = _LETTER * sum(widest) + _SEPARATION * len(header)
    environment = "table*" if over_columns or width > COLUMN_WIDTH else "table"
    top = _AROUND + _LINE * max(map(len, names))
    continued = f"{caption[0].removesuffix('.')} (continued)."
    floats = []
    for start, end in _pages(len(rows), rules, TEXT_HEIGHT - top, _height(caption), _height([continued])):
        lines = [rf"\begin{{{environment}}}", r"\centering", r"\small"]
        # The standard classes leave no room below a caption, which stands above here.
        lines.append(r"\setlength{\belowcaptionskip}{4pt}")
        lines += [r"\setlength{\tabcolsep}{4pt}"] if width > TEXT_WIDTH else []
        lines += [r"\addtocounter{table}{-1}"] if start else []
        said = [continued] if start else caption
        lines.append(rf"\caption{{{' '.join(map(latex_escaped, said))}}}")
        lines.append(r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")
        lines.append(rf"\begin{{tabular}}{{{'l' * labels}{'r' * (len(header) - labels)}}}")
        lines += [r"\toprule", " & ".join(_head(name, i < labels) for i, name in enumerate(names)) + r" \\"]
        lines.append(r"\midrule")
        for number in range(start, end):
            lines += [r"\midrule"] if number in rules and number > start else []
            lines.append(" & ".join(map(_cell, rows[number])) + r" \\")
        floats.append(
            "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", rf"\end{{{environment}}}"]) + "\n"
        )
    return floats


def latex_tables(tables: Iterable[Sequence[str]]) -> str:
    """Floats one after another, none where there are none; they can be ``\\input`` as they are."""
    floats = [one for several in tables for one in several]
    parts = ["\n".join(floats[start : start + FLOATS]) for start in range(0, len(floats), FLOATS)]
    return f"{HEAD}\n" + "\n\\clearpage\n\n".join(parts) if floats else ""


def _wrapped(name: str, letters: int) -> list[str]:
    return textwrap.wrap(name, letters, break_long_words=False, break_on_hyphens=False) or [""]


def _head(lines: Sequence[str], left: bool) -> str:
    if len(lines) == 1:
        return latex_escaped(lines[0])
    inside = r" \\ ".join(map(latex_escaped, lines))
    return rf"\begin{{tabular}}[b]{{@{{}}{'l' if left else 'r'}@{{}}}}{inside}\end{{tabular}}"


def _cell(content: tuple[str, bool]) -> str:
    text, bold = content
    return rf"\textbf{{{latex_escaped(text)}}}" if bold else latex_escaped(text)


def _height(caption: Sequence[str]) -> float:
    return _CAPTION_LINE * -(-len(" ".join(caption)) // _CAPTION_LETTERS)


def _pages(
    rows: int, rules: frozenset[int], room: float, first: float, later: float
) -> Iterable[tuple[int, int]]:
    """From and to which row a page goes: to a rule where there is one, with captions of these heights."""
    cuts = [0]
    while cuts[-1] < rows:
        start, left = cuts[-1], room - (later if cuts[-1] else first)
        end = start
        while end < rows and (left := left - _LINE - _RULE * (end in rules)) >= 0:
            end += 1
        before = [rule for rule in rules if start < rule <= end]
        cuts.append(rows if end == rows else max(before, default=max(end, start + 1)))
    return pairwise(cuts) if rows else [(0, 0)]
