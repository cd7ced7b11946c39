"""CIFAR and STL-10 in miniature, in the formats their authors publish and in the Hub's, for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from torch import Tensor

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Global:
    """What a pickle names, and what it is called with: ``Global("os", "system", b"ls")``."""

    def __init__(self, module: str, name: str, *arguments: object, state: object = None) -> None:
        self.module, self.name, self.arguments, self.state = module, name, arguments, state


def reduced(array: Bytes) -> Global:
    """An array as NumPy under Python 2 reduced it."""
    first = not array.flags.c_contiguous
    kind = Global("numpy", "dtype", b"u1", 0, 1, state=(3, b"|", None, None, None, -1, -1, 0))
    state = (1, array.shape, kind, first, array.tobytes("F" if first else "C"))
    start = (Global("numpy", "ndarray"), (0,), b"b")
    return Global("numpy.core.multiarray", "_reconstruct", *start, state=state)


def python2_pickle(value: object) -> bytes:
    """What Python 2's cPickle writes in protocol 2, where text is bytes (but for its memo)."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, Global):
        named = f"c{value.module}\n{value.name}\n".encode()
        called = named + (_opcodes(value.arguments) + b"R" if value.arguments else b"")
        return called + (_opcodes(value.state) + b"b" if value.state is not None else b"")
    if isinstance(value, np.ndarray):
        return _opcodes(reduced(value))
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return _opcodes(value.encode())
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    assert isinstance(value, dict)
    return b"}(" + b"".join(_opcodes(key) + _opcodes(own) for key, own in value.items()) + b"u"


def pictures(count: int, side: int, seed: int) -> Bytes:
    """Noise, ``[count, 3, side, side]``."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def write_cifar10(root: Path, each: int = 2) -> None:
    """``cifar-10-batches-py``: in each file `each` images of every class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for seed, name in enumerate(names):
        content: dict[str, object] = {
            "batch_label": f"batch {seed}",
            "labels": [(label + seed) % 10 for label in range(10)] * each,
            "data": pictures(10 * each, 32, seed).reshape(-1, 3072),
            "filenames": [f"{number}.png" for number in range(10 * each)],
        }
        (folder / name).write_bytes(python2_pickle(content))
    meta = {"num_cases_per_batch": 10 * each, "label_names": list(CIFAR10), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))


def write_cifar100(root: Path, each: int = 1) -> None:
    """``cifar-100-python``: `each` images of every class in train and test."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        fine = [(7 * label + seed) % 100 for label in range(100)] * each
        content: dict[str, object] = {
            "filenames": [f"{number}.png" for number in range(len(fine))],
            "batch_label": f"{name} batch",
            "fine_labels": fine,
            "coarse_labels": [label // 5 for label in fine],
            "data": pictures(len(fine), 32, 10 + seed).reshape(-1, 3072),
        }
        (folder / name).write_bytes(python2_pickle(content))
    meta = {
        "fine_label_names": [f"fine {label}" for label in range(100)],
        "coarse_label_names": [f"coarse {label}" for label in range(20)],
    }
    (folder / "meta").write_bytes(python2_pickle(meta))


def write_stl10(root: Path, each: int = 2, unlabelled: int = 7) -> None:
    """``stl10_binary``: `each` images of every class in train and test, and ten folds of ten images."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate(
        (("train", 10 * each), ("test", 10 * each), ("unlabeled", unlabelled))
    ):
        pictures(count, 96, 20 + seed).transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            labels = np.array([(label + seed) % 10 + 1 for label in range(10)] * each, dtype=np.uint8)
            labels.tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(STL10) + "\n")
    generator = np.random.default_rng(0)
    folds = [sorted(generator.permutation(10 * each)[:10]) for _ in range(10)]
    (folder / "fold_indices.txt").write_text(
        "".join(" ".join(str(position) for position in fold) + " \n" for fold in folds)
    )


def pillow(image: Tensor) -> Image.Image:
    """An image ``[3, H, W]`` as Pillow's."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def table(
    images: Tensor, labels: Tensor, columns: tuple[str, str], names: tuple[str, ...] | None
) -> datasets.Dataset:
    """In the Hub's form: PNG files and class labels (plain numbers without `names`)."""
    kind = datasets.ClassLabel(names=list(names)) if names is not None else datasets.Value("int64")
    rows = {columns[0]: [pillow(image) for image in images], columns[1]: labels.tolist()}
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({columns[0]: datasets.Image(), columns[1]: kind})
    )


def write_parquet(folder: Path, parts: dict[str, datasets.Dataset]) -> None:
    """As the Hub's repositories keep their parts."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        rows.to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
