"""The one exception a user's mistake ends in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it as one sentence and exits with 2."""


def typed(flag: str) -> str:
    """An option's name as people type it."""
    return flag.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to `name`, or an empty string."""
    by_folded = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(by_folded), n=1, cutoff=0.5)
    return f" (did you mean '{by_folded[close[0]]}'?)" if close else ""
