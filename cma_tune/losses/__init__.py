"""Losses: the Cross-Modal Alignment penalty. Everything here imports torch and nothing heavier."""

from cma_tune.losses._gather import gather_rows
from cma_tune.losses.cma import CMALoss, cma_objective, cross_modal_entropy

__all__ = ["CMALoss", "cma_objective", "cross_modal_entropy", "gather_rows"]
