"""All figures of a representation on its way to neural collapse, from features, labels and classifier."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from cma_tune.metrics._checks import check_classified, check_labels_in_range
from cma_tune.metrics._classes import Present, centered, less, present_classes
from cma_tune.metrics.clusters import davies_bouldin, silhouette
from cma_tune.metrics.collapse import collapse_values
from cma_tune.metrics.entropy import autocast_off, entropy_of_rows, feature_entropy, unit_rows
from cma_tune.metrics.interplay import entropy_ratio
from cma_tune.metrics.neural_collapse import (
    mean_deviation,
    self_duality,
    simplex_deviation,
    within_class_variability,
)


class CollapseMonitor:
    r"""Measure features against their classifier; any training loop can call it.

    With f the features, V the classifier's row of each one's label, and W the classifier:

    - ``samples``, ``log_samples``: N rows and ln N. Small batches bias MIR upward: want N ≫ C.
    - ``feature_entropy``: H(G(f)) in nats, at most ln min(N, D).
    - ``classifier_entropy``, ``weight_entropy``: H(G(V)), by the rows' labels, and H(G(W)), each class once.
    - ``mutual_information``, ``mutual_information_ratio``: MI(G(f), G(V)) in nats, and MIR = MI / min H.
    - ``entropy_difference_ratio``: HDR = \|H(G(f)) − H(G(V))\| / max H.
    - ``nc1``: variation within classes against between class means.
    - ``nc2_equinorm``, ``nc2_equiangularity``: of the class means, how far they are from a simplex ETF;
      ``nc2_weight_equinorm``, ``nc2_weight_equiangularity``: of the classifier's rows.
    - ``nc3``: distance of classifier and class means, both scaled.
    - ``silhouette``, ``davies_bouldin``: how well classes part.
    - ``collapse_entropy``, ``collapse_mutual_information``, ``collapse_mutual_information_ratio``,
      ``collapse_entropy_difference_ratio``: what theory gives at collapse.

    MI and what goes with it (the entries from ``samples`` to ``entropy_difference_ratio`` but for
    ``weight_entropy``) need the spectrum of an N×N or a D·min(C, D)-sized matrix. If both are larger than
    ``max_rows``, they are taken from that many rows, evenly spaced over the N, and ``samples`` says so. The
    other figures are of all rows. Everything is computed in float64, without gradients.

    Args:
        center: take away the mean of the class means from the features, and from classifier rows their mean.
            The values of theory are those of centred features of class-balanced rows. NC1, NC2 and NC3 of
            features are centred by definition.
        max_rows: largest matrix whose spectrum is computed for MI, at least 2.

    Raises:
        ValueError: ``center`` is no bool or ``max_rows`` is below 2.

    Example:
        >>> corners = torch.eye(3) - 1 / 3  # a simplex ETF
        >>> labels = torch.arange(3).repeat(5)
        >>> values = CollapseMonitor()(corners[labels], labels, corners)
        >>> round(values["mutual_information_ratio"], 4), values["collapse_mutual_information_ratio"]
        (0.5, 0.5)
        >>> values["samples"], round(values["davies_bouldin"], 4)
        (15.0, 0.0)
    """

    names: ClassVar[tuple[str, ...]] = (
        *("samples", "log_samples", "feature_entropy", "classifier_entropy", "weight_entropy"),
        *("mutual_information", "mutual_information_ratio", "entropy_difference_ratio"),
        *("nc1", "nc2_equinorm", "nc2_equiangularity", "nc2_weight_equinorm", "nc2_weight_equiangularity"),
        *("nc3", "silhouette", "davies_bouldin"),
        *("collapse_entropy", "collapse_mutual_information", "collapse_mutual_information_ratio"),
        "collapse_entropy_difference_ratio",
    )
    """Keys of the result, in its order."""

    def __init__(self, center: bool = False, max_rows: int = 2048) -> None:
        if not isinstance(center, bool):
            raise ValueError(f"Expected `center` to be True or False, got {center!r}.")
        if max_rows < 2:
            raise ValueError(f"Expected `max_rows` to be at least 2, got {max_rows}.")
        self.center = center
        self.max_rows = max_rows

    @torch.no_grad()
    def __call__(self, features: Tensor, labels: Tensor, classifier: Tensor) -> dict[str, float | None]:
        """All figures of one set of rows.

        Args:
            features: as they enter the classifier, ``[N, D]``, floating point.
            labels: class of each row, ``[N]``, integers in 0..C−1.
            classifier: its weight, ``[C, D]``.

        Returns:
            A value for each of :attr:`names`; None where it is undefined: what relates features to rows for
            fewer than two rows or a single class, ratios of entropies that are 0, theory for fewer than two
            classes (and its ratios for two), everything that meets a value that is not finite.

        Raises:
            ValueError: shapes do not fit, a dtype is wrong, or a label is outside 0..C−1.
        """
        check_classified(features, classifier, labels)
        check_labels_in_range(labels.cpu(), len(classifier))
        with autocast_off(features):
            figures = self._measured(features.double(), labels.to(features.device), classifier.double())
        found = {name: float(value) for name, value in figures.items()}
        # An entropy of 0 may come out as −0 or, by rounding, a little below.
        found |= {name: max(value, 0.0) + 0.0 for name, value in found.items() if name.endswith("_entropy")}
        return {
            name: found[name] if math.isfinite(found.get(name, math.nan)) else None for name in self.names
        }

    def _measured(self, features: Tensor, labels: Tensor, classifier: Tensor) -> dict[str, Tensor | float]:
        if self.center:
            classifier = less(classifier, classifier.mean(0))
        figures = self._information(features, labels, classifier)
        means, weights = mean_deviation(features, labels), simplex_deviation(classifier)
        figures |= {
            "weight_entropy": feature_entropy(classifier),
            "nc1": within_class_variability(features, labels),
            "nc2_equinorm": means.equinorm,
            "nc2_equiangularity": means.equiangularity,
            "nc2_weight_equinorm": weights.equinorm,
            "nc2_weight_equiangularity": weights.equiangularity,
            "nc3": self_duality(features, labels, classifier),
            "silhouette": silhouette(features, labels),
            "davies_bouldin": davies_bouldin(features, labels),
        }
        if len(classifier) > 1:
            theory = collapse_values(len(classifier))
            figures |= {
                "collapse_entropy": theory.entropy,
                "collapse_mutual_information": theory.mutual_information,
                "collapse_mutual_information_ratio": theory.mutual_information_ratio,
                "collapse_entropy_difference_ratio": theory.entropy_difference_ratio,
            }
        return figures

    def _information(self, features: Tensor, labels: Tensor, classifier: Tensor) -> dict[str, Tensor | float]:
        """Entropies and their interplay, of all rows or of evenly spaced ones."""
        present = present_classes(labels)
        rows = classifier[present.classes]
        if self.center and len(features):
            features, rows = centered(features, rows, present)
        dims = features.shape[1]
        if min(len(features), dims * min(len(rows), dims)) > self.max_rows:
            picked = torch.arange(self.max_rows, device=labels.device) * len(labels) // self.max_rows
            features, present = features[picked], present_classes(labels[picked])
            rows = rows[torch.isin(torch.unique(labels), present.classes)]
        number = len(features)
        if number == 0:
            return {"samples": 0.0}
        unit, rows = unit_rows(features), unit_rows(rows)
        roots = present.counts.to(unit).sqrt()[:, None]
        # Rows of one class are equal: all non-zero eigenvalues of G(V) are in the classes' own matrix.
        of_labels = entropy_of_rows(roots * (rows @ rows.mT) * roots.mT, number, alpha=1)
        of_features = feature_entropy(unit)
        figures: dict[str, Tensor | float] = {
            "samples": float(number),
            "log_samples": math.log(number),
            "feature_entropy": of_features,
            "classifier_entropy": of_labels,
        }
        if number < 2 or len(rows) < 2:
            return figures
        joint = entropy_of_rows(_joint(unit, rows, present), number, alpha=1)
        information = of_features + of_labels - joint
        return figures | {
            "mutual_information": information,
            "mutual_information_ratio": entropy_ratio(information, torch.minimum(of_features, of_labels)),
            "entropy_difference_ratio": entropy_ratio(
                (of_features - of_labels).abs(), torch.maximum(of_features, of_labels)
            ),
        }


def _joint(unit: Tensor, rows: Tensor, present: Present) -> Tensor:
    """G(f)∘G(V), or a smaller matrix with its non-zero eigenvalues.

    It is the Gram matrix of the products fᵢ⊗vᵢ. With r = min(C, D) coordinates for the classes' rows, these
    have D·r columns, and the matrix of their columns is a sum over classes of F_cᵀF_c ⊗ v_c v_cᵀ.
    """
    number, dims = unit.shape
    grams = rows @ rows.mT
    if number <= dims * min(grams.shape[0], dims):
        return (unit @ unit.mT) * grams[present.owners][:, present.owners]
    if len(rows) < dims:
        sizes, directions = torch.linalg.eigh(grams.nan_to_num())
        rows = directions * sizes.clamp(min=0).sqrt()
    total = unit.new_zeros(dims, rows.shape[1], dims, rows.shape[1])
    for owner, row in enumerate(rows):
        members = unit[present.owners == owner]
        total += torch.einsum("ij,a,b->iajb", members.mT @ members, row, row)
    return total.flatten(2).flatten(0, 1)
