"""The few-shot picks equal the published ones and the field's own procedure."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cma_tune.data.catalog import CATALOG
from cma_tune.data.few_shot import few_shot_split
from cma_tune.data.splits import Item, Split
from cma_tune.errors import UserError

PUBLISHED = ["caltech101", "dtd", "ucf101"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_picks_equal_the_published_index_files(
    name: str, shared: Path, published_splits: dict[str, Split]
) -> None:
    entry, split = CATALOG[name], published_splits[name]
    files = sorted((shared / "data/fewshot_indices" / name).glob("shot_*-seed_*.json"))
    assert len(files) >= 5
    for file in files:
        shots, seed = (int(part.split("_")[1]) for part in file.stem.split("-"))
        picked = few_shot_split(split, shots, seed)
        published = json.loads(file.read_text())
        for part, items in (("train", picked.train), ("val", picked.val)):
            expected = [
                (row["impath"], row["label"], row["classname"])
                for row in (published[part]["data"] if isinstance(published[part], dict) else published[part])
            ]
            ours = [
                (f"./data/{entry.folder}/{entry.images}/{i.key}", i.label, split.class_names[i.label])
                for i in items
            ]
            assert ours == expected, f"{file.name}, {part}"
        assert picked.test == split.test


@pytest.mark.parametrize(
    ("seed", "shots", "prefix"),
    [
        (1, 1, "33173bedf9adcd53"),
        (1, 16, "e60a836bd33cbba3"),
        (2, 16, "62be9f804c23dea9"),
        (3, 16, "8c465c68bff43c6e"),
    ],
)
def test_caltech101_checksums(seed: int, shots: int, prefix: str, published_splits: dict[str, Split]) -> None:
    train = few_shot_split(published_splits["caltech101"], shots, seed).train
    assert hashlib.sha256("\n".join(i.key for i in train).encode()).hexdigest()[:16] == prefix


def test_caltech101_first_picks(published_splits: dict[str, Split]) -> None:
    split = published_splits["caltech101"]
    assert [item.key for item in few_shot_split(split, 1, 1).train[:5]] == [
        "Faces/image_0201.jpg",
        "Leopards/image_0123.jpg",
        "Motorbikes/image_0036.jpg",
        "accordion/image_0043.jpg",
        "airplanes/image_0663.jpg",
    ]
    first = [f"Faces/image_{number}.jpg" for number in ("0201", "0225", "0160", "0150", "0387")]
    assert [item.key for item in few_shot_split(split, 16, 1).train[:5]] == first


def test_seed_zero_is_a_seed_of_its_own(published_splits: dict[str, Split]) -> None:
    split = published_splits["caltech101"]
    picks = {seed: few_shot_split(split, 4, seed).train for seed in range(4)}
    assert len(set(picks.values())) == 4
    assert picks[0] == few_shot_split(split, 4, 0).train


def coop_picks(
    train: list[tuple[str, int]], val: list[tuple[str, int]], shots: int, seed: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """CoOp's procedure on plain tuples and the global generator, written apart from the package."""
    before = random.getstate()
    random.seed(seed)
    both = []
    for part, number in ((train, shots), (val, shots if shots < 4 else 4)):
        picks = []
        labels: list[int] = []
        for _, label in part:
            if label not in labels:
                labels.append(label)
        for label in labels:
            own = [item for item in part if item[1] == label]
            if len(own) < number:
                picks += own
            else:
                picks += random.sample(own, number)
        both.append(picks)
    random.setstate(before)
    return both[0], both[1]


@given(
    train=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    val=st.lists(st.integers(0, 4), max_size=40),
    shots=st.integers(1, 30),
    seed=st.integers(0, 2**40),
)
def test_picks_equal_the_procedure_on_any_split(
    train: list[int], val: list[int], shots: int, seed: int
) -> None:
    rows_train = [(f"train/{i}", label) for i, label in enumerate(train)]
    rows_val = [(f"val/{i}", label) for i, label in enumerate(val)]
    split = Split(
        tuple(Item(*row) for row in rows_train), tuple(Item(*row) for row in rows_val), (), tuple("abcde")
    )
    state = random.getstate()
    picked = few_shot_split(split, shots, seed, allow_fewer=True)
    assert random.getstate() == state  # the global generator is nobody's
    expected = coop_picks(rows_train, rows_val, shots, seed)
    assert ([(i.key, i.label) for i in picked.train], [(i.key, i.label) for i in picked.val]) == expected


def test_a_class_that_is_too_small_is_named_with_its_count() -> None:
    sizes = [9, 3, 8, 0]
    train = tuple(Item(f"{label}/{i}", label) for label, size in enumerate(sizes) for i in range(size))
    split = Split(train, (), train, ("plenty", "rare", "exact", "none_at_all"))
    with pytest.raises(UserError) as caught:
        few_shot_split(split, 8, 1)
    assert "Expected at least 8 training images per class" in str(caught.value)
    assert "rare (3), none_at_all (0)" in str(caught.value)
    assert "plenty" not in str(caught.value) and "exact" not in str(caught.value)
    assert "--allow-fewer-shots" in str(caught.value)

    picked = few_shot_split(split, 8, 1, allow_fewer=True).train
    assert [sum(item.label == label for item in picked) for label in range(4)] == [8, 3, 8, 0]


def test_many_small_classes_are_summed_up() -> None:
    train = tuple(Item(f"{label}", label) for label in range(20))
    split = Split(train, (), train, tuple(f"class{label}" for label in range(20)))
    with pytest.raises(UserError, match=r"class0 \(1\), .*class4 \(1\) and 15 more classes"):
        few_shot_split(split, 2, 1)


@pytest.mark.parametrize(("shots", "seed", "message"), [(0, 1, "at least 1 shot"), (1, -1, "at least 0")])
def test_impossible_shots_and_seeds(shots: int, seed: int, message: str) -> None:
    split = Split((Item("a", 0),), (), (), ("a",))
    with pytest.raises(UserError, match=message):
        few_shot_split(split, shots, seed)
