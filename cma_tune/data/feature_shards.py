"""Files of stored image features: one row per image, checksums over everything, safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cma_tune.data.dataset import DIGEST_BYTES
from cma_tune.files import write_atomically

FORMAT = 1


class DamagedShardError(Exception):
    """A file of stored features does not hold what it should; the message says in what way."""


@dataclass(frozen=True)
class Space:
    """What makes features comparable: rows of one space may be mixed, rows of two may not.

    Attributes:
        backbone: digest of the weights.
        preprocessing: digest of the transform.
        precision: no (float32), bf16 or fp16.
        view: what the random transform depends on (seed, epoch, scale, flip); empty for the test transform.
    """

    backbone: str
    preprocessing: str
    precision: str = "no"
    view: Mapping[str, object] = field(default_factory=dict)

    def text(self) -> str:
        """All of it as JSON."""
        content = {
            "format": FORMAT,
            "backbone": self.backbone,
            "preprocessing": self.preprocessing,
            "precision": self.precision,
            "view": dict(self.view),
        }
        return json.dumps(content, sort_keys=True)

    @property
    def id(self) -> str:
        """Name of its folder in the store."""
        return space_id(self.text())


def space_id(text: str) -> str:
    """Name of the folder of the space that reads `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Header:
    """What a shard says of itself.

    Attributes:
        space: `Space.text`.
        about: for people: dataset, images, backbone, preprocessing.
        rows, dim: shape of the features ``[rows, dim]``.
        images_sha256, sha256: over the header with the images, and with images and features.
    """

    space: str
    about: dict[str, str]
    rows: int
    dim: int
    images_sha256: str = ""
    sha256: str = ""

    def check(self, images: Tensor, features: Tensor | None = None) -> None:
        """Compare the checksums.

        Raises:
            DamagedShardError: the bytes are others than those that were written.
        """
        whole = features is None or self.digest(images, features) == self.sha256
        if self.digest(images) != self.images_sha256 or not whole:
            raise DamagedShardError("its checksum is another one")

    def digest(self, *tensors: Tensor) -> str:
        """SHA-256 over what the header says and the tensors."""
        text = json.dumps([self.space, self.about, self.rows, self.dim], sort_keys=True)
        content = hashlib.sha256(text.encode())
        for tensor in tensors:
            content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return content.hexdigest()


def shard_paths(folder: Path) -> list[Path]:
    """The shards of one space, in the order of their names."""
    try:
        return sorted(path for path in folder.iterdir() if is_shard(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_shard(name: str) -> bool:
    """Whether a file of this name is a shard (and not a temporary one)."""
    return name.endswith(".safetensors") and not name.startswith(".")


def write_shard(
    folder: Path, space: str, images: Sequence[bytes], features: Tensor, about: Mapping[str, str]
) -> Path:
    """Store rows; `folder` is the space's.

    The name comes from the content: processes that make the same rows at once write the same file.

    Args:
        folder: of the space.
        space: `Space.text`.
        images: digests of the images, N of them.
        features: ``[N, D]`` float32, on the CPU.
        about: see `Header`.
    """
    identifiers = torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8)
    identifiers = identifiers.reshape(len(images), DIGEST_BYTES)
    features = features.contiguous()
    header = Header(space, dict(about), *features.shape)
    sha256 = header.digest(identifiers, features)
    metadata = {
        "space": space,
        "about": json.dumps(header.about, sort_keys=True),
        "images_sha256": header.digest(identifiers),
        "sha256": sha256,
    }
    path = folder / f"{sha256[:32]}.safetensors"
    tensors = {"images": identifiers, "features": features}
    write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))
    return path


def read_header(path: Path) -> Header:
    """What the shard says of itself, without its rows.

    Raises:
        DamagedShardError: there is none, or it is not that of a shard.
        OSError: the file can't be opened.
    """
    header, _ = _read(path, ())
    return header


def read_images(path: Path) -> list[bytes]:
    """Digests of the shard's images, checked.

    Raises:
        DamagedShardError: see there.
        OSError: the file can't be opened.
    """
    header, (images,) = _read(path, ("images",))
    header.check(images)
    return _split(images)


def read_shard(path: Path) -> tuple[Header, list[bytes], Tensor]:
    """Header, digests of the images and features ``[N, D]``, checked.

    Raises:
        DamagedShardError: see there.
        OSError: the file can't be opened.
    """
    header, (images, features) = _read(path, ("images", "features"))
    header.check(images, features)
    return header, _split(images), features


def _read(path: Path, names: Sequence[str]) -> tuple[Header, list[Tensor]]:
    try:
        # As arrays: the file is opened once, while "pt" opens it a second time, when it may be gone.
        with safe_open(str(path), framework="numpy") as handle:
            metadata = handle.metadata() or {}
            images, features = (handle.get_slice(name) for name in ("images", "features"))
            shapes = images.get_shape(), features.get_shape()
            kinds = images.get_dtype(), features.get_dtype()
            tensors = [torch.from_numpy(handle.get_tensor(name)) for name in names]
        header = _header(metadata, shapes, kinds)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedShardError(str(error) or type(error).__name__) from None
    # Read from where it says it is: a shard among those of another space would mix what can't be compared.
    if space_id(header.space) != path.parent.name:
        raise DamagedShardError("it is of another space")
    return header, tensors


def _header(metadata: Mapping[str, str], shapes: Any, kinds: Any) -> Header:
    (rows, width), (count, dim) = shapes
    if (rows, width) != (count, DIGEST_BYTES) or kinds != ("U8", "F32"):
        raise ValueError(f"it holds {kinds[1]} {[count, dim]} for {kinds[0]} {[rows, width]}")
    about = json.loads(metadata["about"])
    if not isinstance(about, dict):
        raise ValueError("its description is no object")
    about = {str(key): str(value) for key, value in about.items()}
    return Header(metadata["space"], about, rows, dim, metadata["images_sha256"], metadata["sha256"])


def _split(images: Tensor) -> list[bytes]:
    content = images.numpy().tobytes()
    return [content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES)]
