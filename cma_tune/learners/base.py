"""What every learner is: image features in, a `PromptOutput` out, over class names that can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.errors import UserError


class PromptOutput(NamedTuple):
    """The same in training and evaluation.

    Attributes:
        logits: ``[B, C]``, scaled cosines.
        image_features: ``[B, D]``, unit length.
        text_features: ``[C, D]``, or ``[B, C, D]`` where text is conditioned on the image; unit length.
    """

    logits: Tensor
    image_features: Tensor
    text_features: Tensor


class Learner(nn.Module):
    """A method over a frozen backbone. Its own parameters are all it trains and all it saves.

    Attributes:
        name: the method's key in configs and cards.
        conditioned_on_image: text features differ from image to image.
        trains_images: image features change while it learns, so they can't be stored.
        class_names: names the logits stand for, in order.
    """

    name: str = ""
    conditioned_on_image: bool = False
    trains_images: bool = False

    def __init__(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        super().__init__()
        if not class_names:
            raise UserError("Expected at least one class name, got none.")
        # In a tuple, so that the frozen weights are neither parameters nor state of the learner.
        self._backbone = (backbone,)
        self.class_names = tuple(class_names)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._backbone[0]

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings of unit length: ``[C, D]``, or ``[B, C, D]`` for `image_features` ``[B, D]``."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def for_classes(self, class_names: Sequence[str]) -> Learner:
        """The same learned parameters over other class names (base-to-novel, transfer, prediction).

        Raises:
            UserError: what was learned belongs to the classes themselves.
        """
        raise TypeError(f"{type(self).__name__} is an interface")

    def forward(self, image_features: Tensor, text_features: Tensor | None = None) -> PromptOutput:
        """Image features ``[B, D]`` of unit length → `PromptOutput`.

        Args:
            image_features: from the backbone.
            text_features: ``[C, D]`` or ``[B, C, D]`` if they were computed before; by default they are
                computed here.
        """
        text = self.text_features(image_features) if text_features is None else text_features
        # Logits in full precision whatever autocast says: they are scaled by up to 100.
        with torch.autocast(image_features.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(image_features.dtype, text.dtype), torch.float32)
            image, text = image_features.to(dtype), text.to(dtype)
            cosines = image @ text.T if text.dim() == 2 else torch.einsum("bd,bcd->bc", image, text)
            return PromptOutput(self.backbone.scale.to(cosines) * cosines, image, text)
