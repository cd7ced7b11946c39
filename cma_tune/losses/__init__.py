"""The Cross-Modal Alignment penalty and the interplay losses. They import torch and nothing heavier."""

from cma_tune.losses.cma import CMALoss, cma_objective, cross_modal_entropy
from cma_tune.losses.interplay import (
    EntropyDifferenceLoss,
    InterplayLoss,
    InterplayOutput,
    InterplayTerms,
    MutualInformationLoss,
    interplay_terms,
)
from cma_tune.processes import gather_rows

__all__ = [
    "CMALoss",
    "EntropyDifferenceLoss",
    "InterplayLoss",
    "InterplayOutput",
    "InterplayTerms",
    "MutualInformationLoss",
    "cma_objective",
    "cross_modal_entropy",
    "gather_rows",
    "interplay_terms",
]
