"""Image folders and CSV files: parts, labels, and what is refused."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from cma_tune.data.sources import Dataset, SourceOptions, load_dataset
from cma_tune.data.splits import Item
from cma_tune.errors import UserError


def make_images(root: Path, counts: Mapping[str, int]) -> None:
    """`counts` images in every folder; the pixel values tell them apart."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (6, 6), (number, index, 0)).save(root / folder / f"{index:02d}.png")


def load_folder(root: Path, options: SourceOptions | None = None) -> Dataset:
    return load_dataset(f"folder:{root}", Path("nowhere"), options)


def names_of(dataset: Dataset, items: Iterable[Item]) -> Counter[str]:
    return Counter(dataset.split.class_names[item.label] for item in items)


def test_a_folder_with_all_parts(tmp_path: Path) -> None:
    make_images(tmp_path, {"train/cat": 3, "train/dog": 2, "val/cat": 1, "test/dog": 2, "test/cow": 1})
    dataset = load_folder(tmp_path)
    assert dataset.split.class_names == ("cat", "cow", "dog")
    assert [(item.key, item.label) for item in dataset.split.train] == [
        ("train/cat/00.png", 0),
        ("train/cat/01.png", 0),
        ("train/cat/02.png", 0),
        ("train/dog/00.png", 2),
        ("train/dog/01.png", 2),
    ]
    assert [(item.key, item.label) for item in dataset.split.val] == [("val/cat/00.png", 0)]
    assert [item.key for item in dataset.split.test] == [
        "test/cow/00.png",
        "test/dog/00.png",
        "test/dog/01.png",
    ]
    assert dataset.origin == f"the source's own train, val and test ({tmp_path})"
    assert dataset.images.load("test/dog/01.png").getpixel((0, 0)) == (3, 1, 0)


@pytest.mark.parametrize("name", ["validation", "valid", "dev"])
def test_other_names_of_validation(name: str, tmp_path: Path) -> None:
    make_images(
        tmp_path, {"train/a": 4, "train/b": 4, f"{name}/a": 2, f"{name}/b": 2, "test/a": 1, "test/b": 1}
    )
    assert [item.key.split("/")[0] for item in load_folder(tmp_path).split.val] == [name] * 4


def test_validation_is_cut_from_train(tmp_path: Path) -> None:
    make_images(tmp_path, {"train/a": 10, "train/b": 5, "train/c": 1, "test/a": 2, "test/b": 2})
    dataset = load_folder(tmp_path)
    assert names_of(dataset, dataset.split.val) == {"a": 2, "b": 1}
    assert names_of(dataset, dataset.split.train) == {"a": 8, "b": 4, "c": 1}
    assert "val a fifth of train" in dataset.origin
    assert load_folder(tmp_path).split == dataset.split


def test_a_folder_without_parts(tmp_path: Path) -> None:
    make_images(tmp_path, {"a": 10, "b": 1, "c": 2, "d": 3, "e/deeper": 4, "f": 100})
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "a/notes.txt").write_text("not an image")
    make_images(tmp_path, {".hidden": 2, "a/.thumbnails": 2})
    (tmp_path / "a/._00.png").write_bytes(b"what macOS leaves behind")
    dataset = load_folder(tmp_path)
    split = dataset.split
    assert split.class_names == ("a", "b", "c", "d", "e", "f")
    assert names_of(dataset, split.train) == {"a": 5, "b": 1, "c": 1, "d": 1, "e": 2, "f": 50}
    assert names_of(dataset, split.val) == {"a": 2, "d": 1, "e": 1, "f": 20}
    assert names_of(dataset, split.test) == {"a": 3, "c": 1, "d": 1, "e": 1, "f": 30}
    keys = [item.key for items in split.parts().values() for item in items]
    assert sorted(keys) == sorted(
        p.relative_to(tmp_path).as_posix()
        for p in tmp_path.rglob("[0-9]*.png")
        if ".hidden" not in p.parts and ".thumbnails" not in p.parts
    )
    assert dataset.origin == f"our stratified 50/20/30 split of {tmp_path}"
    assert load_folder(tmp_path).split == split


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_images(tmp_path, {"train": 10, "bus": 10, "test": 10})
    assert load_folder(tmp_path).split.class_names == ("bus", "test", "train")


