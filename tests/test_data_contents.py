"""Digests of images: by content, read once, remembered only where that is safe."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import datasets
import pytest
from stored_images import folder_of, write_file

from cma_tune.data import contents
from cma_tune.data.contents import image_digests, of_key
from cma_tune.data.dataset import BuiltinImages, FileImages
from cma_tune.data.hub_form import KeyedImages
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Item
from cma_tune.data.tables import TableImages
from cma_tune.errors import UserError


class CountingFiles(FileImages):
    """Remembers which files were read."""

    read: list[str]

    def digest(self, key: str) -> bytes:
        self.read.append(key)
        return super().digest(key)


def look(store: Path, root: Path, items: list[Item], write: bool = True) -> list[str]:
    """Ask for digests, check them against the files, and tell which were read for it."""
    images = CountingFiles(root)
    images.read = []
    digests = image_digests(store, images, items, write)
    for item, digest in zip(items, digests, strict=True):
        assert digest == hashlib.blake2b((root / item.key).read_bytes(), digest_size=32).digest()
    return sorted(images.read)


def test_files_are_read_once(tmp_path: Path) -> None:
    _, items = folder_of(tmp_path / "images", 5)
    store, root = tmp_path / "store", tmp_path / "images"
    assert look(store, root, items[:3]) == ["000", "001", "002"]
    assert look(store, root, items) == ["003", "004"]
    assert look(store, root, [*items, *items]) == []
    folder_of(tmp_path / "other", 5, start=1)
    assert look(store, tmp_path / "other", [Item("001", 0)]) == ["001"]  # each root for itself
    assert look(store, root, items) == []
    assert len(list(store.iterdir())) == 2


@pytest.mark.parametrize(("content", "modified"), [("another length", 1_000_000_000), ("IMAGE 001", 7)])
def test_a_changed_file_is_read_again(content: str, modified: int, tmp_path: Path) -> None:
    _, items = folder_of(tmp_path / "images", 3)
    look(tmp_path / "store", tmp_path / "images", items)
    write_file(tmp_path / "images/001", content, modified)
    assert look(tmp_path / "store", tmp_path / "images", items) == ["001"]


def test_what_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    # Within the clock's grain it may be written again, with the same size and time.
    _, items = folder_of(tmp_path / "images", 2)
    now = time.time_ns() + 60_000_000_000  # still so when this test has got there
    os.utime(tmp_path / "images/001", ns=(now, now))
    assert look(tmp_path / "store", tmp_path / "images", items) == ["000", "001"]
    write_file(tmp_path / "images/001", "IMAGE 001", now)
    assert look(tmp_path / "store", tmp_path / "images", items) == ["001"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"digests": []}',
        '{"digests": {"000": 5}}',
        '{"digests": {"000": [9, 1000000000, "ab"]}}',
        '{"digests": {"000": [9, 1000000000, "xy"]}}',
        "\udcff",
    ],
)
def test_a_torn_file_of_digests_costs_only_time(content: str, tmp_path: Path) -> None:
    _, items = folder_of(tmp_path / "images", 2)
    store = tmp_path / "store"
    look(store, tmp_path / "images", items)
    (file,) = store.iterdir()
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert look(store, tmp_path / "images", items) == ["000", "001"]
    assert look(store, tmp_path / "images", items) == []


def test_a_store_that_can_not_be_written_costs_only_time(tmp_path: Path) -> None:
    _, items = folder_of(tmp_path / "images", 2)
    (tmp_path / "store").write_text("a file")
    for _ in range(2):
        assert look(tmp_path / "store", tmp_path / "images", items) == ["000", "001"]


def test_who_does_not_write_leaves_nothing(tmp_path: Path) -> None:
    _, items = folder_of(tmp_path / "images", 2)
    look(tmp_path / "store", tmp_path / "images", items, write=False)
    assert not (tmp_path / "store").exists()


def test_a_long_list_is_remembered_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SAVE_EVERY", 2)
    _, items = folder_of(tmp_path / "images", 5)
    (tmp_path / "images/004").unlink()
    (tmp_path / "images/004").mkdir()  # reading it fails after the others were read
    with pytest.raises(UserError, match=r"Expected an image at .*004, but it can't be read"):
        image_digests(tmp_path / "store", FileImages(tmp_path / "images"), items)
    assert look(tmp_path / "store", tmp_path / "images", items[:4]) == []


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected an image at .*gone\.png, but there is no such file"):
        image_digests(tmp_path, FileImages(tmp_path), [Item("gone.png", 0)])
    with pytest.raises(UserError, match="no such file"):
        FileImages(tmp_path).digest("gone.png")


def test_a_table_has_the_digests_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_miniature("eurosat", tmp_path / "folders", (1, 1, 1))
    write_hub_miniature("eurosat", tmp_path / "hub", (1, 1, 1))
    of_files = {hashlib.blake2b(path.read_bytes(), digest_size=32).digest() for path in folder.rglob("*.jpg")}
    read: list[str] = []
    digest = TableImages.digest

    def counted(images: TableImages, key: str) -> bytes:
        read.append(key)
        return digest(images, key)

    monkeypatch.setattr(TableImages, "digest", counted)
    for split_file, kind in ((None, TableImages), ("split_zhou_EuroSAT.json", KeyedImages)):
        if split_file is not None:  # the published split knows images by other keys
            shutil.copy(folder / split_file, tmp_path / "hub")
        dataset = load_dataset("eurosat", Path(f"hub:{tmp_path}/hub"))
        assert type(dataset.images) is kind
        items = [item for part in dataset.split.parts().values() for item in part]
        read.clear()
        found = image_digests(tmp_path / "store", dataset.images, items)
        assert set(found) == of_files and len(found) == len(of_files) == 30
        assert sorted(read) == sorted(item.key for item in items)
        again = load_dataset("eurosat", Path(f"hub:{tmp_path}/hub")).images
        assert image_digests(tmp_path / "store", again, items) == found
        assert len(read) == 30  # those of a table are kept, too


def test_files_that_a_table_names_are_read_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    write_file(path, "one")
    cells = [{"bytes": None, "path": str(path)}]
    feature = datasets.Features({"image": datasets.Image()})
    images = TableImages({"train": datasets.Dataset.from_dict({"image": cells}, features=feature)}, "image")
    for content, modified in (("one", 1_000_000_000), ("two", 2_000_000_000)):
        write_file(path, content, modified)
        (found,) = image_digests(tmp_path / "store", images, [Item("train/0", 0)])
        assert found == hashlib.blake2b(content.encode(), digest_size=32).digest()
    path.unlink()
    with pytest.raises(UserError, match="row 0 of 'train'"):
        image_digests(tmp_path / "store", images, [Item("train/0", 0)])


def test_embedded_images_are_told_apart_by_source_and_key(tmp_path: Path) -> None:
    items = [Item("a", 0), Item("b", 1)]
    digits, shapes = (image_digests(tmp_path, BuiltinImages(name), items) for name in ("digits", "shapes"))
    assert len({*digits, *shapes}) == 4
    assert digits == image_digests(tmp_path, BuiltinImages("digits"), items)
    assert list(tmp_path.iterdir()) == []


def test_a_digest_with_its_key() -> None:
    one, two = bytes(32), bytes([1]) + bytes(31)
    assert len({of_key(one, "a"), of_key(one, "b"), of_key(two, "a"), one}) == 4
    assert of_key(one, "a\udcff") != of_key(one, "a\udcfe")
