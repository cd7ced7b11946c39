"""The semi-supervised algorithms once more, number by number in plain Python: what the tests compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Rows = list[list[float]]


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(row: list[float], label: int) -> float:
    return -math.log(softmax(row)[label])


def argmax(row: list[float]) -> int:
    return row.index(max(row))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def column_means(rows: Rows) -> list[float]:
    return [mean(list(column)) for column in zip(*rows, strict=True)]


def histogram(labels: list[int], classes: int) -> list[float]:
    return [labels.count(label) / len(labels) for label in range(classes)]


def normalised(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


@dataclass
class Reference:
    """What the methods have in common: running averages."""

    classes: int
    momentum: float = 0.999

    def moved(self, average: float, now: float) -> float:
        return self.momentum * average + (1 - self.momentum) * now


@dataclass
class FlexMatchReference(Reference):
    threshold: float = 0.95
    selected: dict[int, int] = field(default_factory=dict)
    pool: int = 0

    def mask(self, weak: Rows, indices: list[int]) -> list[bool]:
        counts = [list(self.selected.values()).count(label) for label in range(self.classes)]
        unused = self.pool - len(self.selected)
        learned = [count / max(max(counts), unused) for count in counts]
        confident = []
        for row in weak:
            q = softmax(row)
            beta = learned[argmax(q)]
            confident.append(max(q) >= self.threshold * beta / (2 - beta))
        for row, index in zip(weak, indices, strict=True):
            q = softmax(row)
            if max(q) >= self.threshold:
                self.selected[index] = argmax(q)
        return confident


@dataclass
class FreeMatchReference(Reference):
    time: float = 0.0
    average: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.time = 1 / self.classes
        self.average = [1 / self.classes] * self.classes
        self.shares = [1 / self.classes] * self.classes

    def mask(self, weak: Rows) -> list[bool]:
        q = [softmax(row) for row in weak]
        self.time = self.moved(self.time, mean([max(row) for row in q]))
        self.average = [self.moved(a, b) for a, b in zip(self.average, column_means(q), strict=True)]
        now = histogram([argmax(row) for row in q], self.classes)
        self.shares = [self.moved(a, b) for a, b in zip(self.shares, now, strict=True)]
        return [max(row) >= self.time * self.average[argmax(row)] / max(self.average) for row in q]

    def fairness(self, strong: Rows, mask: list[bool]) -> float:
        rows = [softmax(row) for row, counts in zip(strong, mask, strict=True) if counts]
        if not rows:
            return 0.0
        shares = histogram([argmax(row) for row in rows], self.classes)
        wanted = normalised([p / h if h else 0.0 for p, h in zip(self.average, self.shares, strict=True)])
        got = normalised([p / h if h else 0.0 for p, h in zip(column_means(rows), shares, strict=True)])
        return sum(a * math.log(b + 1e-12) for a, b in zip(wanted, got, strict=True))


@dataclass
class SoftMatchReference(Reference):
    alignment: str = "none"
    center: float = 0.0
    variance: float = 1.0
    labelled: list[float] = field(default_factory=list)
    unlabelled: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.center = 1 / self.classes
        uniform = [1 / self.classes] * self.classes
        self.labelled, self.unlabelled = uniform, uniform if self.alignment == "torchssl" else []

    def weights(self, weak: Rows, labelled: Rows) -> list[float]:
        q = [softmax(row) for row in weak]
        now = column_means(q)
        if self.alignment == "torchssl":
            theirs = column_means([softmax(row) for row in labelled])
            self.labelled = [self.moved(a, b) for a, b in zip(self.labelled, theirs, strict=True)]
        if not self.unlabelled:
            self.unlabelled = now
        else:
            self.unlabelled = [self.moved(a, b) for a, b in zip(self.unlabelled, now, strict=True)]
        aligned = q
        if self.alignment != "none":
            ratio = [a / b for a, b in zip(self.labelled, self.unlabelled, strict=True)]
            aligned = [normalised([v * r for v, r in zip(row, ratio, strict=True)]) for row in q]
        largest = [max(row) for row in (aligned if self.alignment == "usb" else q)]
        middle = mean(largest)
        spread = sum((value - middle) ** 2 for value in largest) / (len(largest) - 1)
        self.center, self.variance = self.moved(self.center, middle), self.moved(self.variance, spread)
        tops = [max(row) for row in aligned]
        return [math.exp(-(min(0.0, top - self.center) ** 2) / (2 * self.variance / 4)) for top in tops]
