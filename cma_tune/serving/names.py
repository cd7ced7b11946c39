"""Class names that somebody asks for instead of those that were learned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cma_tune.errors import UserError
from cma_tune.learners.base import OwnClasses
from cma_tune.learners.cards import LEARNERS


def check_names(class_names: Sequence[str], card: Mapping[str, Any]) -> None:
    """Check names for a learned prompt before its weights load.

    Equal names would share the probability of what is one class.

    Raises:
        UserError: a name is given twice, or what was learned belongs to its own classes.
    """
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise UserError(
            f"Expected every class name once, got {', '.join(map(repr, twice))} more than once; "
            "remove the repetitions."
        )
    kind = LEARNERS[card["learner"]]
    if issubclass(kind, OwnClasses):
        kind.check_classes(class_names, card["class_names"])
