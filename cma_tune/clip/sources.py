"""Where a backbone comes from: names checked before anything loads, the Hugging Face Hub found or not."""

from __future__ import annotations

import logging
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cma_tune.errors import UserError, nearest
from cma_tune.files import read_json

EMBEDDED = "embedded"
"""Name of the small CLIP that ships inside the package."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""open_clip's prefixes of names that bring their own weights."""

TRANSFORMERS, TRANSFORMERS_FOLDER = "transformers:", "transformers-dir:"
"""Prefixes of models in transformers' form, on the Hub and in a folder; they bring their weights too."""

_REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+/?")

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth")
"""What open_clip takes for weights in a folder."""


def brings_weights(name: str) -> bool:
    """Whether `name` alone says which weights; a tag or checkpoint beside it means nothing then."""
    return name == EMBEDDED or name.startswith((HUB, FOLDER)) or is_transformers_name(name)


def is_transformers_name(name: str) -> bool:
    """Whether transformers loads it."""
    return name.startswith((TRANSFORMERS, TRANSFORMERS_FOLDER))


def transformers_source(name: str) -> str:
    """The repo or folder that transformers is to load."""
    return name.removeprefix(TRANSFORMERS_FOLDER).removeprefix(TRANSFORMERS)


def with_home(
    name: str, pretrained: str | None, model_config: str | None
) -> tuple[str, str | None, str | None]:
    """A backbone's name and files with ``~`` as the home folder: no shell expands it behind a prefix."""
    for prefix in (FOLDER, TRANSFORMERS_FOLDER):
        if name.startswith(prefix):
            name = f"{prefix}{os.path.expanduser(name.removeprefix(prefix))}"
    weights, config = (file and os.path.expanduser(file) for file in (pretrained, model_config))
    return name, weights, config


