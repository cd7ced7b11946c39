"""The catalogue agrees with the published files; a wrong name or folder is one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cma_tune.data.catalog import (
    CATALOG,
    check_dataset_name,
    check_templates,
    known_names,
    locate,
)
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Split, base_novel_labels, prompt_name
from cma_tune.errors import UserError, nearest

BASE_NOVEL = {
    "imagenet": (500, 500),
    "caltech101": (50, 50, 1549, 916),
    "oxford_pets": (19, 18, 1881, 1788),
    "stanford_cars": (98, 98),
    "oxford_flowers": (51, 51),
    "food101": (51, 50),
    "fgvc_aircraft": (50, 50),
    "sun397": (199, 198),
    "dtd": (24, 23, 864, 828),
    "eurosat": (5, 5, 4200, 3900),
    "ucf101": (51, 50, 1934, 1849),
}
"""Base and novel classes, and their test images for the splits that the tests may have at hand."""


def test_the_eleven_are_there() -> None:
    assert list(CATALOG) == list(BASE_NOVEL)
    for entry in CATALOG.values():
        check_templates([entry.template])
        assert (entry.split_file is None) == (entry.split_drive_id is None)


@pytest.mark.parametrize("name", list(CATALOG))
def test_class_counts_equal_the_published_class_names(name: str, shared: Path) -> None:
    names = (shared / "data/classnames" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert CATALOG[name].classes == len(names)


def test_splits_equal_sizes_and_class_names(shared: Path, published_splits: dict[str, Split]) -> None:
    assert set(published_splits) >= {"caltech101", "oxford_pets", "dtd", "eurosat", "ucf101"}
    for name, split in published_splits.items():
        assert (len(split.train), len(split.val), len(split.test)) == CATALOG[name].sizes, name
        published = (shared / "data/classnames" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert list(split.class_names) == published, name


@pytest.mark.parametrize("name", list(BASE_NOVEL))
def test_halves_by_class_count(name: str) -> None:
    base, novel = base_novel_labels(CATALOG[name].classes)
    assert (len(base), len(novel)) == BASE_NOVEL[name][:2]
    assert base + novel == list(range(CATALOG[name].classes))


def test_halves_by_test_images(published_splits: dict[str, Split]) -> None:
    for name, split in published_splits.items():
        halves = [split.restricted_to(labels) for labels in base_novel_labels(len(split.class_names))]
        assert tuple(len(half.test) for half in halves) == BASE_NOVEL[name][2:], name
        for half in halves:
            assert {item.label for item in half.test} == set(range(len(half.class_names)))
        assert halves[0].class_names + halves[1].class_names == split.class_names


def test_halves_need_two_classes() -> None:
    with pytest.raises(UserError, match=r"at least 2 classes .*got 1.*few-shot"):
        base_novel_labels(1)
    assert base_novel_labels(3) == ([0, 1], [2])


def test_prompt_name() -> None:
    assert prompt_name("Apply_Eye_Makeup") == "Apply Eye Makeup"


def test_an_unknown_dataset_gets_the_nearest_name() -> None:
    for name in known_names():
        if name not in ("imagenet", "fgvc_aircraft"):
            check_dataset_name(name)
    with pytest.raises(UserError) as caught:
        check_dataset_name("Caltech_101")
    message = str(caught.value)
    assert "got 'Caltech_101' (did you mean 'caltech101'?)" in message
    assert "digits, shapes, imagenet" in message and "folder:PATH" in message
    with pytest.raises(UserError, match=r"got 'zzzz'\.$"):
        check_dataset_name("zzzz")
    with pytest.raises(UserError, match="path or repository after 'csv:'"):
        check_dataset_name("csv:")


def test_nearest_ignores_case_and_stays_silent_on_strangers() -> None:
    assert nearest("vit-b-16", ["RN50", "ViT-B-16"]) == " (did you mean 'ViT-B-16'?)"
    assert nearest("qqq", ["RN50"]) == ""


@pytest.mark.parametrize("name", ["imagenet", "fgvc_aircraft"])
def test_datasets_without_a_split_file_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"got '{name}'.*folder:PATH or csv:FILE"):
        check_dataset_name(name)
    (tmp_path / CATALOG[name].folder).mkdir()
    with pytest.raises(UserError, match="split file"):
        locate(CATALOG[name], tmp_path)


@pytest.mark.parametrize("template", ["a photo", "a {} of {}", "a {0}", "a {} {x}", "a {} }", "a {{}}"])
def test_templates_have_one_place_for_the_name(template: str) -> None:
    with pytest.raises(UserError, match=r"one '{}' for the class name") as caught:
        load_dataset("digits", Path("nowhere"), templates=["a photo of a {}.", template])
    assert f"got '{template}'" in str(caught.value)


def test_missing_folder_split_file_and_images_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("dtd", tmp_path)
    assert f"folder of 'dtd' at {tmp_path / 'dtd'}" in str(caught.value)
    assert "--data-root" in str(caught.value)
    assert "https://www.robots.ox.ac.uk/~vgg/data/dtd/" in str(caught.value)
    assert "https://drive.google.com/file/d/1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x" in str(caught.value)

    (tmp_path / "dtd").mkdir()
    with pytest.raises(UserError) as caught:
        load_dataset("dtd", tmp_path)
    assert str(tmp_path / "dtd/split_zhou_DescribableTextures.json") in str(caught.value)
    assert "https://drive.google.com/file/d/1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x" in str(caught.value)

    (tmp_path / "dtd/split_zhou_DescribableTextures.json").write_text("{}")
    with pytest.raises(UserError, match=r"images of 'dtd' in .*dtd/images, but there is no such folder"):
        load_dataset("dtd", tmp_path)


def test_a_split_of_another_dataset_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "dtd/images"
    images.mkdir(parents=True)
    content = {part: [[f"{part}.jpg", 0, "banded"]] for part in ("train", "val", "test")}
    (tmp_path / "dtd/split_zhou_DescribableTextures.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"Expected 47 classes of 'dtd' in .*got 1; get it from https"):
        load_dataset("dtd", tmp_path)
