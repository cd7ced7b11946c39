"""The authors' files of CIFAR and STL-10: read as torchvision reads them, without running what they name."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_images import (
    CIFAR10,
    STL10,
    Global,
    pictures,
    python2_pickle,
    reduced,
    write_cifar10,
    write_cifar100,
    write_stl10,
)
from torchvision import datasets

from cma_tune.companion.pools import Pool
from cma_tune.companion.published_files import read_cifar10, read_cifar100, read_stl10
from cma_tune.errors import UserError


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def same_as_torchvision(pool: Pool, other: Any, labels: Any) -> None:
    assert pool.images.dtype == torch.uint8 and pool.labels.dtype == torch.int64
    theirs = [np.asarray(other[position][0]) for position in range(len(other))]
    assert torch.equal(pool.images.permute(0, 2, 3, 1), torch.from_numpy(np.stack(theirs)))
    assert pool.labels.tolist() == list(labels)


@pytest.mark.parametrize(
    ("write", "read", "kind"),
    [(write_cifar10, read_cifar10, datasets.CIFAR10), (write_cifar100, read_cifar100, datasets.CIFAR100)],
)
def test_cifar_as_torchvision_reads_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    read: Callable[[Path], Any],
    kind: Any,
) -> None:
    write(tmp_path)
    folder = tmp_path / kind.base_folder

    # It checks the published files' sums; these are made, so their own stand in.
    monkeypatch.setattr(kind, "train_list", [[name, md5(folder / name)] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, md5(folder / name)] for name, _ in kind.test_list])
    monkeypatch.setitem(kind.meta, "md5", md5(folder / kind.meta["filename"]))
    pools = read(folder)
    for pool, train in ((pools.train, True), (pools.test, False)):
        other = kind(str(tmp_path), train=train)
        same_as_torchvision(pool, other, other.targets)
    assert list(pools.class_names) == other.classes
    assert not len(pools.val) and pools.unlabelled is None and pools.folds == ()


def test_stl10_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path)
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    pools = read_stl10(tmp_path / "stl10_binary", unlabelled=True)
    for pool, split in ((pools.train, "train"), (pools.test, "test")):
        other = datasets.STL10(str(tmp_path), split=split)
        same_as_torchvision(pool, other, other.labels)
    assert list(pools.class_names) == other.classes == list(STL10)
    other = datasets.STL10(str(tmp_path), split="unlabeled")
    assert pools.unlabelled is not None and pools.unlabelled.shape == (7, 3, 96, 96)
    same_as_torchvision(Pool(pools.unlabelled, torch.full((7,), -1)), other, other.labels)
    assert len(pools.folds) == 10
    for number, positions in enumerate(pools.folds):
        fold = datasets.STL10(str(tmp_path), split="train", folds=number)
        chosen = Pool(pools.train.images[list(positions)], pools.train.labels[list(positions)])
        same_as_torchvision(chosen, fold, fold.labels)


def test_unlabelled_images_stay_in_their_file_until_they_are_used(tmp_path: Path) -> None:
    write_stl10(tmp_path)
    folder = tmp_path / "stl10_binary"
    path = folder / "unlabeled_X.bin"
    with path.open("r+b") as handle:  # 50,000 images without a byte on disk
        handle.truncate(50_000 * 3 * 96 * 96)
    before = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc").exists() else 0
    images = read_stl10(folder, unlabelled=True).unlabelled
    assert images is not None and images.shape == (50_000, 3, 96, 96)
    assert torch.equal(images[6], torch.from_numpy(pictures(7, 96, 22))[6]) and not images[40_000].any()
    if before:
        grown = (int(Path("/proc/self/statm").read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
        assert grown < 2**28, "1.4 GB of images were read"


def test_supervised_training_needs_no_unlabelled_file(tmp_path: Path) -> None:
    write_stl10(tmp_path)
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert read_stl10(tmp_path / "stl10_binary").unlabelled is None
    with pytest.raises(UserError, match=r"Expected the file .*unlabeled_X.bin, but there is none; unpack"):
        read_stl10(tmp_path / "stl10_binary", unlabelled=True)


# What must not run, and what must not be believed


ARRAY = pictures(2, 32, 0).reshape(2, 3072)
STATE = (1, (2, 3072), Global("numpy", "dtype", b"u1", 0, 1), False, ARRAY.tobytes())


def forged(*, state: tuple[object, ...] = STATE, **changes: Any) -> Global:
    """An array with something changed in its state."""
    names = ("version", "shape", "kind", "columns_first", "content")
    parts = [changes.get(name, own) for name, own in zip(names, state, strict=True)]
    start = (Global("numpy", "ndarray"), (0,), b"b")
    return Global("numpy.core.multiarray", "_reconstruct", *start, state=tuple(parts))


def first_file(root: Path, content: bytes) -> Path:
    write_cifar10(root)
    path = root / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(content)
    return path


class Shell:
    """Runs a command when a careless reader loads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["value", "instead"])
