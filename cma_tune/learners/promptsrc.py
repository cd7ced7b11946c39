"""PromptSRC: independent prompts that regulate themselves (Khattak et al. 2023, ICCV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.learners.base import PromptOutput
from cma_tune.learners.coop import ContextOptions
from cma_tune.learners.ivlp import Ivlp

TEMPLATES = 60
"""How many of CLIP's ImageNet templates the authors average, the first ones of the list."""


def diverse_templates() -> list[str]:
    """The hand-written prompts whose mean text features the learned ones are held near to."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:TEMPLATES]]


class PromptSrc(Ivlp):
    """IVLP near the frozen backbone, averaged over the epochs (PromptSRC, sec. 3.2).

    Beside cross-entropy stand w_t·|t − t̂| + w_i·|f − f̂| + KL(p̂ ‖ p): text features t, image features f and
    probabilities p under the prompts, and t̂, f̂, p̂ of the frozen backbone. As in the authors' code both
    distances are means over all entries, and the divergence is divided by the number of classes. There t̂ is
    the mean of text features before they are brought to unit length, here of those of unit length. With the
    CMA loss the objective is (1−λ)·(CE + …) + λ·CMA.

    What is left after training is the mean of the prompts after every epoch e = 1, 2, …, weighed by
    N(e; μ, σ²).

    Args:
        backbone, class_names, options, seed, context, depth, image_tokens: see `Ivlp`.
        text_weight: w_t.
        image_weight: w_i.
        mean: μ; by default three quarters of the epochs, the paper's 15 of 20.
        std: σ, in epochs.
        anchors: t̂ ``[C, D]``; only training needs them.

    Raises:
        UserError: see `DeepPrompts`.
    """

    name = "promptsrc"
    share = 0.75
    anchors: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        depth: int | None = None,
        image_tokens: int = 4,
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        mean: float | None = None,
        std: float = 1.0,
        anchors: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context, depth, image_tokens)
        self.text_weight, self.image_weight = text_weight, image_weight
        self.mean, self.std = mean, std
        self.register_buffer("anchors", anchors, persistent=False)
        for name, parameter in list(self.named_parameters()):
            self.register_buffer(f"averaged_{name}", torch.zeros_like(parameter.detach()))

    def forward(self, images: Tensor, text_features: Tensor | None = None) -> PromptOutput:
        """See `Learner`; in training the frozen backbone encodes the images too."""
        output = super().forward(images, text_features)
        if not self.training or images.dim() != 4:
            return output
        with torch.no_grad():
            frozen = self.backbone.unit_length(self.image_tower(images))
        return output._replace(frozen_features=frozen)

    def regulariser(self, output: PromptOutput) -> Tensor:
        """What holds each image's features, probabilities and the classes' text features back, ``[B]``.

        Raises:
            ValueError: the learner was made without anchors, or the output is not one of training on images.
        """
        frozen, anchors = output.frozen_features, self.anchors
        if frozen is None or anchors is None:
            raise ValueError("Expected images and the hand-written prompts' features to train PromptSRC.")
        image, text = output.image_features, output.text_features
        frozen, anchors = frozen.to(image), anchors.to(image)
        before = self.logits(frozen, anchors).log_softmax(dim=1)
        now = output.logits.log_softmax(dim=1)
        divergence = (before.exp() * (before - now)).mean(dim=1)
        moved = self.image_weight * (image - frozen).abs().mean(dim=1)
        return divergence + moved + self.text_weight * (text - anchors).abs().mean()

    @torch.no_grad()
    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Add the epoch's prompts to the mean, which takes their place after the last epoch."""
        share = self.epoch_weights(epochs)[epoch]
        for name, parameter in self.named_parameters():
            averaged = self.get_buffer(f"averaged_{name}")
            averaged.add_(share * parameter)
            if epoch + 1 == epochs:
                parameter.copy_(averaged)

    def epoch_weights(self, epochs: int) -> list[float]:
        """Weights of the epochs, which sum to 1."""
        mean = 0.75 * epochs if self.mean is None else self.mean
        numbers = torch.arange(1, epochs + 1, dtype=torch.float64)
        # From the logarithms: far from the mean the density itself is 0.
        weights: list[float] = (-0.5 * ((numbers - mean) / self.std).square()).softmax(dim=0).tolist()
        return weights

    def describe(self) -> dict[str, Any]:
        """Those of IVLP, the weights, and μ and σ."""
        described = super().describe()
        own = {"text_weight": self.text_weight, "image_weight": self.image_weight}
        return {**described, "options": {**described["options"], **own, "mean": self.mean, "std": self.std}}

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        options = card["options"]
        weights = {name: float(options[name]) for name in ("text_weight", "image_weight", "std")}
        mean = None if options["mean"] is None else float(options["mean"])
        return {**super()._more(card), **weights, "mean": mean}
