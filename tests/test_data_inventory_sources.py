"""`cma-tune data check` of lists, folders, tables and CSVs: every planted fault is in the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
from made_images import make_images
from PIL import Image

from cma_tune.data.catalog import ENTRIES
from cma_tune.data.dataset import SourceOptions
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.inventory import check_dataset
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature


@pytest.mark.parametrize("name", ["fgvc_aircraft", "imagenet_a"])
def test_datasets_without_a_split_file_are_checked(name: str, tmp_path: Path) -> None:
    folder = write_miniature(name, tmp_path, (1, 1, 1))
    assert {f.state for f in check_dataset(name, tmp_path)} == {"ok"}
    first = next(folder.rglob("*_1.JPEG" if name == "imagenet_a" else "*001.jpg"))
    first.write_bytes(b"no image")
    findings = check_dataset(name, tmp_path, decode_all=True)
    assert [(f.what, f.found[:2]) for f in findings if f.state == "wrong"] == [("damaged images", "1 ")]


def test_the_hubs_form_is_checked(tmp_path: Path) -> None:
    write_hub_miniature("eurosat", tmp_path, (1, 1, 1))
    findings = {f.what: f for f in check_dataset("eurosat", Path(f"hub:{tmp_path}"))}
    assert {f.state for f in findings.values()} == {"ok"}
    assert "not the published split" in findings["split"].found


def test_every_fault_of_aircrafts_lists_is_found(tmp_path: Path) -> None:
    folder = write_miniature("fgvc_aircraft", tmp_path, (2, 1, 1))
    lists = {part: folder / f"images_variant_{part}.txt" for part in ("train", "val", "test")}
    train = lists["train"].read_text()
    lists["train"].write_text(f"{train}nonsense\n0000001 Zeppelin\n")
    lists["val"].unlink()
    lists["test"].write_text(f"{lists['test'].read_text()}{train.splitlines()[0]}\n9999999 A300B4\n")
    found = {f.what: f.found for f in check_dataset("fgvc_aircraft", tmp_path) if f.state == "wrong"}
    assert found == {
        "lines of another form in images_variant_train.txt": "2 (first: 'nonsense'; '0000001 Zeppelin')",
        "lists that can't be read": "1 (first: images_variant_val.txt)",
        "training images in val or test": f"1 (first: {train.split()[0]}.jpg)",
        "absent images": "1 (first: 9999999.jpg)",
        "val images": "0",
        "test images": "102, 1 to 2 per class",
    }


def test_every_fault_of_imagenets_folders_is_found(tmp_path: Path) -> None:
    folder = write_miniature("imagenet_a", tmp_path, (1, 1, 2))
    one, two = sorted(path for path in (folder / "imagenet-a").iterdir())[:2]
    shutil.rmtree(one)
    (folder / "imagenet-a/strange").mkdir()
    next(two.iterdir()).unlink()
    (folder / "classnames.txt").write_text("n01498041 stingray\n")
    found = {f.what: f.found for f in check_dataset("imagenet_a", tmp_path) if f.state == "wrong"}
    assert found == {
        "lines of classnames.txt": "1 (first: 1 of ImageNet's 1000 ids in 1)",
        "class folders missing": f"1 (first: {one.name})",
        "folders that are no class": "1 (first: strange)",
        "test images": "397, 0 to 2 per class",
        "classes without a test image": "1 (first: 'stingray')",
    }


def test_every_fault_of_the_hubs_form_is_found(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    write_hub_miniature("dtd", tmp_path / "whole", (2, 1, 1))
    root = Path(f"hub:{tmp_path}/whole")
    findings = {f.what: f for f in check_dataset("dtd", root)}
    assert {f.state for f in findings.values()} == {"ok"}
    assert findings["class names"].expected == "the 47 published ones"
    assert findings["images in all parts"].expected == "188" and findings["test images"].expected == "47"
    assert findings["train images"].expected == "141 in train and val"
    table = datasets.load_from_disk(tmp_path / "whole/dtd")
    names = table["train"].features["label"].names
    other = datasets.ClassLabel(names=["furry", *names[1:-1], names[1].upper()])
    train, test = (table[part].cast_column("label", other) for part in ("train", "test"))
    again = datasets.concatenate_datasets([train, train.select([5])])
    leaked = datasets.concatenate_datasets([test.select(range(10, 47)), train.select([7])])
    datasets.DatasetDict({"train": again, "test": leaked}).save_to_disk(tmp_path / "other/dtd")
    shutil.copy(tmp_path / "whole/dtd/miniature.json", tmp_path / "other/dtd")
    findings = {f.what: f for f in check_dataset("dtd", Path(f"hub:{tmp_path}/other"))}
    found = {what: f.found for what, f in findings.items() if f.state != "ok"}
    assert found.pop("classes that are none of the dataset's") == "1 (first: 'furry')"
    assert "'blotchy'" in found.pop("classes that are one of the dataset's")
    assert found.pop("classes without a train image").startswith("2 (first: 'banded'; ")
    assert found.pop("classes without a test image").startswith("9 (first: 'banded'; ")
    assert found.pop("images of train in test, by content").startswith("1 (first: test/0000037 is train/000")
    assert found.pop("images twice in a part, by content").startswith("1 (first: ")
    assert {what.split()[0] for what in found} == {"images", "train", "val", "test"}


def test_the_hubs_own_parts_are_held_against_the_repository_and_the_catalogue(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    write_hub_miniature("dtd", tmp_path, (2, 1, 1))
    (tmp_path / "dtd/miniature.json").unlink()
    findings = {f.what: f for f in check_dataset("dtd", Path(f"hub:{tmp_path}"))}
    assert (findings["images in all parts"].expected, findings["test images"].expected) == ("5640", "1880")
    assert {what for what, f in findings.items() if f.state == "wrong"} == {
        "images in all parts", "train images", "val images", "test images"
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, form in HUB.items() if form.sizes is not None])
def test_repositories_hold_what_the_catalogue_has(name: str) -> None:
    # The repository of FGVC Aircraft lacks the published validation images.
    train, val, test = ENTRIES[name].sizes
    assert sum(HUB[name].sizes or ()) == train + (val if name != "fgvc_aircraft" else 0) + test


def test_every_fault_of_a_csv_is_found(tmp_path: Path) -> None:
    make_images(tmp_path, {"cat": 4, "dog": 4})
    lines = [
        *("path,label,split", "cat/00.png,cat,train", "cat/00.png,cat,train", "cat/00.png,cat,test"),
        *("dog/00.png,dog,train", "dog/01.png,,test", "dog/02.png,dog,tset", "dog/09.png,cow,test"),
    ]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = SourceOptions(class_names=tmp_path / "names.txt")
    found = {f.what: f.found for f in check_dataset(f"csv:{tmp_path}/all.csv", tmp_path, options)}
    assert (
        found["images twice in a part"] == found["training images in val or test"] == "1 (first: cat/00.png)"
    )
    assert found["empty cells"] == "1 (first: line 6, column 'label')"
    assert found["values of column 'split' that are no part"] == "1 (first: 'tset' in 1 rows)"
    assert found["labels that are no class names"] == "1 (first: 'cow')"
    assert found["classes without a test image"] == "1 (first: 'dog')"
    (tmp_path / "all.csv").write_text("file,kind\nx,y\n")
    (columns,) = check_dataset(f"csv:{tmp_path}/all.csv", tmp_path)
    assert "'path' (--source.image-column" in columns.found and "'label' (--source.l" in columns.found


def test_paths_that_leave_a_csvs_folder_are_allowed_and_named(tmp_path: Path) -> None:
    make_images(tmp_path, {"cat": 2, "lists/cat": 2, "lists-2": 1})
    inside = ["cat/00.png", f"{tmp_path}/lists/cat/01.png"]
    outside = ["../cat/00.png", f"{tmp_path}/cat/01.png", "cat/../../lists-2/00.png"]
    lines = ["path,label", *(f"{path},cat" for path in [*inside, *outside])]
    (tmp_path / "lists/all.csv").write_text("\n".join(lines))
    findings = {f.what: f for f in check_dataset(f"csv:{tmp_path}/lists/all.csv", tmp_path)}
    assert "wrong" not in {f.state for f in findings.values()}
    named = findings["paths outside the folder"]
    assert named.state == "warning" and named.found.startswith("3 (first: ")
    assert set(named.found.removeprefix("3 (first: ").rstrip(")").split("; ")) == set(outside)


def test_every_fault_of_a_folder_and_a_table_is_found(tmp_path: Path) -> None:
    make_images(tmp_path / "folder", {"train/cat": 3, "train/dog": 2, "val/cat": 1})
    (tmp_path / "folder/train/cat/00.png").write_bytes(b"no image")
    found = {f.what: f.found for f in check_dataset(f"folder:{tmp_path}/folder", tmp_path)}
    assert found["parts missing"] == "1 (first: test (there are: train, val))"
    assert found["damaged images"] == "1 (first: train/cat/00.png)"
    datasets.disable_progress_bars()
    pictures = [Image.new("RGB", (4, 4), (n // 2, 0, 0)) for n in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": pictures, "label": [0, 1, -1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    parts = {"train": table, "test": table.rename_column("label", "kind"), "val": table}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "table")
    found = {f.what: f.found for f in check_dataset(f"hub:{tmp_path}/table", tmp_path)}
    assert found["rows without a label"] == "2 (first: row 2 of 'train': -1; row 2 of 'val': -1)"
    assert found["columns missing"].startswith("1 (first: 'label' of 'test'")
    assert found["parts missing"].startswith("1 (first: test")
    assert found["images twice in a part, by content"].startswith("2 (first: train/0000001 is train/0000000")


def test_a_split_file_that_is_not_the_tables_is_looked_through(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    write_hub_miniature("eurosat", tmp_path, (1, 1, 1))
    folder = write_miniature("eurosat", tmp_path / "folders", (1, 1, 1))
    content = json.loads((folder / "split_zhou_EuroSAT.json").read_text())
    content["train"][0][0] = "Highway/Highway_77.jpg"
    content["test"][1][1:] = [9, "Sea or Lake"]
    (tmp_path / "split_zhou_EuroSAT.json").write_text(json.dumps(content))
    findings = check_dataset("eurosat", Path(f"hub:{tmp_path}"))
    assert {f.what: f.found for f in findings if f.state == "wrong"} == {
        "absent images": "1 (first: Highway/Highway_77.jpg)",
        "classes of the table that are others than the split file's": (
            "1 (first: Forest/Forest_3.jpg is 'Forest')"
        ),
        "train images": "9, 0 to 1 per class",
        "classes without a train image": "1 (first: 'Annual Crop Land')",
        "classes without a test image": "1 (first: 'Forest')",
    }
