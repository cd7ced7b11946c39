"""Semi-supervised algorithms, one a file: small objects from a batch's outputs to its losses."""

from __future__ import annotations

from typing import Any

from cma_tune.companion.algorithms.base import Algorithm, BatchOutputs, Losses
from cma_tune.companion.algorithms.fixmatch import FixMatch
from cma_tune.companion.algorithms.flexmatch import FlexMatch
from cma_tune.companion.algorithms.freematch import FreeMatch
from cma_tune.companion.algorithms.otmatch import OTMatch
from cma_tune.companion.algorithms.pseudo_label import PseudoLabel
from cma_tune.companion.algorithms.softmatch import SoftMatch
from cma_tune.companion.algorithms.supervised import Supervised

ALGORITHMS: dict[str, type[Algorithm]] = {
    kind.name: kind for kind in (Supervised, PseudoLabel, FixMatch, FlexMatch, FreeMatch, SoftMatch, OTMatch)
}


def algorithm(name: str, classes: int, pool: int, **options: Any) -> Algorithm:
    """An algorithm at its start.

    Args:
        name: a key of `ALGORITHMS`.
        classes: C.
        pool: number of unlabelled images there are.
        options: the algorithm's own.
    """
    return ALGORITHMS[name](classes, pool, **options)


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "BatchOutputs",
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "Losses",
    "OTMatch",
    "PseudoLabel",
    "SoftMatch",
    "Supervised",
    "algorithm",
]
