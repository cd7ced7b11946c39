"""A frozen open_clip model: image features, text features from embeddings, its own preprocessing."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.prompts import PromptTokenizer
from cma_tune.clip.sources import (
    EMBEDDED,
    brings_weights,
    check_backbone_name,
    failure_reason,
    offline_without_network,
    quiet,
)
from cma_tune.clip.text_tower import NativeTextTower, TextTower, text_tower
from cma_tune.errors import UserError

__all__ = ["EMBEDDED", "Backbone", "Preprocessing", "check_backbone_name", "load_backbone"]

CPU_IMAGES = 8
"""Images that go through the image tower at once on a CPU."""


@dataclass(frozen=True)
class Preprocessing:
    """What the image tower expects of images.

    Attributes:
        size: height and width in pixels.
        mean, std: per channel, for values in 0..1.
        interpolation, resize_mode: how images get to that size, in open_clip's words.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str

    def digest(self) -> str:
        """SHA-256 over all of it."""
        content = [self.size, self.mean, self.std, self.interpolation, self.resize_mode]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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

    Attributes:
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
    ) -> None:
        super().__init__()
        self.text_options = TextOptions()
        self._compiled_images: Any = None
        self.model = model.eval().requires_grad_(False)
        model.get_submodule("visual").to(memory_format=torch.channels_last)
        self.name, self.pretrained, self.model_config = name, pretrained, model_config
        context_length = _context_length(model, tokenizer)
        self.tower: TextTower = text_tower(model, context_length, name)
        self.tokenizer = PromptTokenizer(tokenizer, context_length, name)
        _check_agreement(self.tower, self.tokenizer, name)
        self.transform = transform
        self.preprocessing = _preprocessing(model)
        self.weights_digest = _digest(model)
        self.image_digest = _image_digest(model.get_submodule("visual"), self.weights_digest)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode whatever is asked: the backbone is frozen."""
        return super().train(False)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, at least float32."""
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
        model: Any = self.model
        self._compiled_images = torch.compile(model.encode_image, options={"freezing": True})

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features of unit length ``[B, D]``, at least float32."""
        model: Any = self.model
        images = images.to(_input_dtype(model.visual), memory_format=torch.channels_last)
        # On a CPU, activations that fit the caches and the allocator's pool are several times faster.
        at_once = CPU_IMAGES if images.device.type == "cpu" else len(images)
        encode = self._compiled_images or model.encode_image
        features = torch.cat([encode(part) for part in torch.split(images, max(1, at_once))])
        return self.unit_length(features)

    def image_features(self, images: Tensor) -> Tensor:
        """As `encode_image`, all images at once and with gradients, for a `twin` that learns."""
        model: Any = self.model
        # A process's share of a batch may be empty, which towers can't reshape.
        given = images if len(images) else images.new_zeros(1, *images.shape[1:])
        given = given.to(_input_dtype(model.visual), memory_format=torch.channels_last)
        return self.unit_length(model.encode_image(given))[: len(images)]

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


def _input_dtype(visual: nn.Module) -> torch.dtype:
    """What the first layer takes. In open_clip's half precision, embeddings and norms stay float32."""
    for module in visual.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return module.weight.dtype
    return next(visual.parameters()).dtype


def _context_length(model: Any, tokenizer: Any) -> int:
    text = getattr(model, "text", None)
    if text is not None and hasattr(text, "pooler"):
        # A transformers encoder's own limit is only an upper bound, and 0 where it has none.
        limit = int(getattr(text, "context_length", 0) or 0)
        length = int(tokenizer.context_length)
        return min(length, limit) if limit else length
    length = getattr(text, "context_length", None) or model.context_length
    return min(int(length), int(getattr(tokenizer, "context_length", None) or length))


def _check_agreement(tower: TextTower, tokenizer: PromptTokenizer, name: str) -> None:
    """Refuse a tokenizer of another vocabulary, and a pooled token that is not the end of the words."""
    ids = tokenizer.tokenize(["a"])
    if int(ids.max()) >= tower.vocabulary_size:
        raise UserError(
            f"Expected token ids below {tower.vocabulary_size}, the vocabulary of '{name}', "
            f"got {int(ids.max())} from its tokenizer; check vocab_size and hf_tokenizer_name in its config."
        )
    if not isinstance(tower, NativeTextTower) or tower.appended_cls or tower.pool == "last":
        return
    if tower.pool == "first" and not tower.causal:
        return
    pooled = int(tower.pooled_index(ids)[0])
    end = len(tokenizer.start_ids) + len(tokenizer.words("a"))
    if not tokenizer.end_ids or pooled != end:
        raise UserError(
            f"Expected the text tower of '{name}' to pool the token that ends a text, got token {pooled} "
            f"of {end + 1} (pooling '{tower.pool}'); check pool_type and eos_id in its config."
        )


def _preprocessing(model: Any) -> Preprocessing:
    config = model.visual.preprocess_cfg
    size = config["size"]
    height_width = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return Preprocessing(
        size=height_width,
        mean=tuple(float(m) for m in config["mean"]),
        std=tuple(float(s) for s in config["std"]),
        interpolation=str(config["interpolation"]),
        resize_mode=str(config["resize_mode"]),
    )


def _digest(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, int | float | str)


def _image_digest(visual: nn.Module, weights: str) -> str:
    """Weights alone don't tell QuickGELU from GELU, or the number of heads."""
    content = hashlib.sha256(weights.encode())
    for name, module in visual.named_modules():
        plain = {
            attribute: value
            for attribute, value in sorted(vars(module).items())
            if attribute != "training" and _is_plain(value)
        }
        content.update(f"{name} {type(module).__qualname__} {plain}".encode())
    return content.hexdigest()


def load_backbone(
    name: str,
    pretrained: str | None = None,
    model_config: str | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load an open_clip model as a frozen backbone.

    Args:
        name: ``embedded``, an open_clip model name, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.
        pretrained: weights for a model name: a tag of open_clip or a checkpoint file. The other kinds of
            name bring their weights, and leave this and `model_config` aside.
        model_config: an open_clip model config (JSON) of your own; `name` is then its stem.
        device: where the weights go.

    Raises:
        UserError: the name, the weights or the text tower's family is not known or can't be loaded.
    """
    check_backbone_name(name, pretrained, model_config)
    import open_clip

    source = name
    if name == EMBEDDED:
        from cma_tune.data.builtin import SMALL_CLIP_DIR

        source = f"local-dir:{SMALL_CLIP_DIR}"
    if brings_weights(name):
        pretrained = model_config = None
    if model_config is not None:
        # Whole, because open_clip reads all its config files anew whenever one is added.
        open_clip.add_model_config(Path(model_config).resolve())
    try:
        with quiet(), offline_without_network(source, pretrained):
            # Unlike create_model_and_transforms, this fails where no weights were found.
            model, transform = open_clip.create_model_from_pretrained(
                source, pretrained=pretrained, device=device, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:  # open_clip raises anything from OSError to a bare RuntimeError here
        with_weights = f" with {pretrained}" if pretrained else ""
        raise UserError(
            f"Expected to load backbone '{name}'{with_weights}, but it failed: {failure_reason(error)}."
        ) from error
    return Backbone(model, tokenizer, transform, name, pretrained, model_config)
