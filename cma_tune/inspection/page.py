"""One Markdown page out of figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cma_tune.inspection.figures import ClassChange, most_changed, most_confused, most_similar, summary
from cma_tune.inspection.outputs import Outputs, Part
from cma_tune.records import Record
from cma_tune.report.escapes import markdown_escaped
from cma_tune.report.groups import learner_name, shots_text
from cma_tune.report.sheets import Content, Entry, Sheet, format_sheets

CALIBRATION_NOTE = (
    "ECE: expected calibration error over 15 bins of equal width, in percentage points (Guo et al. 2017); "
    "biased upward for few images. NLL in nats. Lower is better for ECE, NLL and Brier score."
)


def method_name(record: Record) -> str:
    """The method with its λ."""
    name = learner_name(record.learner)
    return f"{name} + CMA, λ={record.weight:g}" if record.weight else name


def page(record: Record, parts: Sequence[Part], pictures: Mapping[str, Mapping[str, str]], rows: int) -> str:
    """The page.

    Args:
        record: of the run.
        parts: with outputs before and after.
        pictures: file names by title, by the name of the part.
        rows: entries of each list of classes, at most.
    """
    templates = ", ".join(f"“{template}”" for template in record.dataset.get("templates", []))
    backbone = str(record.backbone["name"])
    about = (
        f"{method_name(record)}, {shots_text(record.shots)}, seed {record.seed}, on "
        f"{record.config['dataset']} with {backbone.rpartition('/')[2]}; before: zero-shot with {templates}. "
        "All of it on test images: to read, not to choose by."
    )
    lines = ["# What learning changed", "", markdown_escaped(about), ""]
    for part in parts:
        heading = f"## {part.name.capitalize()}: {len(part.items)} images of {len(part.class_names)} classes"
        lines += [heading, "", format_sheets(part_sheets(part, method_name(record), rows), "markdown")]
        for title, name in pictures[part.name].items():
            lines += [f"### {title}", "", f"![{title}]({name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def part_sheets(part: Part, method: str, rows: int) -> list[Sheet]:
    """The tables of one part."""
    won, lost = most_changed(part, rows)
    sheets = [
        Sheet(
            "Accuracy and calibration",
            (
                "",
                "accuracy (%)",
                "mean confidence (%)",
                "ECE",
                "NLL",
                "Brier score",
                "cosine between classes",
            ),
            (_summary("Zero-shot", part.before), _summary(method, part.after)),
            (CALIBRATION_NOTE,),
        )
    ]
    sheets += [
        Sheet(
            title,
            ("class", "images", "right before", "right after", "difference"),
            tuple(map(_change, changes)),
        )
        for title, changes in (("Classes that gained most", won), ("Classes that lost most", lost))
        if changes
    ]
    confused = most_confused(part, rows)
    if confused:
        headers = ("true class", "predicted class", "images", "of", "before")
        pairs = tuple(
            (one.true, one.predicted, *map(str, (one.images, one.of, one.before))) for one in confused
        )
        sheets.append(Sheet("Most confused after learning", headers, pairs, labels=2))
    similar = most_similar(part, rows)
    if similar:
        columns = ("class", "other class", "cosine before", "cosine after")
        neighbours = tuple(
            (one.first, one.second, Entry(one.before, digits=3), Entry(one.after, digits=3))
            for one in similar
        )
        sheets.append(Sheet("Most similar classes after learning", columns, neighbours, labels=2))
    return sheets


def _summary(name: str, outputs: Outputs) -> tuple[Content, ...]:
    figures = summary(outputs)
    digits = {"accuracy": 2, "confidence": 2, "ece": 2, "nll": 3, "brier": 3, "similarity_between_classes": 3}
    return (name, *(Entry(figures[key], digits=number) for key, number in digits.items()))


def _change(change: ClassChange) -> tuple[Content, ...]:
    figures = (change.images, change.before, change.after)
    return (change.name, *map(str, figures), f"{change.difference:+d}".replace("-", "−"))
