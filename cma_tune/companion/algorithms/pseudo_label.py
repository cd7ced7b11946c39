"""Pseudo-label (Lee 2013), as SSL libraries compare with it: FixMatch without the strong view."""

from __future__ import annotations

from cma_tune.companion.algorithms.fixmatch import FixMatch


class PseudoLabel(FixMatch):
    """The weak view is both where the label comes from and what learns it."""

    name = "pseudo-label"
    uses_strong = False
