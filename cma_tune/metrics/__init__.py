"""Entropies, their interplay, alignment and accuracy. Everything here imports torch and nothing heavier."""

from cma_tune.metrics.accuracy import accuracy, confidence_interval_95, harmonic_mean, per_class_accuracy
from cma_tune.metrics.alignment import class_similarity, modal_similarity
from cma_tune.metrics.collapse import CollapseValues, collapse_values
from cma_tune.metrics.entropy import effective_rank, feature_entropy, gram_matrix, matrix_entropy
from cma_tune.metrics.interplay import (
    entropy_difference_ratio,
    mutual_information,
    mutual_information_ratio,
)

__all__ = [
    "CollapseValues",
    "accuracy",
    "class_similarity",
    "collapse_values",
    "confidence_interval_95",
    "effective_rank",
    "entropy_difference_ratio",
    "feature_entropy",
    "gram_matrix",
    "harmonic_mean",
    "matrix_entropy",
    "modal_similarity",
    "mutual_information",
    "mutual_information_ratio",
    "per_class_accuracy",
]
