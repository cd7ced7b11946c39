"""``cma-tune inspect``: a page of tables and pictures on what a run's learned prompt changed."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cma_tune.build import Setup
from cma_tune.files import write_atomically, write_json, write_text
from cma_tune.inspection.figures import confusion_matrix, part_figures
from cma_tune.inspection.image_grid import changes_picture
from cma_tune.inspection.outputs import Outputs, Part, load_parts, load_run
from cma_tune.inspection.page import method_name, page, part_sheets
from cma_tune.inspection.pictures import confusion_picture, reliability_picture, similarity_picture
from cma_tune.options import InspectConfig
from cma_tune.report.sheets import format_sheets
from cma_tune.value_checks import at_least, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, FIGURES = "inspect.md", "inspect.json"


def inspect(config: InspectConfig) -> None:
    """Compare a run's learned prompt with zero-shot on its test images; nothing is trained.

    Leaves ``inspect.md``, ``inspect.json`` with all figures, pictures and confusion matrices as CSV.

    Raises:
        UserError: a value is out of its range; see also `load_run` and `load_parts`.
    """
    for name in ("images", "rows"):
        at_least(name, getattr(config, name), 1)
    folder = Path(config.folder)
    output = Path(config.output) if config.output else folder / "inspect"
    check_output(output, written=folder.is_dir())  # else the missing record is told of first
    record, setup = load_run(config)
    parts = load_parts(folder, record, setup)
    if not setup.accelerator.is_main_process:
        return
    pictures = {part.name: _leave_pictures(part, output, setup, config.images) for part in parts}
    for part in parts:
        for when, outputs in (("before", part.before), ("after", part.after)):
            write_text(output / f"{part.name}_confusion_{when}.csv", confusion_csv(part, outputs))
    about: dict[str, Any] = {
        "run": record.run,
        "protocol": record.protocol,
        "dataset": record.dataset["name"],
    }
    about |= {"backbone": record.backbone["name"], "learner": record.learner, "weight": record.weight}
    about |= {"shots": record.shots, "seed": record.seed}
    write_json(output / FIGURES, {**about, "parts": {p.name: part_figures(p, config.rows) for p in parts}})
    write_text(output / PAGE, page(record, parts, pictures, config.rows))
    for part in parts:
        print(f"{part.name}: {len(part.items)} images of {len(part.class_names)} classes\n")
        print(format_sheets(part_sheets(part, method_name(record), config.rows), "text"))
    print(f"page: {output / PAGE}")


def _leave_pictures(part: Part, output: Path, setup: Setup, count: int) -> dict[str, str]:
    """Draw and save the pictures of one part; file names by title."""
    drawn: dict[str, tuple[str, Figure | None]] = {
        "Similarity": ("similarity", similarity_picture(part)),
        "Predictions that changed": ("changes", changes_picture(part, setup.dataset.images, count)),
        "Confusion": ("confusion", confusion_picture(part)),
        "Reliability": ("reliability", reliability_picture(part)),
    }
    names: dict[str, str] = {}
    for title, (kind, figure) in drawn.items():
        path = output / f"{part.name}_{kind}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier inspection
            continue
        write_atomically(path, partial(figure.savefig, format="png"))
        names[title] = path.name
    return names


def confusion_csv(part: Part, outputs: Outputs) -> str:
    """Images by true class (lines) and predicted class (columns)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["true class", *part.class_names])
    for name, counts in zip(part.class_names, confusion_matrix(outputs).tolist(), strict=True):
        writer.writerow([name, *counts])
    return buffer.getvalue()
