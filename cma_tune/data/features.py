"""Stored image features: encoded once per backbone, preprocessing and images, kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cma_tune.data.dataset import ImageSource
from cma_tune.data.splits import Item
from cma_tune.files import write_atomically

log = logging.getLogger(__name__)


def feature_identity(
    backbone: str, preprocessing: str, images: ImageSource, items: Sequence[Item], view: Mapping[str, object]
) -> dict[str, object]:
    """What a stored feature file depends on.

    Args:
        backbone: digest of the weights.
        preprocessing: digest of the transform.
        images, items: the images, which enter by key and fingerprint.
        view: what was drawn at random (seed, epoch, augmentation), empty for the test transform.
    """
    content = hashlib.sha256()
    for item in items:
        line = f"{item.key}\0{images.fingerprint(item.key)}\n"
        content.update(line.encode("utf-8", "surrogateescape"))  # file names need not be valid UTF-8
    return {
        "backbone": backbone,
        "preprocessing": preprocessing,
        "images": content.hexdigest(),
        "count": len(items),
        "view": dict(view),
    }


def _text(identity: Mapping[str, object]) -> str:
    return json.dumps(identity, sort_keys=True)


def _checksum(features: Tensor) -> str:
    return hashlib.sha256(features.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _read(path: Path, identity: Mapping[str, object]) -> Tensor | None:
    """The features in `path`, or None if there are none that can be trusted."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            features: Tensor = handle.get_tensor("features")
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("stored features %s can't be read (%s); they are made again", path, error)
        return None
    # A file may have its full length and hold other bytes: a disk that filled up, a copy that broke off.
    if metadata.get("identity") != _text(identity) or metadata.get("sha256") != _checksum(features):
        log.warning("stored features %s are damaged or of something else; they are made again", path)
        return None
    return features


def stored_features(
    folder: Path, identity: Mapping[str, object], encode: Callable[[], Tensor], writer: bool = True
) -> Tensor:
    """Read features ``[N, D]`` from the store, or make them with `encode` and store them (if `writer`).

    Args:
        folder: the store; a file's name is the hash of its identity.
        identity: what the features depend on, see `feature_identity`; JSON values.
        encode: makes the features; not called if the store has them.
        writer: whether this process stores what it made.
    """
    path = folder / f"{hashlib.sha256(_text(identity).encode()).hexdigest()[:32]}.safetensors"
    features = _read(path, identity)
    if features is None:
        features = encode().detach().cpu().contiguous()
        if writer:
            tensors = {"features": features}
            metadata = {"identity": _text(identity), "sha256": _checksum(features)}
            write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))
    return features
