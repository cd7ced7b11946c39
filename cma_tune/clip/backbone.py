"""A frozen model of open_clip or transformers: image features, text features, its own preprocessing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.agreement import check_agreement
from cma_tune.clip.digests import image_digest, weights_digest
from cma_tune.clip.image_tower import check_image_tower, image_features, image_tower, in_parts, input_dtype
from cma_tune.clip.loading import load
from cma_tune.clip.preprocessing import Preprocessing, open_clip_preprocessing
from cma_tune.clip.prompts import PromptTokenizer
from cma_tune.clip.sources import EMBEDDED, brings_weights, check_backbone_name
from cma_tune.clip.text_tower import TextTower, text_tower

__all__ = ["EMBEDDED", "Backbone", "Preprocessing", "check_backbone_name", "load_backbone"]


@dataclass(frozen=True)
class TextOptions:
    """How prompts with learned contexts go through the text tower. The result is always the same.

    Attributes:
        share_prefix: run the common beginning of prompts once, and no padding, where the tower lets it.
        chunk: prompts (classes, times images where text depends on them) that go through at once; the rest is
            recomputed in the backward pass. 0: as many as fit `memory`.
        memory: GiB for activations, roughly.
        split_over_processes: where text is the same on every process, each encodes a share of the classes.
        compile: run the packed tower under torch.compile.
    """

    share_prefix: bool = True
    chunk: int = 0
    memory: float = 4.0
    split_over_processes: bool = False
    compile: bool = False


class Backbone(nn.Module):
    """A frozen image-text model in eval mode.

    Args:
        model: an open_clip model, or one of transformers built like `CLIPModel` or `SiglipModel`.
        tokenizer: called with texts, gives ids ``[N, context_length]``.
        transform: what images go through.
        name, pretrained, model_config: how it was asked for.
        preprocessing: what `transform` does; by default what an open_clip model says.

    Raises:
        UserError: the text tower's family is not known, or the tokenizer is another model's.

    Attributes:
        model: the model itself.
        name, pretrained, model_config: how it was asked for.
        tower: the text tower from embeddings on.
        tokenizer: its tokenizer, taken apart.
        preprocessing, transform: what images go through before `encode_image`.
        weights_digest: SHA-256 over all weights.
        image_digest: SHA-256 over all weights and what the image tower is made of, which decide its features.
        text_options: how prompts with learned contexts go through the text tower.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        transform: Any,
        name: str,
        pretrained: str | None = None,
        model_config: str | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.text_options = TextOptions()
        self._compiled_images: Any = None
        self.model = model.eval().requires_grad_(False)
        check_image_tower(model, name)
        self.visual.to(memory_format=torch.channels_last)
        self.name, self.pretrained, self.model_config = name, pretrained, model_config
        tokenizer_length = getattr(tokenizer, "context_length", None)
        self.tower: TextTower = text_tower(model, tokenizer_length, name)
        context_length = min(self.tower.context_length, int(tokenizer_length or self.tower.context_length))
        self.tokenizer = PromptTokenizer(tokenizer, context_length, name)
        check_agreement(model, self.tower, self.tokenizer, name)
        self.transform = transform
        self.preprocessing = preprocessing or open_clip_preprocessing(model)
        self.weights_digest = weights_digest(model)
        self.image_digest = image_digest(self.visual, self.weights_digest)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode whatever is asked: the backbone is frozen."""
        return super().train(False)

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return image_tower(self.model)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, at least float32.

        SigLIP's logit_bias is left out: it is the same for all classes, so a softmax over them does not see
        it.
        """
        logit_scale: Any = self.model.logit_scale
        return _at_least_float32(logit_scale.detach()).exp().reshape(())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def compile_images(self) -> None:
        """Run the image tower under torch.compile from now on.

        Its weights become constants of the compiled code, so that norms are folded into convolutions.
        """
        self._compiled_images = torch.compile(self._image_features, options={"freezing": True})

    def _image_features(self, images: Tensor) -> Tensor:
        return image_features(self.model, images)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features of unit length ``[B, D]``, at least float32."""
        images = images.to(input_dtype(self.visual), memory_format=torch.channels_last)
        encode = self._compiled_images or self._image_features
        return self.unit_length(in_parts(encode, images))

    def image_features(self, images: Tensor) -> Tensor:
        """As `encode_image`, all images at once and with gradients, for a `twin` that learns."""
        # A process's share of a batch may be empty, which towers can't reshape.
        given = images if len(images) else images.new_zeros(1, *images.shape[1:])
        given = given.to(input_dtype(self.visual), memory_format=torch.channels_last)
        return self.unit_length(self._image_features(given))[: len(images)]

    def twin(self) -> Backbone:
        """A backbone whose layers can be exchanged, or wrapped, without a change of this one.

        Modules are copied; weights, which are frozen, and the tokenizer are shared, so it takes hardly any
        memory.
        """
        shared = [*self.parameters(), *self.buffers(), self.tokenizer, self.transform]
        twin = copy.deepcopy(self, {id(part): part for part in shared})
        twin._compiled_images = None  # it is this model's
        return twin

    def unit_length(self, features: Tensor) -> Tensor:
        """Features ``[..., D]`` scaled to unit length, at least float32."""
        return nn.functional.normalize(_at_least_float32(features), dim=-1)

    @torch.no_grad()
    def encode_texts(
        self, texts: Sequence[str], batch: int = 256, class_names: Sequence[str] | None = None
    ) -> Tensor:
        """Whole texts → features of unit length ``[N, D]``.

        Args:
            texts: what to encode.
            batch: texts that go through the tower at once.
            class_names: what to call each text in an error; by default the text itself.

        Raises:
            UserError: a text has more tokens than the tower takes.
        """
        ids = self.tokenizer.tokenize(texts, class_names).to(self.device)
        parts = []
        for chunk in torch.split(ids, batch):
            embeddings = self.tower.token_embeddings(chunk)[:, : self.tower.needed_length(chunk)]
            parts.append(self.unit_length(self.tower(embeddings, chunk)))
        return torch.cat(parts)

    def describe(self) -> dict[str, Any]:
        """What a record or a prompt's card says of the backbone."""
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "model_config": self.model_config,
            "weights": self.weights_digest,
            "preprocessing": self.preprocessing.digest(),
        }


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def load_backbone(
    name: str,
    pretrained: str | None = None,
    model_config: str | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load a model of open_clip or transformers as a frozen backbone.

    Args:
        name: ``embedded``, an open_clip model name, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER`` in
            open_clip's form, ``transformers:ORG/REPO`` or ``transformers-dir:FOLDER`` in transformers'.
        pretrained: weights for a model name: a tag of open_clip or a checkpoint file. The other kinds of
            name bring their weights, and leave this and `model_config` aside.
        model_config: an open_clip model config (JSON) of your own; `name` is then its stem.
        device: where the weights go.

    Raises:
        UserError: the name, the weights or the text tower's family is not known or can't be loaded.
    """
    check_backbone_name(name, pretrained, model_config)
    if brings_weights(name):
        pretrained = model_config = None
    made = load(name, pretrained, model_config, device)
    return Backbone(
        made.model, made.tokenizer, made.transform, name, pretrained, model_config, made.preprocessing
    )
