"""Every dataset of the catalogue through its miniature: the folder layout and the Hub's form."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from cma_tune.data.catalog import CATALOG, ENTRIES, VARIANTS
from cma_tune.data.class_names import class_names, imagenet_names, subset_wnids, wnids
from cma_tune.data.few_shot import few_shot_split
from cma_tune.data.hub_labels import folded, label_of_each, sorted_words
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import source_names, write_hub_miniature
from cma_tune.data.sources import SourceOptions, load_dataset
from cma_tune.data.splits import Split
from cma_tune.errors import UserError

SMALL = [name for name, entry in CATALOG.items() if entry.classes < 1000]


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the miniatures of all fifteen."""
    root = tmp_path_factory.mktemp("layout")
    for name in ENTRIES:
        write_miniature(name, root, (2, 1, 1))
    return root


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the Hub's form."""
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("hub")
    for name in ENTRIES:
        write_hub_miniature(name, root, (2, 1, 1))
    return root


def pictures(split_part: Any, images: Any, every: int) -> dict[int, list[bytes]]:
    """Decoded pixels by label, of every so many-th image."""
    found: dict[int, list[bytes]] = {}
    for item in split_part[::every]:
        found.setdefault(item.label, []).append(np.asarray(images.load(item.key)).tobytes())
    return found


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_dataset_loads_from_its_folders(name: str, layout: Path) -> None:
    dataset = load_dataset(name, layout)
    split, entry = dataset.split, ENTRIES[name]
    each = {"train": 0 if name in VARIANTS else 2, "val": 0 if "imagenet" in name else 1, "test": 1}
    for part, items in split.parts().items():
        assert (
            Counter(i.label for i in items) == dict.fromkeys(range(entry.classes), each[part])
            or not each[part]
        )
        assert len(items) == each[part] * entry.classes
    assert list(split.class_names) == class_names(name)
    assert dataset.templates == (entry.template,)
    assert dataset.origin.startswith("miniature of drawn images")
    item = split.test[-1]
    with Image.open(layout / entry.folder / entry.images / item.key) as plain:
        assert np.array_equal(np.asarray(plain), np.asarray(dataset.images.load(item.key)))


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_dataset_loads_from_the_hubs_form_with_the_same_labels(
    name: str, layout: Path, hub: Path
) -> None:
    ours, theirs = load_dataset(name, layout), load_dataset(name, Path(f"hub:{hub}"))
    assert theirs.split.class_names == ours.split.class_names
    assert theirs.templates == ours.templates
    assert len(theirs.split.test) == len(ours.split.test)
    assert "not the published split" in theirs.origin or name in VARIANTS
    # Test images are told apart by their pixels: the same picture has to carry the same label.
    every = 1 if ENTRIES[name].classes < 100 else 7
    label_of = {
        p: label for label, all_of in pictures(ours.split.test, ours.images, 1).items() for p in all_of
    }
    for label, found in pictures(theirs.split.test, theirs.images, every).items():
        assert [label_of[p] for p in found] == [label] * len(found)
    if name not in VARIANTS:
        both = len(theirs.split.train) + len(theirs.split.val)
        assert both == len(ours.split.train) + len(ours.split.val)


@pytest.mark.parametrize("name", ["oxford_pets", "eurosat"])
def test_file_names_recover_the_published_split(name: str, layout: Path, hub: Path, tmp_path: Path) -> None:
    entry = CATALOG[name]
    (tmp_path / name).symlink_to(hub / name)
    (tmp_path / str(entry.split_file)).symlink_to(layout / entry.folder / str(entry.split_file))
    ours, theirs = load_dataset(name, layout), load_dataset(name, Path(f"hub:{tmp_path}"))
    assert theirs.split == ours.split and theirs.split.digest() == ours.split.digest()
    assert f"published split {entry.split_file}, recovered by the file names" in theirs.origin
    for item in (*ours.split.train[::9], *ours.split.test[::9]):
        assert np.array_equal(
            np.asarray(theirs.images.load(item.key)), np.asarray(ours.images.load(item.key))
        )
    assert few_shot_split(theirs.split, 1, 3) == few_shot_split(ours.split, 1, 3)


