"""LP++: a linear probe whose rows blend images and text, with steps from the data (Huang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import OwnClasses, Support

START = 250.0
"""α starts at this times the mean cosine of images and their own class's text."""

ALPHA_EVERY = 10
"""α takes a step after so many of w."""


class LpPlusPlus(OwnClasses):
    """Logits fᵢ·(w_k + α_k·t_k) with class prototypes w ``[C, D]`` and multipliers α ``[C]`` (LP++, sec. 3).

    t_k are the hand-written prompts' features. Both blocks go down the cross-entropy of all images at once,
    with steps that follow from its curvature instead of a search: 4N/λ_max(Σᵢ fᵢfᵢᵀ) for w, and for α, at
    every tenth step of w and without momentum, N/(4·max_k Σᵢ (fᵢ·t_k)²). w_k starts as the sum of the class's
    images, α as 250 times the mean cosine of images and their class's text; these numbers are those of the
    authors' code. That code keeps the epoch of the highest validation accuracy; here it is the last one.

    For the CMA loss and the similarities, w_k + α_k·t_k at unit length are the text features.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        embeddings: t ``[C, D]``.
        support: the training images; without them w and α wait for a saved state.

    Attributes:
        prototypes: w.
        multipliers: α.
        rates: steps of w and α; None without a support.
    """

    name = "lp_plus_plus"
    embeddings: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        embeddings: Tensor,
        support: Support | None = None,
    ) -> None:
        super().__init__(backbone, class_names)
        self.register_buffer("embeddings", embeddings)
        prototypes, multipliers = torch.zeros_like(embeddings), embeddings.new_zeros(len(embeddings))
        self.rates: tuple[float, float] | None = None
        if support is not None:
            prototypes, multipliers = _start(embeddings, support)
            self.rates = _rates(embeddings, support)
        self.prototypes, self.multipliers = nn.Parameter(prototypes), nn.Parameter(multipliers)

    def _rows(self) -> Tensor:
        return self.prototypes + self.multipliers[:, None] * self.embeddings

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """The blended rows ``[C, D]`` at unit length."""
        return nn.functional.normalize(self._rows(), dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """fᵢ·(w_k + α_k·t_k), whatever the text features; the backbone's logit scale plays no part."""
        return image_features @ self._rows().to(image_features).T

    def classifier_rows(self) -> Tensor:
        """The blended rows over the scale, which plays no part here."""
        return self._rows() / self.backbone.scale.to(self.prototypes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """w with its step, and α with its own."""
        of_w, of_alpha = self.rates or (1.0, 1.0)
        return [
            {"params": [self.prototypes], "rate": of_w},
            {"params": [self.multipliers], "rate": of_alpha, "every": ALPHA_EVERY, "momentum": 0.0},
        ]

    def describe(self) -> dict[str, Any]:
        """The steps, where they are known."""
        names = ("step_of_rows", "step_of_multipliers")
        return {} if self.rates is None else {"options": dict(zip(names, self.rates, strict=True))}

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> LpPlusPlus:
        """See `Learner.from_card`."""
        learner = cls(backbone, class_names, weights["embeddings"].to(backbone.device))
        if (steps := card.get("options")) is not None:
            learner.rates = float(steps["step_of_rows"]), float(steps["step_of_multipliers"])
        return learner


def _start(embeddings: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """First w ``[C, D]`` and α ``[C]``."""
    features, labels = support.features.to(embeddings), support.labels
    sums = torch.zeros_like(embeddings).index_add(0, labels, features)
    counts = labels.bincount(minlength=len(embeddings))
    present = counts > 0
    cosine = (sums * embeddings).sum(dim=1)[present] / counts[present]
    return sums, START * cosine.mean().expand(len(embeddings)).clone()


def _rates(embeddings: Tensor, support: Support) -> tuple[float, float]:
    """Steps of w and α."""
    features = support.features.to(embeddings)
    curvature = torch.linalg.eigvalsh((features.T @ features).double())[-1]
    along_text = (features @ embeddings.T).square().sum(dim=0).max()
    return 4 * len(features) / float(curvature), len(features) / (4 * float(along_text))
