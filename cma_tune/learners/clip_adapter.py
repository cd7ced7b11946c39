"""CLIP-Adapter: a bottleneck on the image features, blended with them (Gao et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import Learner
from cma_tune.learners.starts import drawn_from
from cma_tune.learners.zero_shot import ZeroShot

REDUCTION = 4
"""Widths of the features over that of the bottleneck."""


class ClipAdapter(Learner):
    """Image features α·A(f) + (1−α)·f at unit length, with A(f) = ReLU(f·W₁)·W₂ (CLIP-Adapter, sec. 3.2).

    The text side stays that of the hand-written prompts: the adapter on the images alone is the paper's best
    form. The authors' code has a second ReLU after W₂, which the paper's formula has not. The CMA loss acts
    on the adapted image features.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        templates: hand-written prompts with one ``{}`` each.
        ratio: α.
        seed: of the random start.

    Attributes:
        down, up: W₁ ``[D/4, D]`` and W₂ ``[D, D/4]``, without biases.
    """

    name = "clip_adapter"
    embeddings: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        templates: Sequence[str],
        ratio: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, class_names)
        zero_shot = ZeroShot(backbone, class_names, templates)
        self.templates, self.ratio = zero_shot.templates, ratio
        self.register_buffer("embeddings", zero_shot.embeddings, persistent=False)
        width = zero_shot.embeddings.shape[-1]
        hidden = max(1, width // REDUCTION)
        with drawn_from(seed):
            down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.down, self.up = down.to(backbone.device), up.to(backbone.device)

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """The hand-written prompts' features ``[C, D]``."""
        return self.embeddings

    def adapted(self, image_features: Tensor) -> Tensor:
        """Adapted features ``[B, D]`` of unit length."""
        new = self.up(self.down(image_features.to(self.down.weight)).relu())
        return nn.functional.normalize(self.ratio * new + (1 - self.ratio) * image_features, dim=-1)

    def classifier_rows(self) -> None:
        """None: the image features are adapted first."""

    def for_classes(self, class_names: Sequence[str]) -> ClipAdapter:
        """The same adapter before other names in the same templates; it is shared, not copied."""
        other = ClipAdapter(self.backbone, class_names, self.templates, self.ratio)
        other.down, other.up = self.down, self.up
        return other

    def describe(self) -> dict[str, Any]:
        """α and the templates."""
        return {"options": {"ratio": self.ratio, "templates": list(self.templates)}}

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> ClipAdapter:
        """See `Learner.from_card`."""
        options = card["options"]
        return cls(backbone, class_names, list(options["templates"]), float(options["ratio"]))
