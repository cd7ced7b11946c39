"""Where a backbone comes from: names checked before anything loads, the Hugging Face Hub found or not."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cma_tune.errors import UserError, nearest
from cma_tune.files import read_json

EMBEDDED = "embedded"
"""Name of the small CLIP that ships inside the package."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""open_clip's prefixes of names that bring their own weights."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth")
"""What open_clip takes for weights in a folder."""


def brings_weights(name: str) -> bool:
    """Whether `name` alone says which weights; a tag or checkpoint beside it means nothing then."""
    return name == EMBEDDED or name.startswith((HUB, FOLDER))


def check_backbone_name(name: str, pretrained: str | None = None, model_config: str | None = None) -> None:
    """Check a backbone's name and weights before anything is loaded.

    Raises:
        UserError: unknown model or tag (with the nearest known one), or a missing or unfit folder or file.
    """
    if name == EMBEDDED:
        return
    if name.startswith(HUB):
        if name.removeprefix(HUB).strip("/").count("/") != 1:
            raise UserError(f"Expected a Hub name like 'hf-hub:ORG/REPO', got '{name}'.")
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
            f"Expected a backbone that open_clip knows, 'hf-hub:…', 'local-dir:…' or '{EMBEDDED}', "
            f"got '{name}'{nearest(name, [*known, EMBEDDED])}."
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


def _check_folder(folder: Path) -> None:
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise UserError(
            f"Expected a folder with open_clip_config.json at {folder}, but there is none; check the path."
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


def _check_model_config(name: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"Expected a model config (JSON) at {path}, but there is no such file.")
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
    """Whether open_clip may fetch weights, a transformers encoder or a tokenizer for `source`."""
    import open_clip

    if source.startswith(HUB) or (pretrained is not None and not Path(pretrained).is_file()):
        return True
    text = (open_clip.get_model_config(source) or {}).get("text_cfg", {})
    return any(key in text for key in ("hf_model_name", "hf_tokenizer_name"))


@contextmanager
def offline_without_network(source: str, pretrained: str | None) -> Iterator[None]:
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
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def failure_reason(error: BaseException) -> str:
    """Why loading failed, in one line."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return (
                "the Hugging Face Hub can't be reached and the files are not in its local cache; "
                "check the connection, or get the files elsewhere and use 'local-dir:…'"
            )
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    return (text if len(text) <= 300 else f"{text[:300]}…") or type(error).__name__
