"""Splits: the digest, restriction to classes, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from cma_tune.data.splits import Item, Split, check_split, read_coop_split
from cma_tune.errors import UserError

TINY = Split(
    train=(Item("a/1.jpg", 0), Item("b/1.jpg", 1), Item("c/1.jpg", 2)),
    val=(Item("b/2.jpg", 1),),
    test=(Item("c/3.jpg", 2), Item("a/3.jpg", 0)),
    class_names=("ant", "bée", "cat"),
)


def test_the_digest_is_stable() -> None:
    # Records hold digests: a change of this value makes old records incomparable.
    written_out = (
        '{"train": [["a/1.jpg", 0], ["b/1.jpg", 1], ["c/1.jpg", 2]], "val": [["b/2.jpg", 1]], '
        '"test": [["c/3.jpg", 2], ["a/3.jpg", 0]], "class_names": ["ant", "b\\u00e9e", "cat"]}'
    )
    assert TINY.digest() == hashlib.sha256(written_out.encode()).hexdigest()
    assert TINY.digest() == "8e8478e40722ea243fa9bdbbe13fffc8c84d8124c808a771a62a86c13346063c"
    assert replace(TINY).digest() == TINY.digest()


@pytest.mark.parametrize(
    "other",
    [
        replace(TINY, train=TINY.train[::-1]),
        replace(TINY, train=TINY.train[:2]),
        replace(TINY, train=(Item("a/9.jpg", 0), *TINY.train[1:])),
        replace(TINY, train=(Item("a/1.jpg", 1), *TINY.train[1:])),
        replace(TINY, val=()),
        replace(TINY, val=TINY.val + TINY.test[:1], test=TINY.test[1:]),
        replace(TINY, train=TINY.train + TINY.val, val=()),
        replace(TINY, class_names=("ant", "bee", "cat")),
        replace(TINY, class_names=("bée", "ant", "cat")),
        replace(TINY, class_names=("ant", "bée", "cat", "dog")),
    ],
)
def test_the_digest_changes_with_any_change(other: Split) -> None:
    assert other.digest() != TINY.digest()


def test_the_digest_takes_file_names_that_are_not_utf8() -> None:
    assert len(replace(TINY, val=(Item("b\udcff/2.jpg", 1),)).digest()) == 64


def test_restriction_relabels_in_the_order_given() -> None:
    restricted = TINY.restricted_to([2, 0])
    assert restricted.class_names == ("cat", "ant")
    assert restricted.train == (Item("a/1.jpg", 1), Item("c/1.jpg", 0))
    assert restricted.val == ()
    assert restricted.test == (Item("c/3.jpg", 0), Item("a/3.jpg", 1))


@pytest.mark.parametrize("labels", [[0, 0], [3], [-1]])
def test_restriction_to_impossible_labels(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct labels from 0 to 2"):
        TINY.restricted_to(labels)


def write(path: Path, split: Split) -> Path:
    content = {
        part: [[item.key, item.label, split.class_names[item.label]] for item in items]
        for part, items in split.parts().items()
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_written_split_reads_back(tmp_path: Path) -> None:
    assert read_coop_split(write(tmp_path / "split.json", TINY), "tiny") == TINY


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "null",
        '{"train": [], "test": []}',
        '{"train": 1, "val": [], "test": []}',
        '{"train": {"a": 1}, "val": [], "test": []}',
        '{"train": [["a.jpg", 0]], "val": [], "test": []}',
        '{"train": [["a.jpg", "0", "ant"]], "val": [], "test": []}',
        '{"train": [["a.jpg", 0.0, "ant"]], "val": [], "test": []}',
        '{"train": [["a.jpg", false, "ant"]], "val": [], "test": []}',
        '{"train": [[1, 0, "ant"]], "val": [], "test": []}',
        '{"train": [["a.jpg", 0, null]], "val": [], "test": []}',
        '{"train": ["abc"], "val": [], "test": []}',
    ],
)
def test_a_split_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_coop_split(path, "tiny")
    message = str(caught.value)
    assert str(path) in message and "[path, label, class name]" in message
    assert "use the published split file" in message and "\n" not in message


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000, pickle.dumps(TINY.parts())])
def test_a_split_that_is_not_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"the split file of 'tiny' at .*split\.json to be JSON.*replace the file"
    ):
        read_coop_split(path, "tiny")


def test_nothing_in_a_split_is_unpickled(tmp_path: Path) -> None:
    class Marker:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "was_run"), "w"))  # type: ignore[return-value]

    path = tmp_path / "split.json"
    path.write_bytes(pickle.dumps(Marker()))
    with pytest.raises(UserError):
        read_coop_split(path, "tiny")
    assert not (tmp_path / "was_run").exists()


def rows(*labels_and_names: tuple[int, str]) -> dict[str, list[list[object]]]:
    test: list[list[object]] = [[f"{i}.jpg", *pair] for i, pair in enumerate(labels_and_names)]
    return {"train": [[f"train{row[0]}", *row[1:]] for row in test], "val": [], "test": test}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows((0, "ant"), (0, "bee")), "one class name per label .*got 'ant' and 'bee' for label 0"),
        (rows((0, "ant"), (2, "bee")), "labels 0 to 1 for the 2 classes .*but none is 1"),
        (rows((1, "ant"), (2, "bee")), "labels 0 to 1 for the 2 classes .*but none is 0"),
        (rows((-1, "ant"), (0, "bee")), "labels 0 to 1 for the 2 classes .*but none is 1"),
        ({"train": [], "val": [], "test": []}, "images in the train part of 'tiny', got none"),
    ],
)
def test_labels_that_contradict_class_names(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_coop_split(path, "tiny")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            replace(TINY, class_names=("ant", "bée")),
            "labels 0 to 1 for the 2 class names of 'tiny', got 2 in its train part",
        ),
        (replace(TINY, val=(Item("x", -1),)), "got -1 in its val part"),
        (
            replace(TINY, test=TINY.test + TINY.test),
            r"once in its test part, got 2 more than once \(first: c/3.jpg\)",
        ),
        (replace(TINY, train=()), "images in the train part of 'tiny', got none"),
        (replace(TINY, test=()), "images in the test part of 'tiny', got none"),
        (
            replace(TINY, test=TINY.test + TINY.train[1:]),
            r"no training image of 'tiny' in its test part, got 2 \(first: b/1.jpg\)",
        ),
        (
            replace(TINY, val=TINY.train),
            r"no training image of 'tiny' in its val part, got 3 \(first: a/1.jpg\)",
        ),
    ],
)
def test_a_split_that_can_not_be_trusted_is_refused(split: Split, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_split(split, "tiny")


def test_validation_may_be_empty_or_test_itself() -> None:
    for split in (TINY, replace(TINY, val=()), replace(TINY, val=TINY.test)):
        assert check_split(split, "tiny") is split