def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path, place: str) -> None:
    mark = tmp_path / "ran"
    evil = Shell(f"touch {mark}")
    content = pickle.dumps({"data": evil, "labels": []} if place == "value" else evil, protocol=2)
    path = first_file(tmp_path, content)
    with pytest.raises(UserError, match=r"can't be read \(it names (posix|nt)\.system\)"):
        read_cifar10(path.parent)
    assert not mark.exists()
    pickle.loads(content)  # the file is no dud
    assert mark.exists()


@pytest.mark.parametrize(
    "named",
    [
        Global("builtins", "eval", b"1"),
        Global("__builtin__", "getattr", b"x", b"y"),
        Global("numpy", "load", b"x"),
        Global("numpy.core.multiarray", "scalar", b"x"),
        Global("numpy", "dtype.__setstate__", b"x"),
        Global("_codecs", "encode", b"x", b"latin1"),
        Global("copy_reg", "_reconstructor", None, None, None),
        Global("cma_tune.companion.published_files", "_Named", b"x"),
    ],
    ids=lambda named: f"{named.module}.{named.name}",
)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path: Path, named: Global) -> None:
    path = first_file(tmp_path, python2_pickle({"data": ARRAY, "labels": [0, 1], "filenames": named}))
    with pytest.raises(UserError, match=r"can't be read \(it names \w"):
        read_cifar10(path.parent)


