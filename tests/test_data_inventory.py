"""`cma-tune data check`, `status`, `list`, `miniature`: every planted fault is found, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from cma_tune.cli import main
from cma_tune.data.catalog import ENTRIES, IMAGES_FROM
from cma_tune.data.inventory import check_dataset
from cma_tune.data.miniature import write_miniature

SPLIT = "eurosat/split_zhou_EuroSAT.json"
IMAGES = "eurosat/2750"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature("eurosat", tmp_path_factory.mktemp("whole"), (2, 1, 2)).parent


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A miniature of one's own to damage."""
    shutil.copytree(whole, tmp_path / "root")
    return tmp_path / "root"


def rewrite(root: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    content = json.loads((root / SPLIT).read_text())
    change(content)
    (root / SPLIT).write_text(json.dumps(content))


def no_test_image_of_rivers(content: dict[str, list[Any]]) -> None:
    content["test"] = [row for row in content["test"] if row[2] != "River"]


def one_name_twice(content: dict[str, list[Any]]) -> None:
    for rows in content.values():
        for row in rows:
            row[2] = "Forest" if row[2] == "River" else row[2]


def two_names_of_a_label(content: dict[str, list[Any]]) -> None:
    content["test"][0][2] = "Crops"


def a_training_image_in_test(content: dict[str, list[Any]]) -> None:
    content["test"][0][0] = content["train"][0][0]


def the_same_image_twice(content: dict[str, list[Any]]) -> None:
    content["train"][1][0] = content["train"][0][0]


def a_gap(content: dict[str, list[Any]]) -> None:
    for rows in content.values():
        rows[:] = [row for row in rows if row[1] != 4]


def wrong_lines(root: Path, decode_all: bool = True) -> dict[str, str]:
    findings = check_dataset("eurosat", root, decode_all=decode_all)
    return {finding.what: finding.found for finding in findings if finding.state != "ok"}


def test_a_whole_dataset_has_nothing_wrong(whole: Path) -> None:
    assert wrong_lines(whole) == {}
    by_name = {f.what: f for f in check_dataset("eurosat", whole, decode_all=True)}
    assert by_name["train images"].found == "20, 2 per class"
    assert by_name["damaged images"].expected == "none of all 50"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            no_test_image_of_rivers,
            {"classes without a test image": "1 (first: 'River')", "test images": "18,"},
        ),
        (one_name_twice, {"classes named twice": "1 (first: 'Forest': labels 1, 8)", "class names": "1 (f"}),
        (two_names_of_a_label, {"labels with several names": "1 (first: label 0: Annual Crop Land, Crops)"}),
        (a_training_image_in_test, {"training images in val or test": "1 (first: AnnualCrop/AnnualCrop_1"}),
        (the_same_image_twice, {"images twice in a part": "1 (first: AnnualCrop/AnnualCrop_1.jpg)"}),
        (
            a_gap,
            {
                "labels without a class": "1 (first: 4)",
                "class names": "1 (",
                "train images": "18",
                "val images": "9",
                "test images": "18",
                "classes without a train image": "1 (",
                "classes without a test image": "1 (",
            },
        ),
    ],
)
def test_faults_of_the_split_are_found(
    root: Path, change: Callable[[dict[str, list[Any]]], None], expected: dict[str, str]
) -> None:
    rewrite(root, change)
    found = wrong_lines(root)
    assert set(found) == set(expected)
    for what, begin in expected.items():
        assert found[what].startswith(begin), what


def test_absent_damaged_and_doubled_images_are_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = root / IMAGES
    (images / "River/River_1.jpg").unlink()
    damaged = images / "Forest/Forest_5.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (images / "Pasture/Pasture_2.jpg").write_bytes(b"no image")
    shutil.copyfile(images / "Highway/Highway_1.jpg", images / "Highway/Highway_4.jpg")
    assert wrong_lines(root) == {
        "absent images": "1 (first: River/River_1.jpg)",
        "damaged images": "2 (first: Pasture/Pasture_2.jpg; Forest/Forest_5.jpg)",
        "images of train in test, by content": "1 (first: Highway/Highway_4.jpg is Highway/Highway_1.jpg)",
    }
    with pytest.raises(SystemExit) as exit_code:
        main(["data", "check", "eurosat", "--data-root", str(root), "--all"])
    assert exit_code.value.code == 1
    out = capsys.readouterr().out
    assert "eurosat: 2 wrong, 1 to be looked at" in out
    assert len([line for line in out.splitlines() if "  warning  " in line]) == 1