def test_parts_with_names_of_their_own(tmp_path: Path) -> None:
    make_images(tmp_path, {"learn/a": 5, "learn/b": 5, "exam/a": 1, "exam/b": 1, "train/c": 9})
    dataset = load_folder(tmp_path, SourceOptions(train_split="learn", test_split="exam"))
    assert dataset.split.class_names == ("a", "b")
    assert {item.key.split("/")[0] for item in dataset.split.test} == {"exam"}


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"train/a": 2, "val/a": 2}, {}, "test part in .* beside train and val.*--source.test_split"),
        ({"test/a": 2, "val/a": 2}, {}, "train part in .* beside val and test.*--source.train_split"),
        ({"test/a": 2}, {}, "train part in .* beside test, got none"),
        ({"train/a": 2}, {"test_split": "exam"}, "part 'exam' in .* for --source.test_split, got train"),
        (
            {"train/a": 2, "test/a": 1},
            {"val_split": "test"},
            "three different parts .*val 'test' and test 'test'",
        ),
        ({"train": 0}, {}, "class folders with images below .*got none; the layout is FOLDER/CLASS/IMAGE"),
    ],
)
def test_parts_that_are_missing(
    counts: dict[str, int], options: dict[str, str], message: str, tmp_path: Path
) -> None:
    make_images(tmp_path, counts)
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path, SourceOptions(**options))  # type: ignore[arg-type]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image folder at .*/nothing, but there is no such folder"):
        load_folder(tmp_path / "nothing")


def test_validation_that_serves_as_test_is_not_validation_too(tmp_path: Path) -> None:
    make_images(tmp_path, {"train/a": 5, "train/b": 5, "validation/a": 2, "validation/b": 2})
    split = load_folder(tmp_path, SourceOptions(test_split="validation")).split
    assert {item.key.split("/")[0] for item in split.test} == {"validation"}
    assert {item.key.split("/")[0] for item in split.val} == {"train"}


@pytest.fixture
def names_file(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffdog\ncat\n\n  cow \n", encoding="utf-8")
    return path


def test_class_names_decide_the_order(tmp_path: Path, names_file: Path) -> None:
    root = tmp_path / "images"
    make_images(root, {"cat": 10, "dog": 10})
    dataset = load_folder(root, SourceOptions(class_names=names_file))
    assert dataset.split.class_names == ("dog", "cat", "cow")
    assert {(item.key.split("/")[0], item.label) for item in dataset.split.test} == {("dog", 0), ("cat", 1)}


def test_numbered_folders_are_labels(tmp_path: Path, names_file: Path) -> None:
    root = tmp_path / "images"
    make_images(root, {"0": 10, "2": 10})
    split = load_folder(root, SourceOptions(class_names=names_file)).split
    assert {(item.key.split("/")[0], item.label) for item in split.test} == {("0", 0), ("2", 2)}


def test_numbered_folders_sort_as_numbers(tmp_path: Path) -> None:
    make_images(tmp_path, {str(number): 3 for number in range(12)})
    split = load_folder(tmp_path).split
    assert split.class_names == tuple(str(number) for number in range(12))
    assert all(item.label == int(item.key.split("/")[0]) for item in split.train)


@pytest.mark.parametrize(
    ("folders", "first"),
    [(["cat", "eel", "owl"], "2 that are not (first: 'eel', 'owl')"), (["0", "3"], "'3'")],
)
def test_labels_that_do_not_match_class_names(
    folders: list[str], first: str, tmp_path: Path, names_file: Path
) -> None:
    make_images(tmp_path / "images", dict.fromkeys(folders, 2))
    with pytest.raises(UserError) as caught:
        load_folder(tmp_path / "images", SourceOptions(class_names=names_file))
    message = str(caught.value)
    assert f"among the 3 class names in {names_file} (or all of them numbers from 0 to 2)" in message
    assert first in message and "mend the labels or the class names" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "class names, one a line, in .* empty file"),
        (b"\xff\xfe\x00", "class names in UTF-8.*can't be read"),
        (b"cat\ncat\n", "every class name .* once .*got 'cat' more than once"),
        (None, "file of class names, one a line, at .*but there is none"),
    ],
)
def test_class_names_that_can_not_be_used(content: bytes | None, message: str, tmp_path: Path) -> None:
    make_images(tmp_path / "images", {"cat": 10})
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path / "images", SourceOptions(class_names=tmp_path / "names.txt"))


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
        (["file", "label"], [GOOD], {}, "column 'path' in .*got file, label; .*--source.image_column"),
        (["path", "class"], [GOOD], {}, "column 'label' in .*got path, class; .*--source.label_column"),
        (["path", "label"], [], {"split_column": "use"}, "column 'use' in .*--source.split_column"),
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


def test_home_is_found_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_images(tmp_path, {"data/a": 4, "data/b": 4})
    assert load_folder(Path("~/data")).split.class_names == ("a", "b")
