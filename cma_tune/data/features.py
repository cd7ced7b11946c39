"""Stored image features: encoded once per backbone, preprocessing and images, kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cma_tune.data.sources import ImageSource
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
        content.update(f"{item.key}\0{images.fingerprint(item.key)}\n".encode())
    return {
        "backbone": backbone,
        "preprocessing": preprocessing,
        "images": content.hexdigest(),
        "count": len(items),
        "view": dict(view),
    }


def _path(folder: Path, identity: Mapping[str, object]) -> Path:
    text = json.dumps(identity, sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path, identity: Mapping[str, object]) -> Tensor | None:
    """The features in `path`, or None if there are none that can be trusted."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            if json.loads((handle.metadata() or {}).get("identity", "null")) == identity:
                return handle.get_tensor("features")
    except (SafetensorError, OSError, json.JSONDecodeError, ValueError) as error:
        log.warning("stored features %s can't be read (%s); they are made again", path, error)
    return None


def stored_features(
    folder: Path, identity: Mapping[str, object], encode: Callable[[], Tensor], writer: bool = True
) -> Tensor:
    """Read features ``[N, D]`` from the store, or make them with `encode` and store them (if `writer`)."""
    path = _path(folder, identity)
    features = _read(path, identity)
    if features is None:
        features = encode().cpu().contiguous()
        if writer:
            tensors, metadata = {"features": features}, {"identity": json.dumps(identity)}
            write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))
    return features
