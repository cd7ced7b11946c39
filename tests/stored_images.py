"""A folder of small files, and an encoder that counts: for tests of the feature store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cma_tune.data.dataset import FileImages
from cma_tune.data.feature_shards import Space
from cma_tune.data.features import FeatureStore
from cma_tune.data.splits import Item

SPACE = Space("weights", "transform")
DIM = 7


def write_file(path: Path, content: str, modified: int = 1_000_000_000) -> None:
    """A file that was last written long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, ns=(modified, modified))


def folder_of(root: Path, count: int, start: int = 0) -> tuple[FileImages, list[Item]]:
    """Files with different contents, and their items."""
    names = [f"{number:03d}" for number in range(start, start + count)]
    for name in names:
        write_file(root / name, f"image {name}")
    return FileImages(root), [Item(name, 0) for name in names]


def row(content: bytes, salt: str = "") -> Tensor:
    """The feature ``[DIM]`` of a file's content; nothing else decides it."""
    seed = int.from_bytes(hashlib.sha256(content + salt.encode()).digest()[:6], "little")
    return torch.randn(DIM, generator=torch.Generator().manual_seed(seed))


class Encoder:
    """Encodes files and remembers which, call by call."""

    def __init__(self, images: FileImages, salt: str = "") -> None:
        self.images, self.salt = images, salt
        self.calls: list[list[str]] = []

    def __call__(self, items: Sequence[Item], progress: Callable[[int], None]) -> Tensor:
        self.calls.append([item.key for item in items])
        progress(len(items))
        return self.expected(items)

    def expected(self, items: Sequence[Item]) -> Tensor:
        """Features ``[N, DIM]`` straight from the files."""
        return torch.stack([row((self.images.root / item.key).read_bytes(), self.salt) for item in items])

    def take(self) -> list[str]:
        """Keys that were encoded since the last look."""
        keys = [key for call in self.calls for key in call]
        self.calls = []
        return keys


def shards(store: Path) -> list[Path]:
    """All shards of a store."""
    return sorted(store.glob("*/*.safetensors"))


def fill(
    store: Path, images: FileImages, items: Sequence[Item], space: Space = SPACE, salt: str = ""
) -> list[str]:
    """Ask for features, check every row, and tell what was encoded for it."""
    encoder = Encoder(images, salt)
    features = FeatureStore(store).features(space, images, items, encoder)
    assert features.dtype == torch.float32 and features.device.type == "cpu"
    assert torch.equal(features, encoder.expected(items))
    return encoder.take()
