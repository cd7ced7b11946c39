"""Adapt CLIP with few labels, around the Cross-Modal Alignment loss.

``import cma_tune`` itself loads nothing; touching a name below loads torch and nothing heavier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cma_tune.losses import (
        CMALoss,
        EntropyDifferenceLoss,
        InterplayLoss,
        InterplayOutput,
        InterplayTerms,
        MutualInformationLoss,
        cma_objective,
        cross_modal_entropy,
        gather_rows,
        interplay_terms,
    )
    from cma_tune.metrics import (
        CollapseMonitor,
        CollapseValues,
        ReliabilityBins,
        SimplexDeviation,
        accuracy,
        brier_score,
        class_similarity,
        collapse_values,
        confidence_interval_95,
        davies_bouldin,
        effective_rank,
        entropy_difference_ratio,
        expected_calibration_error,
        feature_entropy,
        gram_matrix,
        harmonic_mean,
        matrix_entropy,
        mean_deviation,
        modal_similarity,
        mutual_information,
        mutual_information_ratio,
        per_class_accuracy,
        reliability_bins,
        self_duality,
        silhouette,
        simplex_deviation,
        within_class_variability,
    )

__version__ = "0.1.0"

__all__ = [
    "CMALoss",
    "CollapseMonitor",
    "CollapseValues",
    "EntropyDifferenceLoss",
    "InterplayLoss",
    "InterplayOutput",
    "InterplayTerms",
    "MutualInformationLoss",
    "ReliabilityBins",
    "SimplexDeviation",
    "__version__",
    "accuracy",
    "brier_score",
    "class_similarity",
    "cma_objective",
    "collapse_values",
    "confidence_interval_95",
    "cross_modal_entropy",
    "davies_bouldin",
    "effective_rank",
    "entropy_difference_ratio",
    "expected_calibration_error",
    "feature_entropy",
    "gather_rows",
    "gram_matrix",
    "harmonic_mean",
    "interplay_terms",
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

_LOSSES = {
    *("CMALoss", "EntropyDifferenceLoss", "InterplayLoss", "InterplayOutput", "InterplayTerms"),
    *("MutualInformationLoss", "cma_objective", "cross_modal_entropy", "gather_rows", "interplay_terms"),
}


if not TYPE_CHECKING:  # or a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(
            import_module("cma_tune.losses" if name in _LOSSES else "cma_tune.metrics"), name
        )
        globals()[name] = value  # the next access finds it without coming here
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
