"""Tip-Adapter: a cache of the few-shot images beside the zero-shot classifier (Zhang et al. 2022, ECCV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import OwnClasses, Support, cosines

ALPHAS = tuple(0.25 * step for step in range(21))
"""What α is chosen among: 0 to 5."""

BETAS = tuple(0.5 * step for step in range(1, 21))
"""What β is chosen among: 0.5 to 10."""


class TipAdapter(OwnClasses):
    """Logits s·f·Wᵀ + α·exp(−β(1 − f·Kᵀ))·L (Tip-Adapter, sec. 3.1), without any training.

    W ``[C, D]`` are the hand-written prompts' features, K ``[N, D]`` those of the training images and L their
    classes, one-hot; s is the backbone's logit scale.

    The text features, which the similarities are measured with, are the classes' means of K at unit length:
    the part that training changes, and so what the CMA loss acts on.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        embeddings: W.
        support: K and the classes.
        alpha: the cache's share.
        beta: how sharply it weighs near images.
        search: choose both on the validation images after training.
    """

    name = "tip_adapter"
    embeddings: Tensor
    labels: Tensor
    keys: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        embeddings: Tensor,
        support: Support,
        alpha: float = 1.0,
        beta: float = 5.5,
        search: bool = False,
    ) -> None:
        super().__init__(backbone, class_names)
        self.alpha, self.beta, self.search = alpha, beta, search
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("labels", support.labels)
        self._keep(support.features)

    def _keep(self, keys: Tensor) -> None:
        self.register_buffer("keys", keys)

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """The classes' means of K ``[C, D]`` at unit length, zero for a class without images."""
        sums = self.keys.new_zeros(self.embeddings.shape).index_add(0, self.labels, self.keys)
        return nn.functional.normalize(sums, dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """See the class; the text features given play no part."""
        return self._blend(*self._parts(image_features), self.alpha, self.beta)

    def classifier_rows(self) -> None:
        """None: the cache's part is no product with the image features."""

    def _parts(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-shot logits ``[B, C]`` and cosines with the cache ``[B, N]``."""
        zero_shot = cosines(image_features, self.embeddings.to(image_features))
        near = cosines(image_features, self.keys.to(image_features))
        return self.backbone.scale.to(zero_shot) * zero_shot, near

    def _blend(self, zero_shot: Tensor, near: Tensor, alpha: float, beta: float) -> Tensor:
        # Not index_add, whose ONNX form is wrong where the labels are 0 to C-1 in order.
        classes = self.labels.expand_as(near)
        return zero_shot.scatter_add(1, classes, alpha * (-beta * (1 - near)).exp())

    @torch.no_grad()
    def choose(self, image_features: Tensor, labels: Tensor) -> dict[str, float]:
        """Take the α and β of the highest validation accuracy, if asked to; ties keep the given ones.

        Where the given ones are not among the best, the smallest β and then α are taken.
        """
        if not self.search:
            return {}
        zero_shot, near = self._parts(image_features.to(self.embeddings))
        target = labels.to(zero_shot.device)

        def correct(pair: tuple[float, float]) -> int:
            beta, alpha = pair
            return int((self._blend(zero_shot, near, alpha, beta).argmax(dim=1) == target).sum())

        # max keeps the first of the best.
        pairs = [(self.beta, self.alpha), *((beta, alpha) for beta in BETAS for alpha in ALPHAS)]
        self.beta, self.alpha = max(pairs, key=correct)
        return {"alpha": self.alpha, "beta": self.beta}

    def describe(self) -> dict[str, Any]:
        """α, β and the number of images in the cache."""
        options = {"alpha": self.alpha, "beta": self.beta, "images": len(self.labels)}
        return {"options": options}

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> TipAdapter:
        """See `Learner.from_card`."""
        options, device = card["options"], backbone.device
        support = Support(weights["keys"].to(device), weights["labels"].to(device))
        ratios = float(options["alpha"]), float(options["beta"])
        return cls(backbone, class_names, weights["embeddings"].to(device), support, *ratios)


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys K are trained, from the images' features on (Tip-Adapter, sec. 3.2)."""

    name = "tip_adapter_f"

    def _keep(self, keys: Tensor) -> None:
        self.keys = nn.Parameter(keys.detach().clone())
