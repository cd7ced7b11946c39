"""The figures of a shared prompt in readable names, with zero-shot's beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cma_tune.records import FILE, Record, load_record

PERCENT, POINTS, COSINE = " %", " points", ""
"""Units; a cosine has none."""


class _Figure(NamedTuple):
    name: str
    images: str
    unit: str


_OWN = "mean cosine of an image and its class's text"
_ALL = "mean cosine of an image and all classes' texts"
_CALIBRATION = "expected calibration error (15 bins)"
_AMONG_ALL = "accuracy among all classes' names"
_BASE, _NOVEL = "test, base classes", "test, novel classes"

FIGURES = {
    "validation_accuracy": _Figure("accuracy", "validation", PERCENT),
    "accuracy": _Figure("accuracy", "test", PERCENT),
    "base_accuracy": _Figure("accuracy", _BASE, PERCENT),
    "novel_accuracy": _Figure("accuracy", _NOVEL, PERCENT),
    "harmonic_mean": _Figure("harmonic mean of both accuracies", "test", PERCENT),
    "base_accuracy_among_all": _Figure(_AMONG_ALL, _BASE, PERCENT),
    "novel_accuracy_among_all": _Figure(_AMONG_ALL, _NOVEL, PERCENT),
    "harmonic_mean_among_all": _Figure("harmonic mean of both among all names", "test", PERCENT),
    "class_similarity": _Figure(_OWN, "test", COSINE),
    "novel_class_similarity": _Figure(_OWN, _NOVEL, COSINE),
    "modal_similarity": _Figure(_ALL, "test", COSINE),
    "novel_modal_similarity": _Figure(_ALL, _NOVEL, COSINE),
    "ece": _Figure(_CALIBRATION, "test", POINTS),
    "novel_ece": _Figure(_CALIBRATION, _NOVEL, POINTS),
}
"""Figures of records, as a model card calls them."""

ON_BASE = ("class_similarity", "modal_similarity", "ece")
"""Figures that are of the base classes alone where a prompt was learned on them; zero-shot's are of all."""


def figure_table(figures: Mapping[str, float], zero_shot: Record | None) -> list[tuple[str, ...]]:
    """Rows with a head, nothing without figures; zero-shot's beside those that are of the same images."""
    if not figures:
        return []
    beside = zero_shot.figures if zero_shot is not None else {}
    head = ("figure", "images", "learned", *(("zero-shot",) if beside else ()))
    return [head, *_rows(figures, beside)]


def _rows(figures: Mapping[str, float], beside: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    halves = _halves(figures)
    for key, value in figures.items():
        name, images, unit = FIGURES.get(key, _Figure(key.replace("_", " "), "test", COSINE))
        on_base = halves and key in ON_BASE
        known = key in beside and not on_base
        own = (name, _BASE if on_base else images, _text(value, unit))
        yield (*own, *((_text(beside[key], unit) if known else "",) if beside else ()))


def _halves(figures: Mapping[str, float]) -> bool:
    """Whether they are of a prompt that was learned on the base classes."""
    return "base_accuracy" in figures and "accuracy" not in figures


def _text(value: float, unit: str) -> str:
    return f"{value:.2f}{unit}" if unit else f"{value:.4f}"


def accuracy_results(figures: Mapping[str, float], dataset: str) -> list[Any]:
    """The test accuracies in the form that the Hub shows."""
    from huggingface_hub import EvalResult

    shown = {key: FIGURES[key] for key in figures if key in FIGURES and FIGURES[key].unit == PERCENT}
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"{figure.name}, {figure.images} (%)",
            metric_value=round(figures[key], 4),
        )
        for key, figure in shown.items()
        if figure.images != "validation"
    ]


def zero_shot_beside(run: Path, record: Record) -> Record | None:
    """The record of zero-shot on the same split and backbone below the same output, if there is one.

    Args:
        run: folder of a run, PROTOCOL/DATASET/BACKBONE/METHOD/SHOTS/SEED below its output.
        record: the run's.
    """
    if len(run.parents) < 6:
        return None
    backbone, dataset = run.parents[2].name, run.parents[3].name
    path = run.parents[5] / "zero-shot" / dataset / backbone / "zero_shot" / FILE
    if not path.is_file():
        return None
    found = load_record(path)
    return found if found.ground() == record.ground() else None
