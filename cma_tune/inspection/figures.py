"""The figures of an inspection: calibration, predictions that changed, classes that are confused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cma_tune.inspection.outputs import Outputs, Part
from cma_tune.metrics import accuracy, brier_score, expected_calibration_error, reliability_bins

BINS = 15


@dataclass(frozen=True)
class ClassChange:
    """Images of one class, and how many of them were predicted right."""

    name: str
    images: int
    before: int
    after: int

    @property
    def difference(self) -> int:
        """Images won, or lost if it is negative."""
        return self.after - self.before


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were predicted as another."""

    true: str
    predicted: str
    images: int
    of: int
    before: int


def confusion_matrix(outputs: Outputs) -> Tensor:
    """Images by true class (row) and predicted class (column), ``[C, C]``, int64."""
    classes = outputs.logits.shape[1]
    cells = outputs.labels * classes + outputs.predicted
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def class_changes(part: Part) -> list[ClassChange]:
    """Every class in the order of its label."""
    total, before, after = (
        torch.bincount(part.after.labels[chosen], minlength=len(part.class_names)).tolist()
        for chosen in (torch.ones_like(part.after.correct), part.before.correct, part.after.correct)
    )
    return [ClassChange(*row) for row in zip(part.class_names, total, before, after, strict=True)]


def most_changed(part: Part, count: int) -> tuple[list[ClassChange], list[ClassChange]]:
    """The classes that won most images, and those that lost most; `count` of each, at most."""
    changes = class_changes(part)
    won = sorted((one for one in changes if one.difference > 0), key=lambda one: -one.difference)
    lost = sorted((one for one in changes if one.difference < 0), key=lambda one: one.difference)
    return won[:count], lost[:count]


def most_confused(part: Part, count: int) -> list[Confusion]:
    """Pairs of a true and another predicted class with most images after learning; `count` at most."""
    before, after = confusion_matrix(part.before), confusion_matrix(part.after)
    names, totals = part.class_names, after.sum(dim=1).tolist()
    wrong = after.clone().fill_diagonal_(0).flatten()
    found = []
    for cell in wrong.argsort(descending=True, stable=True)[:count].tolist():
        true, other = divmod(cell, len(names))
        if wrong[cell]:
            images, earlier = int(after[true, other]), int(before[true, other])
            found.append(Confusion(names[true], names[other], images, totals[true], earlier))
    return found


@dataclass(frozen=True)
class Neighbours:
    """Two classes and the cosine between their text features, before and after learning."""

    first: str
    second: str
    before: float
    after: float


def most_similar(part: Part, count: int) -> list[Neighbours]:
    """Pairs of classes whose text features are most similar after learning; `count` at most."""
    before, after = part.before.class_cosines, part.after.class_cosines
    rows, columns = torch.triu_indices(len(after), len(after), offset=1)
    best = after[rows, columns].argsort(descending=True, stable=True)[:count]
    return [
        Neighbours(part.class_names[i], part.class_names[j], float(before[i, j]), float(after[i, j]))
        for i, j in zip(rows[best].tolist(), columns[best].tolist(), strict=True)
    ]


def examples(part: Part, count: int) -> tuple[list[int], list[int]]:
    """Images that are right after learning alone, and those that were right before alone; `count` of each.

    One image of each class in turn, from the class with most of them on; of a class, first those of which
    the right prediction was surest.
    """
    before, after = part.before, part.after
    return (
        _in_turn(after.correct & ~before.correct, after, count),
        _in_turn(before.correct & ~after.correct, before, count),
    )


def _in_turn(chosen: Tensor, right: Outputs, count: int) -> list[int]:
    by_class: dict[int, list[int]] = defaultdict(list)
    for index in right.confidence.argsort(descending=True, stable=True).tolist():
        if chosen[index]:
            by_class[int(right.labels[index])].append(index)
    queues = sorted(by_class.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    longest = max(map(len, by_class.values()), default=0)
    turns = [queue[turn] for turn in range(longest) for _, queue in queues if turn < len(queue)]
    return turns[:count]


def part_figures(part: Part, count: int) -> dict[str, Any]:
    """All figures of one part, as JSON.

    Args:
        part: with outputs before and after.
        count: entries of the lists of confused and of similar classes.
    """
    before, after = part.before, part.after
    gained, lost = after.correct & ~before.correct, before.correct & ~after.correct
    other = ~before.correct & ~after.correct & (before.predicted != after.predicted)
    return {
        "images": len(part.items),
        "classes": len(part.class_names),
        "before": summary(before),
        "after": summary(after),
        "changed": {"gained": int(gained.sum()), "lost": int(lost.sum()), "still_wrong": int(other.sum())},
        "by_class": [vars(one) for one in class_changes(part)],
        "confused": [vars(one) for one in most_confused(part, count)],
        "similar": [vars(one) for one in most_similar(part, count)],
        "reliability": {"before": _reliability(before), "after": _reliability(after)},
    }


def summary(outputs: Outputs) -> dict[str, float]:
    """Accuracy (%), mean confidence (%), ECE (points), NLL (nats), Brier score, mean cosine of classes."""
    classes = len(outputs.class_cosines)
    others = outputs.class_cosines.sum() - outputs.class_cosines.trace()
    return {
        "accuracy": accuracy(outputs.predicted, outputs.labels),
        "confidence": 100 * float(outputs.confidence.mean()),
        "ece": expected_calibration_error(outputs.confidence, outputs.correct, BINS),
        "nll": float(cross_entropy(outputs.logits.double(), outputs.labels)),
        "brier": brier_score(outputs.probabilities, outputs.labels),
        "similarity_between_classes": float(others / max(1, classes * (classes - 1))),
    }


def _reliability(outputs: Outputs) -> dict[str, list[float | None]]:
    found = reliability_bins(outputs.confidence, outputs.correct, BINS)
    return {name: _numbers(values.tolist()) for name, values in found._asdict().items()}


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [None if value != value else value for value in values]  # nan, which JSON does not have
