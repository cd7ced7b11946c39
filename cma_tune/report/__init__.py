"""Tables and figures from records; nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path

from cma_tune.errors import UserError
from cma_tune.records import find_records
from cma_tune.report.comparison import comparison_sentence
from cma_tune.report.figures import draw_figures
from cma_tune.report.formats import format_tables
from cma_tune.report.tables import build_tables

__all__ = ["build_tables", "comparison_sentence", "draw_figures", "format_tables", "report"]


def report(folder: str, form: str = "text", figures: str | None = None) -> None:
    """Print the tables of all records below `folder` and draw their figures.

    A file called like a record that is none, such as another program's, is named on stderr and left out.

    Args:
        folder: folder with records.
        form: "text", "csv", "markdown" or "latex".
        figures: folder for the figures; by default `folder`.

    Raises:
        UserError: there is no such folder, no record in it, an unknown form, or records that contradict each
            other.
    """
    records = list(find_records(Path(folder), _say_skipped))
    print(format_tables(build_tables(records), form), end="")
    for path in draw_figures(records, Path(figures or folder)):
        print(f"figure: {path}", file=sys.stderr)  # so that the tables can be redirected into a file


def _say_skipped(mistake: UserError) -> None:
    print(f"skipped: {mistake}", file=sys.stderr)
