"""Entropies, their interplay, neural collapse, alignment, accuracy and calibration.

Everything here imports torch and nothing heavier.
"""

from cma_tune.metrics.accuracy import accuracy, confidence_interval_95, harmonic_mean, per_class_accuracy
from cma_tune.metrics.alignment import class_similarity, modal_similarity
from cma_tune.metrics.calibration import (
    ReliabilityBins,
    brier_score,
    expected_calibration_error,
    reliability_bins,
)
from cma_tune.metrics.clusters import davies_bouldin, silhouette
from cma_tune.metrics.collapse import CollapseValues, collapse_values
from cma_tune.metrics.entropy import effective_rank, feature_entropy, gram_matrix, matrix_entropy
from cma_tune.metrics.interplay import (
    entropy_difference_ratio,
    mutual_information,
    mutual_information_ratio,
)
from cma_tune.metrics.monitor import CollapseMonitor
from cma_tune.metrics.neural_collapse import (
    SimplexDeviation,
    mean_deviation,
    self_duality,
    simplex_deviation,
    within_class_variability,
)

__all__ = [
    "CollapseMonitor",
    "CollapseValues",
    "ReliabilityBins",
    "SimplexDeviation",
    "accuracy",
    "brier_score",
    "class_similarity",
    "collapse_values",
    "confidence_interval_95",
    "davies_bouldin",
    "effective_rank",
    "entropy_difference_ratio",
    "expected_calibration_error",
    "feature_entropy",
    "gram_matrix",
    "harmonic_mean",
    "matrix_entropy",
    "mean_deviation",
    "modal_similarity",
    "mutual_information",
    "mutual_information_ratio",
    "per_class_accuracy",
    "reliability_bins",
    "self_duality",
    "silhouette",
    "simplex_deviation",
    "within_class_variability",
]
