"""What is wrong with a companion's images is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from published_images import (
    CIFAR10,
    STL10,
    pictures,
    python2_pickle,
    table,
    write_cifar10,
    write_parquet,
    write_stl10,
)

from cma_tune.companion.image_sets import load_image_set
from cma_tune.companion.published_files import read_stl10
from cma_tune.companion_checks import check_companion
from cma_tune.companion_options import SemiSupervisedConfig, SupervisedConfig
from cma_tune.errors import UserError

pytestmark = pytest.mark.usefixtures("offline")


def fails(message: str, config: SupervisedConfig) -> str:
    with pytest.raises(UserError, match=message) as raised:
        load_image_set(config)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    config = SupervisedConfig(dataset=name, data_root=str(tmp_path))
    assert "--data-root hub:" in fails(f"Expected {name} below .* got neither", config)
    (tmp_path / name).mkdir()
    fails("got neither", config)


def made_table(root: Path, **parts: datasets.Dataset) -> SupervisedConfig:
    write_parquet(root / "cifar10", parts)
    return SupervisedConfig(dataset="cifar10", data_root=str(root))


def test_wrong_tables(tmp_path: Path) -> None:
    images, labels = torch.from_numpy(pictures(10, 32, 0)), torch.arange(10)
    good = table(images, labels, ("img", "label"), CIFAR10)
    fails("Expected parts train and test in .* got train; name them", made_table(tmp_path / "a", train=good))
    other = good.rename_column("img", "photo")
    fails(
        "Expected a column 'image' .* got photo, label", made_table(tmp_path / "b", train=other, test=other)
    )
    secret = table(images, torch.tensor([-1] * 10), ("img", "label"), None)
    fails("Expected a class name or number .* got -1", made_table(tmp_path / "d", train=good, test=secret))


@pytest.mark.parametrize("wrong", [10, 255])
def test_a_label_without_a_name(tmp_path: Path, wrong: int) -> None:
    images = torch.from_numpy(pictures(2, 32, 0))
    rows = table(images, torch.tensor([0, wrong]), ("img", "label"), None)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CIFAR10))})
    rows = datasets.Dataset(
        rows.data.cast(features.arrow_schema), info=datasets.DatasetInfo(features=features)
    )
    fails(
        f"Expected labels from 0 to 9, .* got {wrong} in row 1 of 'train'",
        made_table(tmp_path, train=rows, test=rows),
    )


def test_a_damaged_image_in_a_table(tmp_path: Path) -> None:
    images = torch.from_numpy(pictures(3, 32, 0))
    rows = table(images, torch.arange(3), ("img", "label"), CIFAR10)
    content = rows.cast_column("img", datasets.Image(decode=False)).to_dict()
    content["img"][1]["bytes"] = content["img"][1]["bytes"][:100]
    broken = datasets.Dataset.from_dict(content, features=rows.features)
    fails("row 1 of 'train', but it can't be decoded", made_table(tmp_path, train=broken, test=rows))


def test_stl10_without_its_unlabelled_images(tmp_path: Path) -> None:
    write_stl10(tmp_path / "files")
    pools = read_stl10(tmp_path / "files" / "stl10_binary", unlabelled=True)
    part = table(pools.train.images, pools.train.labels, ("image", "label"), STL10)
    write_parquet(tmp_path / "local" / "stl10", {"train": part, "test": part})
    config = SemiSupervisedConfig(dataset="stl10", data_root=str(tmp_path / "local"))
    fails("Expected a part 'unlabeled' .* got train, test; use the authors' files", config)
    load_image_set(SupervisedConfig(dataset="stl10", data_root=str(tmp_path / "local")))
    (tmp_path / "files" / "stl10_binary" / "unlabeled_X.bin").unlink()
    config.data_root = str(tmp_path / "files")
    fails("Expected the file .*unlabeled_X.bin", config)


def test_a_fold_with_an_image_that_is_not_in_train(tmp_path: Path) -> None:
    write_stl10(tmp_path)
    pools = read_stl10(tmp_path / "stl10_binary")
    columns = ("image", "label")
    part = table(pools.train.images, pools.train.labels, columns, STL10)
    foreign = table(pools.test.images, pools.test.labels, columns, STL10)
    write_parquet(tmp_path / "local" / "stl10", {"train": part, "test": foreign, "train_0": foreign})
    config = SupervisedConfig(dataset="stl10", data_root=str(tmp_path / "local"), fold=0)
    fails("Expected the images of part 'train_0' .* but that of row 0 is not", config)


def test_a_truncated_and_an_empty_published_file(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-100])
    fails(f"Expected a published CIFAR file at {path}", SupervisedConfig("cifar10", str(tmp_path)))
    path.write_bytes(python2_pickle({"labels": [], "data": pictures(0, 32, 0).reshape(0, 3072)}))
    fails("Expected test images of cifar10, got none", SupervisedConfig("cifar10", str(tmp_path)))


def test_images_too_small_for_the_networks() -> None:
    with pytest.raises(UserError, match="Expected --image-size of at least 8, got 7"):
        check_companion(SupervisedConfig(image_size=7))
    check_companion(SupervisedConfig(image_size=8))


def test_an_unknown_dataset() -> None:
    message = fails(
        "Expected a dataset out of cifar10, cifar100, stl10, digits", SupervisedConfig("cifar-10")
    )
    assert message.endswith("got 'cifar-10' (did you mean 'cifar10'?).")
    fails("Expected a path or repository after 'folder:'", SupervisedConfig("folder:"))
