"""What tables say of CoOp with the CMA loss beside CoOp alone, in one sentence made from the figures."""

from __future__ import annotations

from collections.abc import Iterable

from cma_tune.records import Record
from cma_tune.report.cells import BASE_TO_NOVEL, Cell, Row, Table
from cma_tune.report.groups import learner_name, shots_text
from cma_tune.report.tables import build_tables

_COMPARED = {"few-shot": "accuracy", "base-to-novel": "harmonic_mean"}
"""The figure that is compared, by protocol."""
WITHIN = "within the intervals"


def comparison_sentence(records: Iterable[Record]) -> str | None:
    """How each λ above 0 compares to λ = 0 of the same method, in percentage points of the means over seeds.

    A difference is called higher or lower where the two 95 % intervals don't overlap, "within the intervals"
    where they do, and has no word where a single seed gives no interval. Few-shot is compared in accuracy,
    base-to-novel in the harmonic mean.

    Args:
        records: of zero-shot, few-shot and base-to-novel.

    Returns:
        One sentence, or None where nothing can be compared.

    Raises:
        UserError: as `build_tables`.
    """
    parts = [part for table in build_tables(records) if table.kind == "accuracy" for part in _parts(table)]
    if not parts:
        return None
    close = f"; '{WITHIN}' is too close to tell from these seeds" if any(WITHIN in p for p in parts) else ""
    return f"What the CMA loss changed here, in points of the mean: {'; '.join(parts)}{close}."


def _parts(table: Table) -> Iterable[str]:
    """One text for each method of the table that ran with and without the penalty."""
    metric = _COMPARED.get(table.protocol)
    by_learner: dict[str, list[Row]] = {}
    for row in table.rows:
        by_learner.setdefault(row.group.learner, []).append(row)
    for learner, rows in by_learner.items():
        plain = [row for row in rows if row.group.weight == 0 and not row.group.selected]
        with_penalty = [row for row in rows if row not in plain]
        if metric is None or len(plain) != 1:
            continue  # with several settings of the plain method, none of them is the one to compare to
        without = {cell.shots: cell for cell in plain[0].cells if cell and cell.metric == metric}
        shown = [text for row in with_penalty if (text := _differences(row, without, metric, table))]
        if shown:
            figure = "accuracy" if metric == "accuracy" else BASE_TO_NOVEL[metric]
            at = f" at {shots_text(table.shots)}" if table.shots is not None else ""
            yield f"{learner_name(learner)} on {table.dataset}{at}, {figure}: {', '.join(shown)}"


def _differences(row: Row, without: dict[int, Cell], metric: str, table: Table) -> str:
    name = row.name.partition(" + CMA, ")[2]
    pairs = [
        (cell, without[cell.shots])
        for cell in row.cells
        if cell and cell.metric == metric and cell.shots in without
    ]
    if not pairs:
        return ""
    if table.shots is not None:
        return f"{name} {_difference(*pairs[0])}"
    return f"{name} " + ", ".join(f"at {shots_text(pair[0].shots)} {_difference(*pair)}" for pair in pairs)


def _difference(cell: Cell, other: Cell) -> str:
    difference = cell.mean - other.mean
    shown = f"{difference:+.2f}".replace("-", "−")
    if cell.interval is None or other.interval is None:
        return f"{shown} (one seed, no interval)"
    if abs(difference) <= cell.interval + other.interval:
        return f"{shown} ({WITHIN})"
    return f"{shown} ({'higher' if difference > 0 else 'lower'})"
