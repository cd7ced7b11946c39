"""`datasets` tables on local folders: parts, columns, labels, and what is refused."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from cma_tune.data.sources import Dataset, SourceOptions, TableImages, load_dataset
from cma_tune.errors import UserError

pytestmark = pytest.mark.usefixtures("offline")


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (5, 4), (number, 7, 255 - number))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def table(
    labels: Sequence[object],
    label_type: Any = None,
    image: str = "image",
    label: str = "label",
    first: int = 0,
) -> Any:
    """A table whose row i shows picture ``first + i``."""
    columns = {image: [picture(first + i) for i in range(len(labels))], label: list(labels)}
    features = {image: datasets.Image(), label: label_type or datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def load(place: Path, options: SourceOptions | None = None) -> Dataset:
    return load_dataset(f"hub:{place}", Path("nowhere"), options)


def test_save_to_disk_with_class_labels(tmp_path: Path) -> None:
    # Names that look like numbers, sorted as text: a value is a number of the table, not a name.
    feature = datasets.ClassLabel(names=["1", "10", "2"])
    parts = {
        "train": table([0, 1, 2, 2, 1, 0], feature),
        "validation": table([2], feature, first=50),
        "test": table([1, 0], feature, first=60),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    dataset = load(tmp_path)
    split = dataset.split
    assert split.class_names == ("1", "10", "2")
    assert [item.label for item in split.train] == [0, 1, 2, 2, 1, 0]
    assert [item.label for item in split.test] == [1, 0]
    assert split.val[0].key == "validation/0000000"
    assert np.array_equal(np.asarray(dataset.images.load(split.test[1].key)), np.asarray(picture(61)))
    assert dataset.origin == f"the source's own train, val and test ({tmp_path})"


def test_a_part_at_once_is_what_its_rows_are_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cma_tune.data.tables.ROWS_AT_ONCE", 2)
    turned, buffer = Image.Exif(), io.BytesIO()
    turned[274] = 6  # lies on its side
    picture(3).save(buffer, "PNG", exif=turned)
    palette = io.BytesIO()
    picture(4).convert("P").save(palette, "PNG")
    picture(5).save(tmp_path / "apart.png")
    cells = [
        *({"bytes": content, "path": None} for content in (png(1), buffer.getvalue(), palette.getvalue())),
        {"bytes": None, "path": str(tmp_path / "apart.png")},
        {"bytes": png(9), "path": None},
    ]
    rows = datasets.Dataset.from_dict(
        {"image": cells, "label": ["a"] * 5},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    images = TableImages({"train": rows}, "image")
    together = [np.asarray(image) for image in images.load_part("train")]
    alone = [np.asarray(images.load(f"train/{row}")) for row in range(5)]
    assert [image.shape for image in together] == [(4, 5, 3), (5, 4, 3), *[(4, 5, 3)] * 3]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


def test_parquet_with_chosen_columns_and_parts(tmp_path: Path) -> None:
    feature = datasets.ClassLabel(names=["ant", "bee"])
    for part, first in (("train", 0), ("test", 100)):
        rows = table([0, 1] * 5, feature, "img", "fine_label", first)
        rows = rows.add_column("label", ["other"] * 10).add_column("image", [None] * 10)
        rows.to_parquet(tmp_path / f"{part}-00000-of-00001.parquet")
    dataset = load(tmp_path, SourceOptions(image_column="img", label_column="fine_label"))
    assert dataset.split.class_names == ("ant", "bee")
    assert (len(dataset.split.train), len(dataset.split.val), len(dataset.split.test)) == (8, 2, 10)
    assert [item.label for item in dataset.split.test] == [0, 1] * 5
    assert dataset.images.load(dataset.split.test[3].key).getpixel((0, 0)) == (103, 7, 152)
    with pytest.raises(
        UserError, match=r"column 'img2' in part 'train' .*got .*fine_label.*source.image-column"
    ):
        load(tmp_path, SourceOptions(image_column="img2", label_column="fine_label"))
    with pytest.raises(UserError, match=r"column 'coarse' in part 'train' .*--source.label-column"):
        load(tmp_path, SourceOptions(image_column="img", label_column="coarse"))
    with pytest.raises(UserError, match=r"images in column 'fine_label' of .*got ClassLabel"):
        load(tmp_path, SourceOptions(image_column="fine_label", label_column="label"))


def test_parquet_written_without_datasets(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(20)], "label": ["b", "a"] * 10}
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    dataset = load(tmp_path)
    assert dataset.split.class_names == ("a", "b")
    assert (len(dataset.split.train), len(dataset.split.val), len(dataset.split.test)) == (10, 4, 6)
    for item in dataset.split.test:
        row = int(item.key.split("/")[1])
        assert item.label == 1 - row % 2
        assert dataset.images.load(item.key).getpixel((1, 1)) == (row, 7, 255 - row)


def test_cifar_as_the_hub_has_it(shared: Path) -> None:
    dataset = load(shared / "data/cifar10", SourceOptions(image_column="img"))
    split = dataset.split
    assert split.class_names[:3] == ("airplane", "automobile", "bird") and len(split.class_names) == 10
    assert (len(split.train) + len(split.val), len(split.val), len(split.test)) == (30000, 6000, 5000)
    assert dataset.images.load(split.test[-1].key).size == (32, 32)


def test_an_image_folder_through_datasets(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                picture(10 * number + i).save(tmp_path / part / name / f"{i}.png")
    dataset = load(tmp_path)
    assert dataset.split.class_names == ("cat", "dog")
    assert (len(dataset.split.train), len(dataset.split.val), len(dataset.split.test)) == (8, 2, 4)
    seen = {(i.label, dataset.images.load(i.key).tobytes()[0]) for i in dataset.split.test}
    assert seen == {(0, 0), (0, 1), (1, 10), (1, 11)}

    before = dataset.images.fingerprint(dataset.split.test[0].key)
    assert load(tmp_path).images.fingerprint(dataset.split.test[0].key) == before
    picture(200).save(tmp_path / "test/cat/0.png")
    os.utime(tmp_path / "test/cat/0.png", (1, 1))
    assert load(tmp_path).images.fingerprint(dataset.split.test[0].key) != before


def test_a_table_of_one_part_and_whole_numbers(tmp_path: Path) -> None:
    table([10, 9, 2] * 10, datasets.Value("int64")).save_to_disk(tmp_path)
    split = load(tmp_path).split
    assert split.class_names == ("2", "9", "10")
    assert (len(split.train), len(split.val), len(split.test)) == (15, 6, 9)
    assert {(int(i.key[-2:]) % 3, i.label) for i in split.train} == {(0, 2), (1, 1), (2, 0)}


def test_parts_that_number_their_classes_differently_are_matched_by_name(tmp_path: Path) -> None:
    train = table([0, 1, 0, 1, 0, 1], datasets.ClassLabel(names=["bee", "ant"]))
    test = table([0, 1], datasets.ClassLabel(names=["ant", "bee"]))
    train.save_to_disk(tmp_path / "train")
    test.save_to_disk(tmp_path / "test")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    split = load(tmp_path).split
    assert split.class_names == ("ant", "bee")
    assert [item.label for item in split.test] == [0, 1]
    assert {(int(item.key[-2:]) % 2, item.label) for item in split.train} == {(0, 1), (1, 0)}


@pytest.mark.parametrize(
    ("lines", "names", "labels"),
    [
        (["bee", "ant"], ("bee", "ant"), [1, 0]),  # the table's own names in another order
        (["Ant, red", "Bee, black"], ("Ant, red", "Bee, black"), [0, 1]),  # other names for the same numbers
    ],
)
def test_class_names_for_class_labels(
    lines: list[str], names: tuple[str, ...], labels: list[int], tmp_path: Path
) -> None:
    feature = datasets.ClassLabel(names=["ant", "bee"])
    parts = {"train": table([0, 1] * 3, feature), "test": table([0, 1], feature)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    (tmp_path / "names.txt").write_text("\n".join(lines))
    split = load(tmp_path / "data", SourceOptions(class_names=tmp_path / "names.txt")).split
    assert split.class_names == names
    assert [item.label for item in split.test] == labels


def test_class_names_that_do_not_match_class_labels(tmp_path: Path) -> None:
    table([0, 1], datasets.ClassLabel(names=["ant", "bee"])).save_to_disk(tmp_path / "data")
    (tmp_path / "names.txt").write_text("ant\ncow\ndog")
    with pytest.raises(
        UserError, match=r"Expected 2 class names .*own names \(such as 'ant'\), got 3 others"
    ):
        load(tmp_path / "data", SourceOptions(class_names=tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("labels", "kind", "shown"),
    [
        ([0, -1], datasets.ClassLabel(names=["ant", "bee"]), "got -1 in row 1 of 'test'"),
        ([0, None], datasets.ClassLabel(names=["ant", "bee"]), "got None in row 1 of 'test'"),
        (["a", ""], datasets.Value("string"), "got '' in row 1 of 'test'"),
        ([0.5, 1.0], datasets.Value("float32"), "got 0.5 in row 0 of 'test'"),
    ],
)
def test_rows_without_a_label(labels: list[object], kind: Any, shown: str, tmp_path: Path) -> None:
    parts = {"train": table(labels[:1] * 4, kind), "test": table(labels, kind)}
    if shown.startswith("got 0.5"):
        parts = {"test": parts["test"], "train": table([0, 1], datasets.Value("int64"))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    with pytest.raises(UserError, match="class name or number in column 'label'") as caught:
        load(tmp_path)
    assert shown in str(caught.value) and "use labelled parts" in str(caught.value)


def test_a_corrupt_image_is_named_by_its_row(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": png(1), "path": None}, {"bytes": png(2)[:40], "path": None}],
        "label": ["a", "a"],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    broken = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table(["a"]), "test": broken}).save_to_disk(tmp_path)
    images = load(tmp_path).images
    assert images.load("test/0000000").getpixel((0, 0)) == (1, 7, 254)
    with pytest.raises(
        UserError, match=r"image in column 'image' of row 1 of 'test', but it can't be decoded"
    ):
        images.load("test/0000001")


def test_fingerprints_tell_columns_apart(tmp_path: Path) -> None:
    rows = table(["a", "b"] * 5).add_column("spare", [{"bytes": png(99), "path": None}] * 10)
    rows.save_to_disk(tmp_path)
    one, two = load(tmp_path), load(tmp_path, SourceOptions(image_column="spare"))
    key = one.split.train[0].key
    assert key == two.split.train[0].key
    assert one.images.fingerprint(key) != two.images.fingerprint(key)
    assert one.images.fingerprint(key) == load(tmp_path).images.fingerprint(key)


def test_parts_that_are_missing(tmp_path: Path) -> None:
    datasets.DatasetDict({"one": table(["a"]), "two": table(["a"])}).save_to_disk(tmp_path)
    with pytest.raises(UserError, match=r"parts train and test in .*got one, two; .*--source.train-split"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"part 'three' in .*--source.test-split, got one, two"):
        load(tmp_path, SourceOptions(train_split="one", test_split="three"))
    split = load(tmp_path, SourceOptions(train_split="one", test_split="two")).split
    assert [item.key for item in split.test] == ["two/0000000"]


@pytest.mark.parametrize("place", ["nobody/no-such-dataset", "no_such_folder/at/all", "EMPTY"])
def test_a_dataset_that_can_not_be_opened(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path if place == "EMPTY" else Path(place))
    message = str(caught.value)
    assert "(a Hub repository or a local folder), but it can't be opened" in message
    assert "check the name and the network" in message and "\n" not in message


def test_no_script_of_a_dataset_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    with pytest.raises(UserError):
        load(folder)
    assert not (tmp_path / "was_run").exists()


def test_without_a_network_the_hub_is_given_up_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        closed = one.getsockname()[1]
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed}")
    monkeypatch.setattr("cma_tune.data.open_tables.getproxies", dict)
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"network connection to the Hub for 'some/where', got none"):
        load_dataset("hub:some/where", Path("nowhere"))
    with pytest.raises(UserError, match=r"network connection to the Hub for 'tanganke/dtd', got none"):
        load_dataset("dtd", Path("hub:"))
    assert time.perf_counter() - started < 5
    assert not datasets.config.HF_HUB_OFFLINE  # as it was before
