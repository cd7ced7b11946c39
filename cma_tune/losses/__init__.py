"""Losses: the Cross-Modal Alignment penalty. Everything here imports torch and nothing heavier."""

from cma_tune.losses.cma import CMALoss, cma_objective, cross_modal_entropy
from cma_tune.processes import gather_rows

__all__ = ["CMALoss", "cma_objective", "cross_modal_entropy", "gather_rows"]