@pytest.mark.parametrize("name", ["oxford_pets", "eurosat"])
def test_file_names_alone_recover_the_published_split(
    name: str, published_splits: dict[str, Split], tmp_path: Path
) -> None:
    published = published_splits[name]
    items = sorted({*published.train, *published.val, *published.test}, key=lambda item: item.key[::-1])
    numbers = {
        "image_id": datasets.Value("string"),
        "label": datasets.ClassLabel(names=source_names(name)[0]),
        "image": datasets.Image(),
    }
    cut = len(items) // 3
    tables = {
        part: datasets.Dataset.from_dict(
            {
                "image_id": [Path(item.key).stem for item in own],
                "label": [item.label for item in own],  # these two have the literature's order
                "image": [None] * len(own),
            },
            features=datasets.Features(numbers),
        )
        for part, own in (("train", items[cut:]), ("test", items[:cut]))
    }
    datasets.disable_progress_bars()
    datasets.DatasetDict(tables).save_to_disk(tmp_path / name)
    dataset = load_dataset(name, Path(f"hub:{tmp_path}"))
    assert dataset.split == published and dataset.split.digest() == published.digest()
    assert dataset.origin.startswith("published split split_zhou_")
    datasets.DatasetDict({**tables, "test": tables["test"].select(range(1, cut))}).save_to_disk(
        tmp_path / "less" / name
    )
    less = load_dataset(name, Path(f"hub:{tmp_path}/less"))
    assert "not the published split" in less.origin


def test_paths_below_the_image_folder_find_images_whose_names_repeat(layout: Path, tmp_path: Path) -> None:
    ours = load_dataset("caltech101", layout)  # image_0001.jpg in every class
    items = [*ours.split.test, *ours.split.val, *ours.split.train]
    for column in ("image_id", "only_name"):
        rows = {
            "image": [{"bytes": (ours.images.root / i.key).read_bytes(), "path": None} for i in items],  # type: ignore[attr-defined]
            "label": [ours.split.class_names[i.label] for i in items],
            "image_id": [i.key if column == "image_id" else Path(i.key).name for i in items],
        }
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        place = tmp_path / column / "caltech101"
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(place)
        (place / "split_zhou_Caltech101.json").symlink_to(layout / "caltech-101/split_zhou_Caltech101.json")
    theirs = load_dataset("caltech101", Path(f"hub:{tmp_path}/image_id"))
    assert theirs.split.digest() == ours.split.digest()
    item = ours.split.train[77]
    assert theirs.images.load(item.key).tobytes() == ours.images.load(item.key).tobytes()
    with pytest.raises(UserError, match=r"file names in column 'image_id' stand for several"):
        load_dataset("caltech101", Path(f"hub:{tmp_path}/only_name"))


def test_a_split_that_is_not_the_tables_is_refused(layout: Path, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "eurosat").symlink_to(hub / "eurosat")
    path = tmp_path / "split_zhou_EuroSAT.json"
    content = json.loads((layout / "eurosat/split_zhou_EuroSAT.json").read_text())
    content["test"][3][0] = "Highway/Highway_77.jpg"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"1 are absent \(first: Highway/Highway_77.jpg\)"):
        load_dataset("eurosat", Path(f"hub:{tmp_path}"))
    content["test"][3], content["test"][4] = (
        ["Highway/Highway_4.jpg", 4, "Industrial Buildings"],
        ["Industrial/Industrial_4.jpg", 3, "Highway or Road"],
    )
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"agree on the classes, got 'Industrial Buildings' and 'Highway or Road'"
    ):
        load_dataset("eurosat", Path(f"hub:{tmp_path}"))


def test_the_hubs_own_label_orders_are_corrected() -> None:
    food, of_label = source_names("food101")
    assert food[16:18] == ["cheesecake", "cheese_plate"] and of_label[16:18] == [17, 16]
    assert label_of_each("food101", food, None, "here")["cheesecake"] == 17
    sun, _ = source_names("sun397")
    assert sun[206:208] == ["jail cell", "jail indoor"]
    assert label_of_each("sun397", sun, None, "here")["jail indoor"] == 206
    assert class_names("sun397")[206] == "indoor jail"
    assert label_of_each("stanford_cars", source_names("stanford_cars")[0], None, "here")[
        "Audi TTS Coupe 2012"
    ] == class_names("stanford_cars").index("2012 Audi TTS Coupe")
    flowers, _ = source_names("oxford_flowers")
    assert flowers[:4] == ["1", "10", "100", "101"]
    assert label_of_each("oxford_flowers", flowers, None, "here")["100"] == 99
    caltech = label_of_each("caltech101", source_names("caltech101")[0], None, "here")
    assert len(caltech) == 102 and caltech["background_google"] is caltech["faces_easy"] is None
    assert (caltech["faces"], caltech["leopards"], caltech["motorbikes"]) == (0, 1, 2)


@pytest.mark.parametrize("name", SMALL)
def test_folded_names_stay_apart(name: str) -> None:
    names = class_names(name)
    assert len({folded(one) for one in names}) == len({sorted_words(one) for one in names}) == len(names)


