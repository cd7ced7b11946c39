"""Image folders: parts, labels, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from made_images import make_images

from cma_tune.data.sources import Dataset, SourceOptions, load_dataset
from cma_tune.data.splits import Item
from cma_tune.errors import UserError


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
    assert "val 3 of train's 16, a rounded fifth of every class" in dataset.origin
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
        ({"train/a": 2, "val/a": 2}, {}, "test part in .* beside train and val.*--source.test-split"),
        ({"test/a": 2, "val/a": 2}, {}, "train part in .* beside val and test.*--source.train-split"),
        ({"test/a": 2}, {}, "train part in .* beside test, got none"),
        ({"train/a": 2}, {"test_split": "exam"}, "part 'exam' in .* for --source.test-split, got train"),
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


def test_home_is_found_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_images(tmp_path, {"data/a": 4, "data/b": 4})
    assert load_folder(Path("~/data")).split.class_names == ("a", "b")
