"""A frozen open_clip model: image features, text features from embeddings, its own preprocessing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.prompts import PromptTokenizer
from cma_tune.clip.text_tower import TextTower, text_tower
from cma_tune.errors import UserError, nearest

EMBEDDED = "embedded"
"""Name of the small CLIP that ships inside the package."""


@dataclass(frozen=True)
class Preprocessing:
    """What the image tower expects: input size (height, width), mean and std per channel, and how images get there."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str

    def digest(self) -> str:
        """SHA-256 over all of it."""
        content = [self.size, self.mean, self.std, self.interpolation, self.resize_mode]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Backbone(nn.Module):
    """A frozen image-text model in eval mode.

    Attributes:
        name, pretrained, model_config: how it was asked for.
        tower: the text tower from embeddings on.
        tokenizer: its tokenizer, taken apart.
        preprocessing, transform: what images go through before `encode_image`.
        weights_digest: SHA-256 over all weights.
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
        self.model = model.eval().requires_grad_(False)
        self.name, self.pretrained, self.model_config = name, pretrained, model_config
        context_length = _context_length(model, tokenizer)
        self.tower: TextTower = text_tower(model, context_length, name)
        self.tokenizer = PromptTokenizer(tokenizer, context_length)
        self.transform = transform
        self.preprocessing = _preprocessing(model)
        self.weights_digest = _digest(model)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode whatever is asked: the backbone is frozen."""
        return super().train(False)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar."""
        logit_scale: Any = self.model.logit_scale
        return torch.as_tensor(logit_scale.detach().float().exp().reshape(()))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features of unit length ``[B, D]`` in float32."""
        model: Any = self.model
        weights = next(model.visual.parameters()).dtype
        features = model.encode_image(images.to(weights))
        return nn.functional.normalize(features.float(), dim=-1)

    def encode_prompts(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Prompt embeddings ``[N, L', W]`` and ids ``[N, L]`` → text features of unit length ``[N, D]``, at least float32."""
        features = self.tower(embeddings, ids)
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return nn.functional.normalize(features, dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Whole texts → features of unit length ``[N, D]``.

        Raises:
            UserError: a text has more tokens than the tower takes.
        """
        ids = self.tokenizer.tokenize(texts).to(self.device)
        parts = []
        for chunk in ids.split(batch):
            embeddings = self.tower.token_embeddings(chunk)[:, : self.tower.needed_length(chunk)]
            parts.append(self.encode_prompts(embeddings, chunk))
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


def _context_length(model: Any, tokenizer: Any) -> int:
    text = getattr(model, "text", None)
    if text is not None and hasattr(text, "pooler"):
        return int(tokenizer.context_length)  # a transformers encoder's own limit is only an upper bound
    length = getattr(text, "context_length", None) or model.context_length
    return min(int(length), int(getattr(tokenizer, "context_length", None) or length))


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


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip reports every step through the root logger; keep warnings and errors."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(level)


def check_backbone_name(name: str, pretrained: str | None = None, model_config: str | None = None) -> None:
    """Check a backbone's name and weights before anything is loaded.

    Raises:
        UserError: unknown model or tag (with the nearest known one), or a missing folder or file.
    """
    if name == EMBEDDED or name.startswith("hf-hub:"):
        return
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(
                f"Expected a folder with open_clip_config.json at {folder}, but there is none; check the path."
            )
        return
    if model_config is not None and not Path(model_config).is_file():
        raise UserError(f"Expected a model config (JSON) at {model_config}, but there is no such file.")
    import open_clip

    known = open_clip.list_models()
    if model_config is not None:
        known = [*known, Path(model_config).stem]
    if name not in known:
        raise UserError(
            f"Expected a backbone that open_clip knows, 'hf-hub:…', 'local-dir:…' or '{EMBEDDED}', "
            f"got '{name}'{nearest(name, [*known, EMBEDDED])}."
        )
    if pretrained is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UserError(
            f"Expected pretrained weights for '{name}', got none; "
            f"name a checkpoint file or a tag with --pretrained (tags: {', '.join(tags) or 'none known'})."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained.lower().replace("-", "_") not in {tag.replace("-", "_") for tag in tags} and not Path(pretrained).is_file():
        raise UserError(
            f"Expected a checkpoint file or a tag out of {', '.join(tags) or 'none'} for '{name}', "
            f"got '{pretrained}'{nearest(pretrained, tags)}."
        )


def load_backbone(
    name: str,
    pretrained: str | None = None,
    model_config: str | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load an open_clip model as a frozen backbone.

    Args:
        name: ``embedded``, an open_clip model name, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.
        pretrained: weights for a model name: a tag of open_clip or a checkpoint file.
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
    if model_config is not None:
        open_clip.add_model_config(model_config)
    try:
        with _quiet():
            model, _, transform = open_clip.create_model_and_transforms(
                source, pretrained=pretrained, device=device, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(source)
    except UserError:
        raise
    except Exception as error:  # open_clip raises anything from OSError to a bare RuntimeError here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Expected to load backbone '{name}'{f' with {pretrained}' if pretrained else ''}, but it failed: {reason}"
        ) from error
    return Backbone(model, tokenizer, transform, name, pretrained, model_config)

