"""CIFAR and STL-10 in the files their authors publish, as torchvision unpacks them; none of it is run."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cma_tune.companion.pools import Pool, Pools, no_images
from cma_tune.errors import UserError

CIFAR_SIDE, STL_SIDE, STL_CLASSES = 32, 96, 10


class _Named:
    """Stands for what a pickle names: keeps what that would be called with, and does nothing."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Inert(pickle.Unpickler):
    """Reads the published CIFAR files, which are pickles, without running anything they name.

    They name three things of NumPy's, out of which an array is made. For a forged file NumPy would make more
    of them, such as an array of objects with the file's bytes as their addresses. So none of it is called;
    `_bytes_of` looks at what it would have been called with.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Named


def _bytes_of(array: object) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """The array of bytes that a pickle describes, None if it describes anything else."""
    state = array.state if isinstance(array, _Named) else None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    version, shape, kind, columns_first, content = state
    if (
        version != 1
        or not isinstance(columns_first, bool)
        or not isinstance(shape, tuple)
        or not all(type(length) is int and length >= 0 for length in shape)
        or not isinstance(kind, _Named)
        or kind.arguments[:1] not in ((b"u1",), (b"|u1",))
        or not isinstance(content, bytes)
        or len(content) != math.prod(shape)
    ):
        return None
    return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if columns_first else "C")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"Expected the file {path}, but there is none; unpack the whole archive.") from None
    except OSError as error:
        raise UserError(f"Expected the file {path}, but it can't be read ({error.strerror}).") from None


def _dictionary(path: Path) -> dict[bytes, Any]:
    """The dictionary in a CIFAR file, text as bytes."""
    content = _content(path)
    try:
        read = _Inert(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(
            f"Expected a published CIFAR file at {path}, but it can't be read ({error}); unpack it again."
        ) from None
    if not isinstance(read, dict):
        raise UserError(
            f"Expected a published CIFAR file at {path}, got a pickle without a dictionary; unpack it again."
        )
    return read


def _cifar_part(paths: Sequence[Path], key: bytes, classes: int) -> Pool:
    images, labels = [], []
    for path in paths:
        content = _dictionary(path)
        data, own = _bytes_of(content.get(b"data")), content.get(key)
        pixels = 3 * CIFAR_SIDE**2
        if data is None or data.shape[1:] != (pixels,):
            raise UserError(
                f"Expected rows of {pixels} bytes under 'data' in {path}, got others; unpack it again."
            )
        if not isinstance(own, list) or len(own) != len(data):
            got = len(own) if isinstance(own, list) else "none"
            raise UserError(
                f"Expected {len(data)} labels under '{key.decode()}' in {path}, got {got}; unpack it again."
            )
        wrong = [label for label in own if type(label) is not int or not 0 <= label < classes]
        if wrong:
            raise UserError(
                f"Expected labels from 0 to {classes - 1} under '{key.decode()}' in {path}, "
                f"got {wrong[0]!r}; unpack it again."
            )
        images.append(torch.tensor(data).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE))
        labels.append(torch.tensor(own, dtype=torch.int64))
    return Pool(torch.cat(images), torch.cat(labels))


def _cifar(folder: Path, train: Sequence[str], test: str, meta: str, names: bytes, labels: bytes) -> Pools:
    called = _dictionary(folder / meta).get(names)
    if not isinstance(called, list) or not all(isinstance(name, bytes) for name in called):
        raise UserError(
            f"Expected class names under '{names.decode()}' in {folder / meta}, got none; unpack it again."
        )
    return Pools(
        _cifar_part([folder / name for name in train], labels, len(called)),
        no_images(CIFAR_SIDE),
        _cifar_part([folder / test], labels, len(called)),
        tuple(name.decode(errors="replace") for name in called),
        f"the authors' files ({folder})",
    )


def read_cifar10(folder: Path, unlabelled: bool = False) -> Pools:
    """``cifar-10-batches-py``: five training files and one test file.

    Args:
        folder: of the files.
        unlabelled: without effect, there are no such images.

    Raises:
        UserError: a file is missing, damaged, or names anything but arrays of bytes.
    """
    train = [f"data_batch_{number}" for number in range(1, 6)]
    return _cifar(folder, train, "test_batch", "batches.meta", b"label_names", b"labels")


def read_cifar100(folder: Path, unlabelled: bool = False) -> Pools:
    """``cifar-100-python``, with its hundred fine labels.

    Arguments and errors are those of `read_cifar10`.
    """
    return _cifar(folder, ["train"], "test", "meta", b"fine_label_names", b"fine_labels")


def _stl_images(path: Path) -> Tensor:
    """Images ``[N, 3, H, W]`` of a file, which holds them column after column; read where they are used."""
    pixels = 3 * STL_SIDE**2
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"Expected the file {path}, but there is none; unpack the whole archive.") from None
    if not size or size % pixels:
        raise UserError(f"Expected images of {pixels} bytes in {path}, got {size} bytes; unpack it again.")
    # The unlabelled ones are 2.8 GB: the file is mapped into memory, not copied.
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return content.reshape(-1, 3, STL_SIDE, STL_SIDE).transpose(2, 3)


def _stl_part(folder: Path, part: str) -> Pool:
    images = _stl_images(folder / f"{part}_X.bin").contiguous()
    path = folder / f"{part}_y.bin"
    labels = torch.from_numpy(np.frombuffer(_content(path), dtype=np.uint8).astype(np.int64)) - 1
    if len(labels) != len(images):
        raise UserError(
            f"Expected {len(images)} labels, one an image, in {path}, got {len(labels)}; unpack it again."
        )
    wrong = labels[(labels < 0) | (labels >= STL_CLASSES)]
    if len(wrong):
        raise UserError(
            f"Expected labels from 1 to {STL_CLASSES} in {path}, got {int(wrong[0]) + 1}; unpack it again."
        )
    return Pool(images, labels)


def _words(path: Path) -> list[list[str]]:
    """The words of every line that has any."""
    lines = _content(path).decode(errors="replace").splitlines()
    return [line.split() for line in lines if line.strip()]


def _folds(path: Path, images: int) -> tuple[tuple[int, ...], ...]:
    lines = _words(path)
    for words in lines:
        wrong = [word for word in words if not word.isdecimal() or int(word) >= images]
        if wrong:
            raise UserError(
                f"Expected positions from 0 to {images - 1} in {path}, got '{wrong[0]}'; unpack it again."
            )
    return tuple(tuple(int(word) for word in words) for words in lines)


def read_stl10(folder: Path, unlabelled: bool = False) -> Pools:
    """``stl10_binary``: 5,000 labelled, 100,000 unlabelled and 8,000 test images of 96 pixels, ten folds.

    Args:
        folder: of the files.
        unlabelled: have the unlabelled images too.

    Raises:
        UserError: a file is missing, of another size, or holds another label or position.
    """
    train = _stl_part(folder, "train")
    names = tuple(word for words in _words(folder / "class_names.txt") for word in words)
    if len(names) != STL_CLASSES:
        raise UserError(
            f"Expected {STL_CLASSES} class names in {folder / 'class_names.txt'}, got {len(names)}; "
            "unpack it again."
        )
    return Pools(
        train,
        no_images(STL_SIDE),
        _stl_part(folder, "test"),
        names,
        f"the authors' files ({folder})",
        _stl_images(folder / "unlabeled_X.bin") if unlabelled else None,
        _folds(folder / "fold_indices.txt", len(train)),
    )


READERS = {
    "cifar10": ("cifar-10-batches-py", read_cifar10),
    "cifar100": ("cifar-100-python", read_cifar100),
    "stl10": ("stl10_binary", read_stl10),
}
"""Folder below the data root, and how it is read."""