def check_backbone_name(name: str, pretrained: str | None = None, model_config: str | None = None) -> None:
    """Check a backbone's name and weights before anything is loaded.

    Raises:
        UserError: unknown model or tag (with the nearest known one), or a missing or unfit folder or file.
    """
    if name == EMBEDDED:
        return
    name, pretrained, model_config = with_home(name, pretrained, model_config)
    for prefix, folder in ((HUB, FOLDER), (TRANSFORMERS, TRANSFORMERS_FOLDER)):
        if name.startswith(prefix):
            if not _REPO.fullmatch(name.removeprefix(prefix)):
                raise UserError(
                    f"Expected a Hub name like '{prefix}ORG/REPO', got '{name}'; a folder is '{folder}PATH'."
                )
            return
    if name.startswith(TRANSFORMERS_FOLDER):
        _check_transformers_folder(Path(name.removeprefix(TRANSFORMERS_FOLDER)))
        return
    if name.startswith(FOLDER):
        _check_folder(Path(name.removeprefix(FOLDER)))
        return
    if model_config is not None:
        _check_model_config(name, Path(model_config))
    import open_clip

    known = open_clip.list_models()
    if model_config is None and name not in known:
        raise UserError(
            f"Expected a backbone that open_clip knows, '{HUB}…', '{FOLDER}…', '{TRANSFORMERS}…', "
            f"'{TRANSFORMERS_FOLDER}…' or '{EMBEDDED}', got '{name}'{nearest(name, [*known, EMBEDDED])}."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise UserError(
            f"Expected pretrained weights for '{name}', got none; "
            f"name a checkpoint file or a tag with --pretrained (tags: {', '.join(tags) or 'none known'})."
        )
    if not _is_tag(pretrained, tags) and not Path(pretrained).is_file():
        raise UserError(
            f"Expected a checkpoint file or a tag out of {', '.join(tags) or 'none'} for '{name}', "
            f"got '{pretrained}'{nearest(pretrained, tags)}."
        )


def _is_tag(pretrained: str, tags: list[str]) -> bool:
    # open_clip reads tags without regard to case and to - or _.
    return pretrained.lower().replace("-", "_") in {tag.lower().replace("-", "_") for tag in tags}


def _instead(folder: Path, config: str, prefix: str) -> str:
    """What to do where a folder has not one library's config: it may have the other's."""
    return f"use '{prefix}{folder}'" if (folder / config).is_file() else "check the path"


def _check_folder(folder: Path) -> None:
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise UserError(
            f"Expected a folder with open_clip_config.json at {folder}, but there is none; "
            f"{_instead(folder, 'config.json', TRANSFORMERS_FOLDER)}."
        )
    content = read_json(path, "a backbone's config")
    if not isinstance(content, dict) or not isinstance(content.get("model_cfg"), dict):
        raise UserError(f"Expected 'model_cfg' in {path}, got none; use a folder that open_clip saved.")
    # open_clip only warns where weights are missing, and goes on with random ones.
    if not any(True for pattern in WEIGHT_FILES for _ in folder.glob(pattern)):
        raise UserError(
            f"Expected weights ({', '.join(WEIGHT_FILES)}) in {folder}, but there are none; "
            "put open_clip_model.safetensors there."
        )


_TRANSFORMERS_FILES = {
    "weights": ("*.safetensors",),
    "a tokenizer": ("tokenizer.json", "tokenizer_config.json", "vocab.json", "*.model"),
    "an image processor": ("preprocessor_config.json", "processor_config.json"),
}
"""What a folder that transformers saved must hold beside its config, and what the files may be called."""


def _check_transformers_folder(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"Expected a folder with config.json at {folder}, but there is none; "
            f"{_instead(folder, 'open_clip_config.json', FOLDER)}, or use "
            f"'{TRANSFORMERS}ORG/REPO' for the Hub."
        )
    content = read_json(path, "a backbone's config")
    missing = image_text_parts_missing(content if isinstance(content, dict) else {})
    if missing:
        raise UserError(
            f"Expected the config of an image-text model such as CLIPModel or SiglipModel in {path}, got one "
            f"without {', '.join(missing)}; use a folder that such a model was saved to."
        )
    for what, patterns in _TRANSFORMERS_FILES.items():
        if not any(True for pattern in patterns for _ in folder.glob(pattern)):
            raise UserError(
                f"Expected {what} ({' or '.join(patterns)}) in {folder}, but there is none; save the model, "
                "its tokenizer and its image processor there."
            )


def image_text_parts_missing(config: Mapping[str, object]) -> list[str]:
    """Which of the two towers' settings a transformers config lacks."""
    return [part for part in ("text_config", "vision_config") if not isinstance(config.get(part), dict)]


def _check_model_config(name: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"Expected a model config (JSON) at {path}, but there is no such file; check the path."
        )
    if path.suffix != ".json" or path.stem != name:
        raise UserError(
            f"Expected the backbone's name to be that of its model config, got backbone '{name}' and "
            f"file '{path.name}'; name the file {name}.json or the backbone '{path.stem}'."
        )
    content = read_json(path, "a model config")
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(
            f"Expected {', '.join(needed)} in the model config {path}, got none of the name "
            f"{', '.join(missing)}; write it like open_clip's own."
        )


def hub_found() -> bool:
    """Whether the Hub's host has an address; with a proxy, it is the proxy that knows."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if urllib.request.getproxies() or host is None:
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _may_need_hub(source: str, pretrained: str | None) -> bool:
    """Whether weights, a transformers encoder or a tokenizer may have to be fetched for `source`."""
    if source.startswith(TRANSFORMERS_FOLDER):
        return False
    if source.startswith((HUB, TRANSFORMERS)) or (pretrained is not None and not Path(pretrained).is_file()):
        return True
    import open_clip

    text = (open_clip.get_model_config(source) or {}).get("text_cfg", {})
    return any(key in text for key in ("hf_model_name", "hf_tokenizer_name"))


@contextmanager
def offline_without_network(source: str, pretrained: str | None = None) -> Iterator[None]:
    """Where the Hub has no address, read its cache at once instead of after half a minute of retries."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or (_may_need_hub(source, pretrained) and not hub_found())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip's reports, which go through the root logger, to itself: failures come as exceptions."""
    with _level(logging.getLogger(), logging.CRITICAL):
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """The same for transformers, and no bars."""
    from transformers.utils import logging as reports

    bars = reports.is_progress_bar_enabled()
    reports.disable_progress_bar()
    try:
        with quiet(), _level(reports.get_logger("transformers"), logging.CRITICAL):
            yield
    finally:
        if bars:
            reports.enable_progress_bar()


@contextmanager
def _level(logger: Any, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def failure_reason(error: BaseException, folder: str = FOLDER) -> str:
    """Why loading failed, in one line; `folder` is the prefix of backbones that need no network."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return (
                "the Hugging Face Hub can't be reached and the files are not in its local cache; "
                f"check the connection, or get the files elsewhere and use '{folder}…'"
            )
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    return (text.rstrip(".") if len(text) <= 300 else f"{text[:300]}…") or type(error).__name__
