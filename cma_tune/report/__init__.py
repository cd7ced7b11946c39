"""Tables and figures from records; nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cma_tune.errors import UserError
from cma_tune.records import find_results
from cma_tune.report.cells import Table
from cma_tune.report.companion import PROTOCOLS as COMPANION
from cma_tune.report.companion import companion_sheets
from cma_tune.report.comparison import comparison_sentence
from cma_tune.report.figures import draw_figures
from cma_tune.report.formats import format_tables
from cma_tune.report.lab import PROTOCOL as LAB
from cma_tune.report.lab import draw_lab_figures
from cma_tune.report.overview import overview_sheets
from cma_tune.report.page import write_page
from cma_tune.report.published import against_paper
from cma_tune.report.sheets import Sheet, format_sheets
from cma_tune.report.tables import build_tables
from cma_tune.value_checks import check_writable

__all__ = ["build_tables", "comparison_sentence", "draw_figures", "format_tables", "report"]


def report(
    folder: str,
    form: str = "text",
    figures: str | None = None,
    against: str | None = None,
    compare: Sequence[str] = (),
    html: str | None = None,
) -> None:
    """Print the tables of all records below `folder` and draw their figures.

    Tables of every dataset come first, then, from two datasets on, those over datasets, then the comparisons.
    The companion's runs have tables of their own, the laboratory's experiments a figure each and no table. As
    csv the tables over datasets are left out, whose averages stand below the figures; what has other columns
    comes behind an empty line and has a header of its own. A file called like a record that is none, such as
    another program's, is named on stderr and left out.

    Args:
        folder: folder with records.
        form: "text", "csv", "markdown" or "latex".
        figures: folder for the figures; by default `folder`.
        against: "paper" puts the published figures beside ours.
        compare: two methods for paired tests.
        html: file for a page with all tables and figures in it.

    Raises:
        UserError: there is no such folder, no record in it, an unknown form, records that contradict each
            other, an experiment without its curves, nothing to compare, a folder in the page's place or a
            file in the figures'.
    """
    if html is not None and Path(html).is_dir():
        raise UserError(f"Expected a file for --html, got the folder {html}; name a file in it.")
    if html is not None:
        check_writable("html", Path(html).parent)
    if figures is not None:
        check_writable("figures", figures)
    found = list(find_results(Path(folder), _say_skipped))
    experiments = [(where, record) for where, record in found if record.protocol == LAB]
    trained = [record for _, record in found if record.protocol in COMPANION]
    results = [(where, record) for where, record in found if record.protocol not in (LAB, *COMPANION)]
    tables = build_tables([record for _, record in results])
    compared = _comparisons(tables, against, compare, {record.run: where for where, record in results})
    companion = companion_sheets(trained)
    sheets = [*overview_sheets(tables), *companion, *compared]
    print("\n".join(_formatted(tables, sheets, companion, compared, form)), end="")
    drawn = draw_figures([record for _, record in results], Path(figures or folder))
    drawn += draw_lab_figures(experiments, Path(figures or folder))
    for path in drawn:
        print(f"figure: {path}", file=sys.stderr)  # so that the tables can be redirected into a file
    if html is not None:
        write_page(Path(html), tables, sheets, drawn)
        print(f"page: {html}", file=sys.stderr)


def _formatted(
    tables: Sequence[Table],
    sheets: Sequence[Sheet],
    companion: Sequence[Sheet],
    compared: Sequence[Sheet],
    form: str,
) -> list[str]:
    texts = [format_tables(tables, form)] if tables or not sheets else []
    if form == "csv":  # tables over datasets repeat what the first ones say
        several = [*([sheet] for sheet in companion), *([compared] if compared else [])]
        return [*texts, *(format_sheets(together, form) for together in several)]
    return [*texts, *([format_sheets(sheets, form)] if sheets else [])]


def _comparisons(
    tables: Sequence[Table], against: str | None, compare: Sequence[str], folders: Mapping[str, Path]
) -> list[Sheet]:
    if against not in (None, "paper"):
        raise UserError(f"Expected 'paper' for --against, got '{against}'.")
    sheets = against_paper(tables) if against else []
    if compare:
        from cma_tune.report.paired import paired_sheets  # loads torch

        sheets += paired_sheets(tables, compare, folders)
    return sheets


def _say_skipped(mistake: UserError) -> None:
    print(f"skipped: {mistake}", file=sys.stderr)