def test_equal_images_in_train_and_test_alone_are_a_warning(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = root / IMAGES
    shutil.copyfile(images / "Highway/Highway_1.jpg", images / "Highway/Highway_4.jpg")
    main(["data", "check", "eurosat", "--data-root", str(root)])
    assert "eurosat: nothing wrong, 1 to be looked at" in capsys.readouterr().out


def test_a_broken_split_file_does_not_end_a_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / IMAGES / "Forest/Forest_5.jpg").write_bytes(b"no image")
    (root / IMAGES / "River/River_1.jpg").unlink()
    (root / SPLIT).write_text("{")
    found = wrong_lines(root)
    where = (
        f"get it from https://drive.google.com/file/d/{ENTRIES['eurosat'].split_drive_id} and put it there"
    )
    assert found["split file"] == f"can't be read as JSON; {where}"
    assert found["image files"] == "49" and found["damaged images"] == "1 (first: Forest/Forest_5.jpg)"
    assert len(found) == 3  # counts of nothing would only say it again
    (root / SPLIT).unlink()
    with pytest.raises(SystemExit) as exit_code:
        main(["data", "check", "eurosat", "--data-root", str(root)])
    assert exit_code.value.code == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("split file"))
    assert re.split(" {2,}", line)[1:] == [
        "wrong", "split_zhou_EuroSAT.json", f"missing at {root}/{SPLIT}; {where}"
    ]  # fmt: skip
    shutil.rmtree(root / IMAGES)
    (images,) = (f for f in check_dataset("eurosat", root) if f.what == "image folder")
    assert (images.expected, images.state) == ("2750", "wrong")
    assert images.found == f"missing at {root}/{IMAGES}; get the images from {IMAGES_FROM['eurosat']}"


def test_rows_of_another_form_are_counted_beside_the_rest(root: Path) -> None:
    def change(content: dict[str, list[Any]]) -> None:
        content["test"][:3] = [["a.jpg", "0", "Forest"], "abc", ["b.jpg", True, "River"]]
        content["train"][0][1] = 10**9
        del content["val"]

    rewrite(root, change)
    found = wrong_lines(root)
    assert found["rows of another form"].startswith('3 (first: ["a.jpg", "0", "Forest"]; "abc"; ["b.jpg"')
    assert found["lists missing in the split file"] == "1 (first: val)"
    assert found["labels without a class name"] == "1 (first: 1000000000 in train)"
    assert found["test images"].startswith("17,") and found["val images"] == "0"


def test_status_names_what_is_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / IMAGES / "River/River_1.jpg").unlink()
    main(["data", "status", "--data-root", str(root)])
    assert "incomplete  20/10/20        absent images: River/River_1.jpg" in capsys.readouterr().out
    (root / SPLIT).write_text("garbage")
    shutil.rmtree(root / IMAGES)
    (root / IMAGES).mkdir()
    main(["data", "status", "--data-root", str(root)])
    out = capsys.readouterr().out
    assert f"split file: can't be read as JSON; no images in {root / IMAGES}" in out


def test_the_catalogues_sizes_are_expected_of_what_is_no_miniature(root: Path) -> None:
    (root / "eurosat/miniature.json").unlink()
    assert set(wrong_lines(root)) == {"train images", "val images", "test images"}


def test_status_says_what_is_there(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eurosat").symlink_to(whole / "eurosat")
    (tmp_path / "dtd/images").mkdir(parents=True)
    main(["data", "status", "--data-root", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(lines) == set(ENTRIES)
    assert " miniature " in lines["eurosat"]
    assert f"split file: missing at {tmp_path}/dtd/split_zhou_DescribableTextures.json" in lines["dtd"]
    assert " absent " in lines["food101"]


def test_list_says_where_everything_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "list"])
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == list(ENTRIES)
    assert rows[-6].split() == ["eurosat", "10", "13,500/5,400/8,100", *ENTRIES["eurosat"].template.split()]
    shown = {}
    for name, entry in ENTRIES.items():
        main(["data", "list", name])
        out = shown[name] = capsys.readouterr().out
        assert f"{name}: {entry.classes} classes" in out and IMAGES_FROM[name] in out
        assert f"into DATA_ROOT/{entry.folder}" in out and (entry.split_drive_id or "") in out
    assert "timm/eurosat-rgb (--data-root hub:)" in shown["eurosat"]
    lists = ["variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test"))]
    assert (
        f"{', '.join(lists)}, which come with the images\n            into DATA_ROOT/fgvc_aircraft\n"
        in (shown["fgvc_aircraft"])
    )
    assert "into DATA_ROOT/imagenet/images\n            with train/ and val/ in it" in shown["imagenet"]
    assert "DATA_ROOT/imagenet/classnames.txt if it is there" in shown["imagenet"]


def test_miniatures_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    main(["data", "miniature", "eurosat", str(tmp_path), "--per-class", "1,0,1", "--form", "hub"])
    said = capsys.readouterr()
    assert f"--dataset eurosat --data-root hub:{tmp_path}" in said.out and said.err == ""
    assert not datasets.utils.are_progress_bars_disabled()
    assert (tmp_path / "eurosat/dataset_dict.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data"], "Expected 'cma-tune data' and one of list, status"),
        (["data", "chekc", "dtd"], "got 'chekc' (did you mean 'check'?)"),
        (["data", "list", "dttd"], "(did you mean 'dtd'?)"),
        (["data", "list", "dtd", "x"], "Expected 'cma-tune data list [NAME]', got"),
        (["data", "check"], "Expected 'cma-tune data check NAME', got 'cma-tune data check'"),
        (["data", "miniature", "dtd"], "Expected 'cma-tune data miniature NAME OUT', got"),
        (["data", "miniature", "dtd", "x", "--per-class", "1,2"], "Expected three numbers in --per-class"),
        (["data", "check", "dttd"], "(did you mean 'dtd'?)"),
        (["data", "check", "dtd", "--data-root", "nowhere"], "Expected the folder of 'dtd' at nowhere/dtd"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(arguments)
    assert exit_code.value.code == 2
    assert sentence in capsys.readouterr().err
