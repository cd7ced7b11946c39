"""Which image tower a learner's features come from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cma_tune.learners.base import Learner


def image_encoder(learner: Learner) -> Callable[[Tensor], Tensor]:
    """Images ``[B, 3, H, W]`` → features ``[B, D]`` of unit length, by the learner's own tower if any."""
    own: Callable[[Tensor], Tensor] = getattr(learner, "encode_images", learner.backbone.encode_image)
    return own