@pytest.mark.parametrize(
    "array",
    [
        forged(kind=Global("numpy", "dtype", b"O", 0, 1)),
        # NumPy takes a type's flags from the file, and these bytes for addresses of objects: it crashes.
        forged(kind=Global("numpy", "dtype", b"O8", 0, 1, state=(3, b"|", None, None, None, -1, -1, 0))),
        forged(kind=Global("numpy", "dtype", b"u8", 0, 1)),
        forged(kind=b"u1"),
        forged(shape=(2**31 - 1, 3072)),
        forged(shape=(-2, -3072)),
        forged(shape=(b"2", 3072)),
        forged(shape=(3072, 2)),
        forged(content=ARRAY.tobytes()[:-1]),
        forged(content=[1, 2]),
        forged(version=2),
        forged(columns_first=7),
        Global("numpy.core.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,), b"b", state=b"x"),
        Global("numpy", "ndarray", (2, 3072), b"u1"),  # would show what memory held before
        Global("numpy", "ndarray"),
        ARRAY.tobytes(),
        None,
    ],
)
def test_an_array_of_anything_but_bytes_is_refused(tmp_path: Path, array: object) -> None:
    path = first_file(tmp_path, python2_pickle({"data": array, "labels": [0, 1]}))
    with pytest.raises(UserError, match=r"Expected rows of 3072 bytes under 'data' in .*data_batch_1, got"):
        read_cifar10(path.parent)


def test_numpy_is_never_called(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    content = python2_pickle({"a": reduced(ARRAY)})
    from cma_tune.companion import published_files

    read = published_files._Inert(__import__("io").BytesIO(content), encoding="bytes").load()[b"a"]
    assert type(read) is published_files._Named and not isinstance(read, np.ndarray)


def test_arrays_by_columns(tmp_path: Path) -> None:
    columns = np.asfortranarray(ARRAY)
    path = first_file(tmp_path, python2_pickle({"data": columns, "labels": [3, 4]}))
    assert np.array_equal(pickle.loads(path.read_bytes(), encoding="bytes")[b"data"], ARRAY)
    train = read_cifar10(path.parent).train
    assert torch.equal(train.images[:2].flatten(1), torch.from_numpy(ARRAY))
    assert train.labels[:2].tolist() == [3, 4]


# Files that are not what they should be


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"can't be read"),
        (b"<html>", r"can't be read"),
        (python2_pickle({"data": ARRAY, "labels": [0, 1]})[:2000], r"can't be read"),
        (python2_pickle([1]), r"got a pickle without a dictionary"),
        (python2_pickle({"labels": [0, 1]}), r"Expected rows of 3072 bytes under 'data'"),
        (python2_pickle({"data": ARRAY}), r"Expected 2 labels under 'labels' .* got none"),
        (python2_pickle({"data": ARRAY, "labels": [0]}), r"Expected 2 labels under 'labels' .* got 1"),
        (python2_pickle({"data": ARRAY, "labels": [0, 10]}), r"Expected labels from 0 to 9 .* got 10"),
        (python2_pickle({"data": ARRAY, "labels": [0, -1]}), r"Expected labels from 0 to 9 .* got -1"),
        (python2_pickle({"data": ARRAY, "labels": [0, "a"]}), r"Expected labels from 0 to 9 .* got b'a'"),
    ],
)
def test_a_wrong_cifar_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = first_file(tmp_path, content)
    with pytest.raises(UserError, match=message) as raised:
        read_cifar10(path.parent)
    assert str(path) in str(raised.value) and str(raised.value).endswith("; unpack it again.")


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_missing_cifar_file(tmp_path: Path, name: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(UserError, match=rf"Expected the file .*{name}, but there is none; unpack the whole"):
        read_cifar10(tmp_path / "cifar-10-batches-py")


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    path = first_file(tmp_path, b"")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"Expected the file .* but it can't be read"):
        read_cifar10(path.parent)


def test_names_of_classes(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    assert read_cifar10(folder).class_names == CIFAR10
    (folder / "batches.meta").write_bytes(python2_pickle({"label_names": 3}))
    with pytest.raises(UserError, match="Expected class names under 'label_names'"):
        read_cifar10(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_X.bin", None, r"Expected the file .*train_X.bin, but there is none"),
        ("train_y.bin", None, r"Expected the file .*train_y.bin, but there is none"),
        ("test_X.bin", None, r"Expected the file .*test_X.bin, but there is none"),
        ("fold_indices.txt", None, r"Expected the file .*fold_indices.txt, but there is none"),
        ("class_names.txt", None, r"Expected the file .*class_names.txt, but there is none"),
        ("train_X.bin", b"", r"Expected images of 27648 bytes in .*, got 0 bytes"),
        ("unlabeled_X.bin", bytes(30_000), r"Expected images of 27648 bytes in .*, got 30000 bytes"),
        ("test_X.bin", bytes(27_648), r"Expected 1 labels, one an image, in .*test_y.bin, got 20"),
        ("train_y.bin", bytes([1] * 19 + [11]), r"Expected labels from 1 to 10 in .*train_y.bin, got 11"),
        ("test_y.bin", bytes([1] * 19 + [0]), r"Expected labels from 1 to 10 in .*test_y.bin, got 0"),
        ("class_names.txt", b"bird\ncar\n", r"Expected 10 class names in .*, got 2"),
        ("fold_indices.txt", b"0 1 20\n", r"Expected positions from 0 to 19 in .*, got '20'"),
        ("fold_indices.txt", b"0 1 -1\n", r"Expected positions from 0 to 19 in .*, got '-1'"),
    ],
)
def test_a_wrong_stl10_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_stl10(path.parent, unlabelled=True)
