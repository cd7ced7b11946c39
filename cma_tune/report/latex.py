"""Tables in LaTeX: booktabs, one float each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cma_tune.report.escapes import latex_escaped

HEAD = r"% \usepackage{booktabs,textcomp}"

FLOATS = 12
"""Tables between two ``\\clearpage``: LaTeX gives up over too many that wait for a page."""


def latex_table(
    environment: str,
    caption: Sequence[str],
    columns: str,
    header: Sequence[str],
    rows: Iterable[Sequence[tuple[str, bool]]],
    rules: frozenset[int] = frozenset(),
) -> str:
    """One float.

    Args:
        environment: "table", or "table*" over both columns of a page.
        caption: sentences.
        columns: such as "lrr".
        header: names of the columns.
        rows: texts, and whether they are bold.
        rules: rows above which a line separates what stands before.
    """
    lines = [
        rf"\begin{{{environment}}}",
        r"\centering",
        r"\small",
        # The standard classes leave no room below a caption, which stands above here.
        r"\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{' '.join(map(latex_escaped, caption))}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(latex_escaped, header)) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(rows):
        if number in rules:
            lines.append(r"\midrule")
        marked = [rf"\textbf{{{latex_escaped(t)}}}" if bold else latex_escaped(t) for t, bold in row]
        lines.append(" & ".join(marked) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\end{{{environment}}}"]) + "\n"


def latex_tables(tables: Sequence[str]) -> str:
    """Floats one after another, none where there are none; they can be ``\\input`` as they are."""
    parts = ["\n".join(tables[start : start + FLOATS]) for start in range(0, len(tables), FLOATS)]
    return f"{HEAD}\n" + "\n\\clearpage\n\n".join(parts) if tables else ""
