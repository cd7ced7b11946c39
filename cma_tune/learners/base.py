"""What every learner is: image features in, a `PromptOutput` out, over class names that can be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.errors import UserError
from cma_tune.learners.hub_model import HubModel


class PromptOutput(NamedTuple):
    """The same in training and evaluation.

    Attributes:
        logits: ``[B, C]``; scaled cosines of the other two, where a method has no logits of its own.
        image_features: ``[B, D]``, unit length.
        text_features: ``[C, D]``, or ``[B, C, D]`` where text is conditioned on the image; unit length. Where
            a method learns its classes without text, the embeddings that stand for them.
        frozen_features: ``[B, D]`` of the frozen backbone, where a method compares with them in training.
    """

    logits: Tensor
    image_features: Tensor
    text_features: Tensor
    frozen_features: Tensor | None = None


class Support(NamedTuple):
    """The few-shot training images, for methods that are made from them.

    Attributes:
        features: ``[N, D]``, unit length, on the backbone's device.
        labels: ``[N]``, classes from 0.
    """

    features: Tensor
    labels: Tensor


def cosines(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Unit features ``[B, D]`` and ``[C, D]``, or ``[B, C, D]``, of one dtype → ``[B, C]``."""
    if text_features.dim() == 2:
        return image_features @ text_features.T
    return torch.einsum("bd,bcd->bc", image_features, text_features)


class Learner(HubModel, nn.Module):
    """A method over a frozen backbone. Its own parameters are all it trains and all it saves.

    Attributes:
        name: the method's key in configs and cards.
        conditioned_on_image: text features differ from image to image.
        trains_images: it learns on the image side too, so image features can't be stored. Its `encode_images`
            takes part in training.
        guide_weight: how much of what opposes the guide is taken out of a step.
        merges: what it learns on the image side can be put into the image tower's weights.
        files: name of the file that its state is saved to, then those of `more_files`.
        class_names: names the logits stand for, in order.
    """

    name: str = ""
    conditioned_on_image: bool = False
    trains_images: bool = False
    guide_weight: float = 1.0
    merges: bool = False
    files: tuple[str, ...] = ("prompt.safetensors",)

    def __init__(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        super().__init__()
        if isinstance(class_names, str):
            raise UserError(
                f"Expected a list of class names, got the text '{class_names}'; put it in a list."
            )
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

    def encode_images(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features ``[B, D]`` of unit length, at least float32."""
        return self.backbone.encode_image(images)

    def adapted(self, image_features: Tensor) -> Tensor:
        """What takes the place of encoded image features ``[B, D]``, of unit length too; they themselves."""
        return image_features

    def for_classes(self, class_names: Sequence[str]) -> Learner:
        """The same learned parameters over other class names (base-to-novel, transfer, prediction).

        Raises:
            UserError: what was learned belongs to the classes themselves.
        """
        raise TypeError(f"{type(self).__name__} is an interface")

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits ``[B, C]`` for features ``[B, D]`` and ``[C, D]`` or ``[B, C, D]``, in full precision."""
        values = cosines(image_features, text_features)
        return self.backbone.scale.to(values) * values

    def classifier_rows(self) -> Tensor | None:
        """Rows W ``[C, D]`` that make logits s·f·Wᵀ of unit image features f, s being the backbone's scale.

        None where the logits are no such product; a method with logits of its own has to say.
        """
        return None if self.conditioned_on_image else self.text_features()

    def model_state(self) -> dict[str, Tensor]:
        """State of the backbone's model, with what was learned on the image side in its weights.

        Raises:
            ValueError: it can't be put into weights.
        """
        if self.trains_images:
            raise ValueError(f"Expected a method that leaves the image tower's form, got '{self.name}'.")
        return self.backbone.model.state_dict()

    def regulariser(self, output: PromptOutput) -> Tensor | None:
        """What the method adds to cross-entropy, weighed already.

        Returns:
            A scalar, the same on every process; or one value per image ``[B]``, whose mean over the whole
            batch is added.
        """
        return None

    def guide(self, output: PromptOutput) -> Tensor | None:
        """A loss that no step may raise to first order, one value per image ``[B]``; see `guide_weight`.

        The gradient of the objective loses its part against this one's gradient
        (:func:`cma_tune.fitting.project_gradient`).
        """
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters as an optimiser takes them; :func:`cma_tune.fitting.set_rate` knows more entries."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def start_step(self, step: int) -> None:
        """Called before every step, counted from 0 over all epochs, in training.

        What a learner draws at random may depend on this and its seed alone, so that a run that goes on from
        a checkpoint draws the same.
        """

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Called after every `epoch` from 0 of `epochs`; what it keeps is part of the learner's state."""

    def choose(self, image_features: Tensor, labels: Tensor) -> dict[str, float]:
        """After training, choose what is chosen on the validation images ``[N, D]``, ``[N]``.

        Returns:
            What was chosen, for the record; nothing where there is no such choice.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """What makes this learner again beside backbone, class names and state: JSON for its card."""
        return {}

    def more_files(self) -> tuple[bytes, ...]:
        """Contents of the files beside weights and card, for other libraries."""
        return ()

    @classmethod
    def card_trains_images(cls, card: Mapping[str, Any]) -> bool:
        """Whether the learner that a card is of `trains_images`."""
        return cls.trains_images

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> Learner:
        """A learner as `describe` says, ready for its state.

        Args:
            backbone: the frozen model.
            class_names: those it was learned on.
            card: with the entries of `describe`.
            weights: the state that will be loaded.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or does not fit.
        """
        raise TypeError(f"{cls.__name__} is an interface")

    def forward(self, images: Tensor, text_features: Tensor | None = None) -> PromptOutput:
        """Image features ``[B, D]`` of unit length, or images ``[B, 3, H, W]`` → `PromptOutput`.

        Args:
            images: features from `encode_images`, or images that go through it here.
            text_features: ``[C, D]`` or ``[B, C, D]`` if they were computed before; by default they are
                computed here.
        """
        image_features = self.adapted(self.encode_images(images) if images.dim() == 4 else images)
        text = self.text_features(image_features) if text_features is None else text_features
        # Logits in full precision whatever autocast says: they are scaled by up to 100.
        with torch.autocast(image_features.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(image_features.dtype, text.dtype), torch.float32)
            image, text = image_features.to(dtype), text.to(dtype)
            return PromptOutput(self.logits(image, text), image, text)


class OwnClasses(Learner):
    """Base of methods whose parameters belong to the classes they were learned on."""

    def for_classes(self, class_names: Sequence[str]) -> Learner:
        """This learner for its own names in their order.

        Raises:
            UserError: the names are others.
        """
        self.check_classes(class_names, self.class_names)
        return self

    @classmethod
    def check_classes(cls, class_names: Sequence[str], learned_on: Sequence[str]) -> None:
        """Raise a `UserError` if the names are not those it was learned on."""
        if tuple(class_names) != tuple(learned_on):
            raise UserError(
                f"Expected the class names that '{cls.name}' was learned on, got others; its parameters "
                "belong to those classes, so learn anew, or use a method that learns a context."
            )
