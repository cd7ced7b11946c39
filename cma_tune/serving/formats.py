"""Predictions as lines of text, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

Format = Literal["text", "csv", "json"]

Labels = Sequence[tuple[str, float]]
"""The most probable labels with their probabilities, in order."""


def lines(predictions: Iterable[tuple[str, Labels]], form: Format) -> Iterator[str]:
    """Lines without their ends, each as soon as its image is there.

    text: the path, a tab, and the labels. csv: a header, then image, rank, label, probability for every
    label. json: one object a line (JSON Lines), so that a long list needs no end to be read.
    """
    if form == "csv":
        yield "image,rank,label,probability"
    for path, labels in predictions:
        yield from _LINES[form](path, labels)


def _text(path: str, labels: Labels) -> Iterator[str]:
    yield f"{path}\t" + "  ".join(f"{name} {probability:.4f}" for name, probability in labels)


def _csv(path: str, labels: Labels) -> Iterator[str]:
    for rank, (name, probability) in enumerate(labels, start=1):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([path, rank, name, f"{probability:.6g}"])
        yield text.getvalue()


def _json(path: str, labels: Labels) -> Iterator[str]:
    ranked = [{"label": name, "probability": float(f"{probability:.6g}")} for name, probability in labels]
    yield json.dumps({"image": path, "labels": ranked}, ensure_ascii=False, allow_nan=False)


_LINES: dict[Format, Callable[[str, Labels], Iterator[str]]] = {"text": _text, "csv": _csv, "json": _json}
