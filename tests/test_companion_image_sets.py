"""Images for the companion's commands are the same whatever they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from published_images import (
    CIFAR10,
    pictures,
    pillow,
    table,
    write_cifar10,
    write_cifar100,
    write_parquet,
    write_stl10,
)

from cma_tune.companion import image_tables
from cma_tune.companion.image_sets import NORMALIZATION, ImageSet, load_image_set
from cma_tune.companion.pools import pixels_of, resized
from cma_tune.companion.published_files import read_cifar10, read_cifar100, read_stl10
from cma_tune.companion_options import SemiSupervisedConfig, SupervisedConfig
from cma_tune.config import SourceConfig
from cma_tune.data.builtin import load_builtin

pytestmark = pytest.mark.usefixtures("offline")


def hub_cifar(root: Path, name: str, pools: Any) -> None:
    """The published files' images as the Hub's repository has them."""
    columns = ("img", "fine_label" if name == "cifar100" else "label")
    parts = {
        part: table(pool.images, pool.labels, columns, pools.class_names)
        for part, pool in (("train", pools.train), ("test", pools.test))
    }
    if name == "cifar100":
        parts = {part: rows.add_column("coarse_label", [0] * len(rows)) for part, rows in parts.items()}
    write_parquet(root / name, parts)


def hub_stl10(root: Path, pools: Any, saved: bool) -> None:
    names, columns = pools.class_names, ("image", "label")
    parts = {
        part: table(pool.images, pool.labels, columns, names)
        for part, pool in (("train", pools.train), ("test", pools.test))
    }
    none = torch.full((len(pools.unlabelled),), -1)
    parts["unlabeled"] = table(pools.unlabelled, none, columns, None)
    for number, positions in enumerate(pools.folds):
        rows = list(positions)[::-1]  # in an order of its own
        parts[f"train_{number}"] = table(pools.train.images[rows], pools.train.labels[rows], columns, names)
    if saved:
        parts["unlabeled"] = parts["unlabeled"].remove_columns("label")
        datasets.DatasetDict(parts).save_to_disk(root / "stl10")
    else:
        write_parquet(root / "stl10", parts)


def same(one: ImageSet, other: ImageSet) -> None:
    assert one.class_names == other.class_names and (one.mean, one.std) == (other.mean, other.std)
    for name in ("train", "val", "test"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels), name
    assert (one.extra is None) == (other.extra is None)
    if one.extra is not None and other.extra is not None:
        assert torch.equal(one.extra, other.extra)
    assert one.digest() == other.digest()


# The three known data sets, from files, local tables and the Hub


@pytest.mark.parametrize("side", [None, 20])
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("cifar10", write_cifar10, read_cifar10),
        ("cifar100", write_cifar100, read_cifar100),
    ],
)
def test_cifar_is_the_same_from_files_and_from_parquet(
    tmp_path: Path, name: str, write: Any, read: Any, side: int | None
) -> None:
    files, local = tmp_path / "files", tmp_path / "local"
    write(files)
    hub_cifar(local, name, read(next(files.iterdir())))
    one, other = (
        load_image_set(SupervisedConfig(dataset=name, data_root=str(root), image_size=side))
        for root in (files, local)
    )
    same(one, other)
    assert one.train.images.shape[1:] == (3, side or 32, side or 32)
    assert "authors' files" in one.origin and str(local) in other.origin
    assert len(one.val) == 0 and one.extra is None and one.folds == ()


def test_means_are_the_references(shared: Path) -> None:
    """They are of the published training images; those of a sample are near."""
    found = image_tables.open_table(str(shared / "data" / "cifar10"))
    images = image_tables.TableImages({"test": found["test"]}, "img")
    pixels = pixels_of(images.load_part("test"), len(found["test"]), 32).double()
    for measured, published in zip(
        (pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))), NORMALIZATION["cifar10"], strict=True
    ):
        torch.testing.assert_close(measured, torch.tensor(published).double(), atol=2, rtol=0)


def test_the_hub_gives_the_same_as_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    hub_cifar(tmp_path, "cifar10", read_cifar10(tmp_path / "cifar-10-batches-py"))
    asked: list[str] = []
    real = image_tables.open_table

    def hub(place: str) -> Any:
        asked.append(place)
        return real(str(tmp_path / "cifar10"))

    monkeypatch.setattr(image_tables, "open_table", hub)
    for root in ("hub:", "hub:someone/their-cifar10"):
        same(
            load_image_set(SupervisedConfig(dataset="cifar10", data_root=root)),
            load_image_set(SupervisedConfig(dataset="cifar10", data_root=str(tmp_path))),
        )
    assert asked == ["uoft-cs/cifar10", "someone/their-cifar10"]
    load_image_set(SupervisedConfig(dataset="cifar10", data_root=f"hub:{tmp_path}"))
    assert asked[-1] == str(tmp_path / "cifar10")


def test_other_columns_and_a_validation_part(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    pools = read_cifar10(tmp_path / "cifar-10-batches-py")
    columns = ("picture", "class")
    part = table(pools.test.images, pools.test.labels, columns, CIFAR10)
    place = tmp_path / "other"
    write_parquet(place / "cifar10", {"train": part, "test": part, "validation": part})
    source = SourceConfig(image_column="picture", label_column="class")
    found = load_image_set(SupervisedConfig(dataset="cifar10", data_root=str(place), source=source))
    assert all(torch.equal(pool.images, pools.test.images) for pool in (found.train, found.val, found.test))


@pytest.mark.parametrize(("side", "saved"), [(None, False), (24, True)])
def test_stl10_is_the_same_from_files_and_from_a_table(tmp_path: Path, side: int | None, saved: bool) -> None:
    files, local = tmp_path / "files", tmp_path / "local"
    write_stl10(files, each=3)
    hub_stl10(local, read_stl10(files / "stl10_binary", unlabelled=True), saved)
    config = SemiSupervisedConfig(dataset="stl10", image_size=side, fold=4, labels=[10])
    sets = []
    for root in (files, local):
        config.data_root = str(root)
        sets.append(load_image_set(config))
    same(*sets)
    assert sets[0].extra is not None and sets[0].extra.shape == (7, 3, side or 96, side or 96)
    assert [sorted(fold) for fold in sets[1].folds] == [sorted(fold) for fold in sets[0].folds]
    assert len(sets[0].folds) == 10 and len(sets[0].folds[4]) == 10


def test_only_algorithms_that_use_them_get_the_unlabelled_images(tmp_path: Path) -> None:
    write_stl10(tmp_path)
    for config, used in (
        (SupervisedConfig(dataset="stl10"), False),
        (SemiSupervisedConfig(dataset="stl10", algorithm="supervised"), False),
        (SemiSupervisedConfig(dataset="stl10", algorithm="pseudo-label"), True),
    ):
        config.data_root = str(tmp_path)
        assert (load_image_set(config).extra is not None) == used


def test_the_digest_sees_everything(tmp_path: Path) -> None:
    write_stl10(tmp_path)
    config = SemiSupervisedConfig(dataset="stl10", data_root=str(tmp_path))
    digests = {load_image_set(config).digest()}
    for name in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin"):
        path = tmp_path / "stl10_binary" / name
        content = bytearray(path.read_bytes())
        content[-1] = content[-1] % 10 + 1 if "_y" in name else content[-1] ^ 1
        path.write_bytes(content)
        digests.add(load_image_set(config).digest())
    names = tmp_path / "stl10_binary" / "class_names.txt"
    names.write_text(names.read_text().replace("ship", "boat"))
    digests.add(load_image_set(config).digest())
    assert len(digests) == 7


# Every other source


def test_embedded_digits() -> None:
    found = load_image_set(SupervisedConfig(dataset="digits"))
    data = load_builtin("digits")
    assert {part: len(getattr(found, part)) for part in ("train", "val", "test")} == {
        part: len(items) for part, items in data.parts.items()
    }
    key, label = data.parts["test"][17]
    picture = data.load(key).resize((32, 32), Image.Resampling.BICUBIC)
    assert torch.equal(found.test.images[17].permute(1, 2, 0), torch.from_numpy(np.array(picture)))
    assert found.test.labels[17] == label and found.class_names == data.class_names
    assert found.mean == found.std == (127.5,) * 3


def test_an_image_folder_and_a_csv_of_it(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
        for number, image in enumerate(torch.from_numpy(pictures(6, 32, seed))):
            path = tmp_path / "images" / part / ("ant", "bee")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pillow(image).save(path)
            rows.append(f"{path.relative_to(tmp_path)},{path.parent.name},{part}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    folder = load_image_set(SupervisedConfig(dataset=f"folder:{tmp_path / 'images'}"))
    listed = load_image_set(SupervisedConfig(dataset=f"csv:{tmp_path / 'list.csv'}"))
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
        drawn = torch.from_numpy(pictures(6, 32, seed))
        pool = getattr(listed, part)
        assert torch.equal(pool.images, drawn) and pool.labels.tolist() == [0, 1] * 3
        own = getattr(folder, part)  # class by class
        assert torch.equal(own.images, drawn[[0, 2, 4, 1, 3, 5]]) and own.labels.tolist() == [0] * 3 + [1] * 3
    assert folder.class_names == listed.class_names == ("ant", "bee")


def test_images_are_brought_to_one_size_as_pillow_would() -> None:
    wide = Image.fromarray(pictures(1, 40, 0)[0].transpose(1, 2, 0)).resize((60, 40))
    (pixels,) = pixels_of([wide], 1, 20)
    expected = wide.resize((30, 20), Image.Resampling.BICUBIC).crop((5, 0, 25, 20))
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(np.array(expected)))
    thin = wide.resize((300, 3))
    assert pixels_of([thin], 1, 8).shape == (1, 3, 8, 8)
    images = torch.from_numpy(pictures(3, 16, 1))
    assert resized(images, 16) is images
    assert torch.equal(resized(images, 8)[1], pixels_of([pillow(images[1])], 1, 8)[0])