def test_unknown_and_doubled_classes_are_refused(tmp_path: Path) -> None:
    names = class_names("dtd")
    with pytest.raises(
        UserError, match=r"47 classes of 'dtd' in there, got 1 unknown .*'furry'.*class-names"
    ):
        label_of_each("dtd", [*names[:-1], "furry"], None, "there")
    with pytest.raises(UserError, match=r"got 'Banded' and 'banded' for 'banded'"):
        label_of_each("dtd", ["Banded", *names], None, "there")
    with pytest.raises(UserError, match=r"47 unknown ones \(first: '0'"):  # numbers alone say nothing
        label_of_each("dtd", [str(n) for n in range(47)], None, "there")
    spelling = tmp_path / "names.txt"
    spelling.write_text("\n".join(["gestreift", *names[1:]]))
    assert label_of_each("dtd", [*names[1:], "gestreift"], spelling, "there")["gestreift"] == 0
    spelling.write_text("one\ntwo")
    with pytest.raises(UserError, match=r"Expected 47 class names of 'dtd' in .*, got 2"):
        label_of_each("dtd", names, spelling, "there")


def test_imagenets_classes_by_id_number_and_synonyms() -> None:
    subset = subset_wnids("imagenet_a")
    everything = list(imagenet_names())
    assert label_of_each("imagenet_a", subset[::-1], None, "x")[subset[7]] == 7
    numbers = [str(everything.index(wnid)) for wnid in subset]
    assert label_of_each("imagenet_a", numbers, None, "x")[numbers[5]] == 5
    synonyms = [f"{name}, {number}" for number, name in enumerate(imagenet_names().values())]
    assert label_of_each("imagenet", synonyms, None, "x")[synonyms[998]] == 998
    with pytest.raises(UserError, match="unknown"):
        label_of_each("imagenet_a", ["n00000000"], None, "x")


def test_class_names_are_the_published_ones(shared: Path, published_splits: dict[str, Split]) -> None:
    for name in CATALOG:
        published = (shared / "data/classnames" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert class_names(name) == published
    for name, split in published_splits.items():
        assert class_names(name) == list(split.class_names)


def test_imagenets_ids_are_those_of_timm_and_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    assert class_names("imagenet") == list(open_clip.zero_shot_metadata.IMAGENET_CLASSNAMES)
    timm = importlib.util.find_spec("timm")
    assert timm is not None and timm.origin is not None
    for name in ("imagenet", "imagenet_a", "imagenet_r"):
        ids = (Path(timm.origin).parent / f"data/_info/{name}_synsets.txt").read_text().split()
        assert wnids(name) == ids


def test_a_hub_table_of_other_columns_is_one_clear_sentence(tmp_path: Path) -> None:
    rows = {"img": [Image.new("RGB", (4, 4), (9, 9, n)) for n in range(94)], "kind": class_names("dtd") * 2}
    feature = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=feature)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "dtd")
    root = Path(f"hub:{tmp_path}")
    with pytest.raises(UserError, match=r"column 'image' in part 'train' .*got img, kind; .*image-column"):
        load_dataset("dtd", root)
    with pytest.raises(UserError, match=r"column 'label' in part .*label-column"):
        load_dataset("dtd", root, SourceOptions(image_column="img"))
    dataset = load_dataset("dtd", root, SourceOptions(image_column="img", label_column="kind"))
    assert len(dataset.split.test) == 94 and dataset.split.class_names[0] == "banded"
    datasets.DatasetDict({"a": table}).save_to_disk(tmp_path / "food101")
    with pytest.raises(UserError, match=r"Expected parts train and test in .*got a; name them"):
        load_dataset("food101", root, SourceOptions(image_column="img", label_column="kind"))


def test_hub_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected a Hub repository of 'ucf101', but none is known"):
        load_dataset("ucf101", Path("hub:"))
    with pytest.raises(UserError, match=r"'.*no/such/folder', which is neither"):
        load_dataset("dtd", Path(f"hub:{tmp_path}/no/such/folder"))
    assert set(HUB) == set(ENTRIES)


def test_what_is_no_miniature_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    for write in (write_miniature, write_hub_miniature):
        with pytest.raises(UserError, match=r"no folder, or a miniature's, at .*dtd"):
            write("dtd", tmp_path)
        with pytest.raises(UserError, match=r"at least 1 training"):
            write("eurosat", tmp_path, (0, 1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
    write_miniature("eurosat", tmp_path, (3, 1, 1))
    write_miniature("eurosat", tmp_path, (1, 1, 1))
    assert len(list((tmp_path / "eurosat").rglob("*.jpg"))) == 30
    with pytest.raises(UserError, match=r"got 'eurosatt' \(did you mean 'eurosat'"):
        write_miniature("eurosatt", tmp_path)
