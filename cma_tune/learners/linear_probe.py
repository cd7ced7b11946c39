"""Linear probes on image features: plain, started from text, and with text as samples.

Radford et al. 2021 (sec. 3.2) fit a logistic regression on frozen features; Lin et al. 2023 (CVPR,
"Multimodality helps unimodality") start it from the class names' text features and add these to the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import OwnClasses, PromptOutput


class LinearProbe(OwnClasses):
    """Logits s·f·Wᵀ of unit features f ``[B, D]`` and a row per class, W ``[C, D]``, started at zero.

    s is the backbone's logit scale, so that rows of unit length mean cosines; there is no bias. For the CMA
    loss and the similarities, the rows scaled to unit length are the text features: they are what stands for
    the classes.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        start: W to start from instead of zeros.

    Attributes:
        rows: W.
    """

    name = "linear_probe"

    def __init__(self, backbone: Backbone, class_names: Sequence[str], start: Tensor | None = None) -> None:
        super().__init__(backbone, class_names)
        if start is None:
            width = backbone.encode_texts(["a"]).shape[-1]
            start = torch.zeros(len(class_names), width, device=backbone.device)
        self.rows = nn.Parameter(start.detach().clone().float())

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """The rows ``[C, D]`` at unit length; a row of zeros stays one."""
        return nn.functional.normalize(self.rows, dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """s·f·Wᵀ, whatever the text features."""
        values = image_features @ self.rows.to(image_features).T
        return self.backbone.scale.to(values) * values

    def classifier_rows(self) -> Tensor:
        """W itself, whose rows have lengths of their own."""
        return self.rows

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> LinearProbe:
        """See `Learner.from_card`."""
        return cls(backbone, class_names, weights["rows"].to(backbone.device))


class TextLinearProbe(LinearProbe):
    """A linear probe that starts as the zero-shot classifier (Lin et al. 2023)."""

    name = "linear_probe_text"


class CrossModalProbe(LinearProbe):
    """A linear probe with text as samples: CE of the images + CE of the class names' text features.

    Each modality's samples are classified by the same rows (Lin et al. 2023). Every step sees all text
    samples, where the authors' code draws as many as images. With the CMA loss the objective is
    (1−λ)·(CE of images + CE of texts) + λ·CMA.

    Args:
        backbone, class_names, start: see `LinearProbe`.
        samples: text features ``[T, C, D]`` of T templates; only training needs them.
    """

    name = "cross_modal_probe"
    samples: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        start: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, class_names, start)
        self.register_buffer("samples", samples, persistent=False)

    def regulariser(self, output: PromptOutput) -> Tensor:
        """Mean cross-entropy of the text samples.

        Raises:
            ValueError: the learner was made without them.
        """
        if self.samples is None:
            raise ValueError("Expected text samples to train a cross-modal probe, got none.")
        texts = self.samples.to(output.image_features)
        labels = torch.arange(texts.shape[1], device=texts.device).repeat(len(texts))
        logits = self.logits(texts.flatten(0, 1), output.text_features)
        return nn.functional.cross_entropy(logits, labels)
