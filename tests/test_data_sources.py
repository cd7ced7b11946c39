"""The folder layout, embedded data and image files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cma_tune.data.catalog import CATALOG
from cma_tune.data.dataset import BuiltinImages, FileImages, check_images_exist
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Item, Split
from cma_tune.errors import UserError


def test_caltech101_from_the_folder_layout(shared: Path) -> None:
    dataset = load_dataset("caltech101", shared / "data")
    split = dataset.split
    assert (len(split.train), len(split.val), len(split.test)) == (4128, 1649, 2465)
    assert dataset.templates == ("a photo of a {}.",)
    assert dataset.origin == "published split split_zhou_Caltech101.json"
    assert split.class_names[:3] == ("face", "leopard", "motorbike")
    for item in (*split.train[:3], *split.test[-3:]):
        image = dataset.images.load(item.key)
        path = shared / "data/caltech-101/101_ObjectCategories" / item.key
        with Image.open(path) as plain:
            assert np.array_equal(np.asarray(image), np.asarray(plain.convert("RGB")))
        assert str(path.stat().st_size) in dataset.images.fingerprint(item.key)
        assert path.parent.name.lower().startswith(split.class_names[item.label][:4])


def test_own_templates_replace_the_datasets(shared: Path) -> None:
    templates = ["a {}.", "one {}"]
    assert load_dataset("caltech101", shared / "data", templates=templates).templates == ("a {}.", "one {}")


def test_home_is_found_in_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path / "x/dtd")):
        load_dataset("dtd", Path("~/x"))


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """The folder layout of a ten-class dataset with a tiny split; gives the data root."""
    rows: dict[str, list[tuple[str, int, str]]] = {
        part: [(f"C{label}/{part}{label}.png", label, f"Class {label}") for label in range(10)]
        for part in ("train", "val", "test")
    }
    folder = tmp_path / "eurosat"
    for part_rows in rows.values():
        for key, label, _ in part_rows:
            (folder / "2750" / key).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (5, 4), label).save(folder / "2750" / key)
    (folder / str(CATALOG["eurosat"].split_file)).write_text(json.dumps(rows))
    return tmp_path


def test_absent_images_are_counted_and_the_first_named(eurosat: Path) -> None:
    assert load_dataset("eurosat", eurosat).split.class_names[9] == "Class 9"
    images = eurosat / "eurosat/2750"
    (images / "C4/train4.png").unlink()
    shutil.rmtree(images / "C7")
    (images / "C9/test9.png").rename(images / "C9/TEST9.png")
    with pytest.raises(UserError) as caught:
        load_dataset("eurosat", eurosat)
    message = str(caught.value)
    assert f"all 30 images named by {eurosat}/eurosat/split_zhou_EuroSAT.json in {images}" in message
    assert "5 are absent (first: C4/train4.png, C7/train7.png, C7/val7.png)" in message
    assert "unpack the whole dataset there" in message


def test_presence_of_a_million_images_takes_seconds(tmp_path: Path) -> None:
    classes, per_class = 100, 3000
    names = [f"img_{i:05d}.jpg" for i in range(per_class)]
    listings = {str(tmp_path / f"{c:03d}"): names for c in range(classes)}
    items = tuple(Item(f"{c:03d}/{name}", c) for c in range(classes) for name in names)
    calls = []

    def listdir(folder: object) -> list[str]:
        calls.append(folder)
        return listings[str(folder)]

    split = Split(items, (), items, tuple(str(c) for c in range(classes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        check_images_exist(split, tmp_path, tmp_path / "split.json")
    assert len(calls) == classes  # one listing per folder, not one look per image


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "folder", "truncated_png"])
def test_a_corrupt_image_is_named(damage: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / ("broken.png" if damage == "truncated_png" else "broken.jpg")
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        cut = {"empty": b"", "text": b"no image\n" * 50}.get(damage, whole[: len(whole) // 2])
        path.write_bytes(cut)
    with pytest.raises(UserError) as caught:
        FileImages(tmp_path).load(path.name)
    message = str(caught.value)
    assert message.startswith(f"Expected an image at {path}, but it can't be decoded")
    assert "replace it or take it out of the split" in message and "\n" not in message


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    images = FileImages(tmp_path)
    for look in (images.load, images.fingerprint):
        with pytest.raises(UserError, match=rf"image at {tmp_path}/a/b\.jpg, but there is no such file"):
            look("a/b.jpg")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(path)
    image = FileImages(tmp_path).load(path.name)
    assert image.mode == "RGB" and image.size == (7, 5)
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_the_fingerprint_of_a_file_changes_with_it(tmp_path: Path) -> None:
    images, path = FileImages(tmp_path), tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    first = images.fingerprint("a.png")
    assert images.fingerprint("a.png") == first
    os.utime(path, ns=(1, 1))
    assert images.fingerprint("a.png") != first


@pytest.mark.parametrize(("name", "classes", "total"), [("digits", 10, 1797), ("shapes", 32, 32 * 110)])
def test_embedded_data(name: str, classes: int, total: int) -> None:
    dataset = load_dataset(name, Path("nowhere"))
    assert len(dataset.split.class_names) == classes
    assert sum(len(items) for items in dataset.split.parts().values()) == total
    assert dataset.origin.startswith("embedded, version ")
    for items in dataset.split.parts().values():
        assert {item.label for item in items} == set(range(classes))
    item = dataset.split.test[-1]
    image = dataset.images.load(item.key)
    assert image.mode == "RGB" and image.size == (32, 32)
    assert dataset.images.fingerprint(item.key)
    assert load_dataset(name, Path("elsewhere")).split.digest() == dataset.split.digest()


def test_embedded_images_travel_to_workers_that_are_not_forked() -> None:
    images = load_dataset("shapes", Path("nowhere")).images
    assert isinstance(images, BuiltinImages)
    key = "train/003/0012"
    before = images.load(key)
    assert pickle.loads(pickle.dumps(images)).load(key).tobytes() == before.tobytes()


def test_naming_a_dataset_loads_neither_torch_nor_pillow() -> None:
    script = (
        "import sys, pathlib; from cma_tune.data.sources import load_dataset; "
        "from cma_tune.data.catalog import check_dataset_name; check_dataset_name('shapes'); "
        "print([m for m in ('torch', 'PIL', 'datasets', 'sklearn', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
