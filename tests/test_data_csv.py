"""CSV files of paths and labels: parts, columns, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest
from made_images import make_images

from cma_tune.data.sources import Dataset, SourceOptions, load_dataset
from cma_tune.errors import UserError


def write_csv(
    path: Path, header: list[str], rows: Iterable[Iterable[object]], encoding: str = "utf-8"
) -> Path:
    with open(path, "w", newline="", encoding=encoding) as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder ``images`` with ten images in it, ``00.png`` to ``09.png``."""
    make_images(tmp_path, {"images": 10})
    return tmp_path


def load_csv(path: Path, options: SourceOptions | None = None) -> Dataset:
    return load_dataset(f"csv:{path}", Path("nowhere"), options)


def test_a_csv_with_parts(images: Path) -> None:
    parts = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [(f"images/{i:02d}.png", "odd" if i % 2 else "even, really", part) for i, part in enumerate(parts)]
    # Spreadsheets write a byte order mark before the first column's name.
    path = write_csv(images / "list.csv", ["path", "label", "split"], rows, encoding="utf-8-sig")
    dataset = load_csv(path)
    assert dataset.split.class_names == ("even, really", "odd")
    assert [(i.key, i.label) for i in dataset.split.train] == [
        (f"images/{i:02d}.png", i % 2) for i in range(6)
    ]
    assert [item.key for item in dataset.split.val] == ["images/06.png", "images/07.png"]
    assert [item.key for item in dataset.split.test] == ["images/08.png", "images/09.png"]
    assert dataset.images.load("images/08.png").getpixel((0, 0)) == (0, 8, 0)


def test_a_csv_without_parts_and_with_absolute_paths(images: Path) -> None:
    (images / "lists").mkdir()
    rows = [(images / f"images/{i:02d}.png", 0) for i in range(10)]
    dataset = load_csv(write_csv(images / "lists/list.csv", ["image", "label"], rows))
    split = dataset.split
    assert (len(split.train), len(split.val), len(split.test)) == (5, 2, 3)
    assert dataset.images.load(split.test[0].key).size == (6, 6)


def test_a_csv_with_columns_of_its_own(images: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    rows = [(f"images/{i:02d}.png", i % 2, "fit" if i < 8 else "exam") for i in range(10)]
    path = write_csv(images / "list.csv", ["file", "class", "use"], rows)
    split = load_csv(
        path,
        SourceOptions(
            image_column="file",
            label_column="class",
            split_column="use",
            train_split="fit",
            test_split="exam",
            class_names=names,
        ),
    ).split
    assert split.class_names == ("cat", "dog")
    assert [item.label for item in split.test] == [0, 1]
    assert (len(split.train), len(split.val)) == (6, 2)


GOOD = ("images/00.png", "a", "train")


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        (["file", "label"], [GOOD], {}, "column 'path' in .*got file, label; .*--source.image-column"),
        (["path", "class"], [GOOD], {}, "column 'label' in .*got path, class; .*--source.label-column"),
        (["path", "label"], [], {"split_column": "use"}, "column 'use' in .*--source.split-column"),
        (["path", "label"], [], {"image_column": "jpg"}, "column 'jpg' in .*got path, label"),
        (["path", "label"], [], {}, "images in .*got none"),
        (["path", "label", "split"], [GOOD, ("images/01.png", "", "test")], {}, "column 'label' .*line 3"),
        (["path", "label", "split"], [GOOD, ("", "a", "test")], {}, "column 'path' .*line 3"),
        (["path", "label", "split"], [GOOD, ("images/01.png", "a")], {}, "column 'split' .*line 3"),
        (
            ["path", "label", "split"],
            [GOOD, ("images/01.png", "a", "tset")],
            {},
            "Expected train, val, test in column 'split' of .*got 'tset'",
        ),
        (
            ["path", "label", "split"],
            [GOOD, GOOD, ("images/01.png", "a", "test")],
            {},
            "once in its train part",
        ),
        (
            ["path", "label", "split"],
            [GOOD, ("images/02.png", "a", "train"), ("images/00.png", "a", "test")],
            {},
            r"no training image of .* in its test part, got 1 \(first: images/00.png\)",
        ),
        (
            ["path", "label", "split"],
            [GOOD, *((f"x/{i}.png", "a", "test") for i in range(5))],
            {},
            r"all 6 images .*5 are absent \(first: x/0.png, x/1.png, x/2.png\)",
        ),
    ],
)
def test_csv_mistakes(
    header: list[str], rows: list[tuple[str, ...]], options: dict[str, str], message: str, images: Path
) -> None:
    path = write_csv(images / "list.csv", header, rows)
    with pytest.raises(UserError, match=message) as caught:
        load_csv(path, SourceOptions(**options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_csv_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CSV file at .*list\.csv, but there is no such file"):
        load_csv(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xff,a\n")
    with pytest.raises(UserError, match=r"CSV file in UTF-8 at .*list\.csv, but it can't be read"):
        load_csv(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("")
    with pytest.raises(UserError, match=r"column 'path' in .*got none"):
        load_csv(tmp_path / "list.csv")
