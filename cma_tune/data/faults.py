"""Faults of a dataset: a load ends with the first one, a check goes on and gathers all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cma_tune.errors import UserError


class Complain(Protocol):
    """Told of a fault; where it returns, the reader goes on without what is at fault."""

    def __call__(self, what: str, found: Sequence[str], sentence: str) -> None:
        """Tell of a fault.

        Args:
            what: kind of fault, in a few words.
            found: where it was found, one text each.
            sentence: what was expected, what came, what to do.
        """


def refuse(what: str, found: Sequence[str], sentence: str) -> None:
    """End with the first fault.

    Raises:
        UserError: always, with the sentence.
    """
    raise UserError(sentence)


class Faults:
    """Gathers what was found, each once, by kind of fault in the order they came."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}

    def __call__(self, what: str, found: Sequence[str], sentence: str) -> None:
        """Keep a fault; see `Complain`."""
        self._found.setdefault(what, {}).update(dict.fromkeys(found))

    @property
    def found(self) -> dict[str, list[str]]:
        """Where each kind of fault was found."""
        return {what: list(found) for what, found in self._found.items()}
