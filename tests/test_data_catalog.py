"""The catalogue agrees with the published files; a wrong name or folder is one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cma_tune.data.catalog import CATALOG, check_dataset_name, known_names
from cma_tune.data.class_names import class_names, wnids
from cma_tune.data.few_shot import few_shot_split
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Split, base_novel_labels, prompt_name
from cma_tune.data.templates import check_templates
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


def imagenet(root: Path, wnids: list[str]) -> Path:
    """An ImageNet of one or two images a class and part; the names hold their label."""
    for part in ("train", "val"):
        for number, wnid in enumerate(wnids):
            (root / "imagenet/images" / part / wnid).mkdir(parents=True)
            for image in ("b.JPEG", "a.JPEG") if number < 2 else ("b.JPEG",):
                (root / "imagenet/images" / part / wnid / image).touch()
    lines = [f"{wnid} name of {number}\n" for number, wnid in enumerate(wnids)]
    (root / "imagenet/classnames.txt").write_text("".join(lines))
    return root


def test_imagenet_and_its_variants_from_folders(tmp_path: Path) -> None:
    ids = wnids("imagenet")
    split = load_dataset("imagenet", imagenet(tmp_path, ids)).split
    first = [f"train/{ids[0]}/a.JPEG", f"train/{ids[0]}/b.JPEG", f"train/{ids[1]}/a.JPEG"]
    assert [i.key for i in split.train[:3]] == first
    assert split.class_names[999] == "name of 999" and split.test[-1].label == 999 and split.val == ()
    assert len(few_shot_split(split, 1, 1).train) == 1000

    matched = tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        (matched / str(number)).mkdir(parents=True)
        (matched / str(number) / "x.jpeg").touch()
    split = load_dataset("imagenetv2", tmp_path).split
    assert (
        [i.label for i in split.test] == [int(i.key.split("/")[0]) for i in split.test] == list(range(1000))
    )
    assert split.class_names[10] == "name of 10"  # of ImageNet's own classnames.txt
    with pytest.raises(UserError, match="test images alone; learn on another"):
        few_shot_split(split, 1, 1)

    rendition = tmp_path / "imagenet-rendition/imagenet-r"
    for wnid in wnids("imagenet_r"):
        (rendition / wnid).mkdir(parents=True)
        (rendition / wnid / "art_0.jpg").touch()
    (rendition / "README.txt").touch()
    split = load_dataset("imagenet_r", tmp_path).split
    assert len(split.class_names) == 200
    assert split.class_names[5] == f"name of {ids.index(wnids('imagenet_r')[5])}"
    (rendition / "n99999999").mkdir()
    with pytest.raises(UserError, match=r"200 class folders of 'imagenet_r' in .*1 others \('n99999999'"):
        load_dataset("imagenet_r", tmp_path)
    (tmp_path / "imagenet/classnames.txt").write_text("n01440764 tench")
    with pytest.raises(UserError, match=r"'WNID NAME' in 1000 lines of .*classnames.txt, got 1 such"):
        load_dataset("imagenetv2", tmp_path)


def test_imagenets_names_come_from_the_package_where_no_file_says_them(tmp_path: Path) -> None:
    (imagenet(tmp_path, wnids("imagenet")) / "imagenet/classnames.txt").unlink()
    dataset = load_dataset("imagenet", tmp_path)
    assert dataset.split.class_names[0] == "tench" and "the package carries" in dataset.origin


def test_aircraft_from_its_lists(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    variants = class_names("fgvc_aircraft")[::-1]  # another order than the package's
    (folder / "variants.txt").write_text("\n".join(variants))
    with pytest.raises(UserError, match=r"list of images and classes at .*images_variant_train.txt"):
        load_dataset("fgvc_aircraft", tmp_path)
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{number}{label:03d} {name}" for label, name in enumerate(variants)]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines))
        for label in range(100):
            (folder / f"images/{number}{label:03d}.jpg").touch()
    split = load_dataset("fgvc_aircraft", tmp_path).split
    assert split.class_names == tuple(variants)
    assert [(i.key, i.label) for i in split.val[:2]] == [("1000.jpg", 0), ("1001.jpg", 1)]
    (folder / "images/2007.jpg").unlink()
    with pytest.raises(UserError, match=r"1 are absent \(first: 2007.jpg\)"):
        load_dataset("fgvc_aircraft", tmp_path)
    (folder / "images_variant_val.txt").write_text("0001 Zeppelin")
    with pytest.raises(UserError, match=r"images_variant_val.txt, got '0001 Zeppelin'"):
        load_dataset("fgvc_aircraft", tmp_path)
    (folder / "variants.txt").write_text("707-320")
    with pytest.raises(UserError, match=r"Expected 100 different variants .* got 1"):
        load_dataset("fgvc_aircraft", tmp_path)


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
