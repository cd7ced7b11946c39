"""What a run says of its data: training images in test, classes without a test image, paths that leave."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import datasets
import pytest
from made_images import make_images
from tiny_runs import backbone, few_shot_config

from cma_tune.build import Setup
from cma_tune.cli import main
from cma_tune.data.inventory import check_dataset
from cma_tune.data.miniature import write_miniature
from cma_tune.data.sources import load_dataset
from cma_tune.errors import UserError
from cma_tune.protocols.few_shot import few_shot
from cma_tune.records import Record

TRAIN, TEST = {f"train/{name}": 4 for name in ("cat", "dog")}, {f"test/{name}": 4 for name in ("cat", "dog")}


def run(output: Path, dataset: str) -> Record:
    config = few_shot_config(
        output, dataset=dataset, shots=[3], seeds=[1, 2], features_dir=str(output / "features")
    )
    return few_shot(config, Setup(config, backbone=backbone()))[-1]


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_training_images_in_test_are_counted_and_warned_of_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_images(tmp_path / "photos", TRAIN | TEST)
    shutil.copyfile(tmp_path / "photos/train/cat/01.png", tmp_path / "photos/test/dog/02.png")
    shutil.copyfile(tmp_path / "photos/train/dog/00.png", tmp_path / "photos/test/dog/00.png")
    dataset, keys = f"folder:{tmp_path}/photos", "test/dog/00.png is train/dog/00.png"
    if kind == "hub":
        datasets.disable_progress_bars()
        table = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"))
        table.save_to_disk(str(tmp_path / "table"))
        dataset, keys = f"hub:{tmp_path}/table", "test/0000004 is train/0000004"
    with caplog.at_level(logging.WARNING, "cma_tune"):
        record = run(tmp_path / "runs", dataset)
    assert record.training["train_images_in_test"] == 2
    warned = [text for text in caplog.messages if "by content" in text]
    assert len(warned) == 1
    assert warned[0].startswith(
        f"2 of 8 test images of '{dataset}' are training images by content (first: {keys})"
    )


def test_a_run_over_data_in_order_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_images(tmp_path / "photos", TRAIN | TEST)
    with caplog.at_level(logging.WARNING, "cma_tune"):
        record = run(tmp_path / "runs", f"folder:{tmp_path}/photos")
    assert record.training["train_images_in_test"] == 0 and not caplog.messages


def test_a_class_without_test_images_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["path,label,split"]
    make_images(tmp_path, {"images": 11})
    for number, (label, part) in enumerate(
        [("cat", "train")] * 4 + [("dog", "train")] * 4 + [("cat", "test")] * 3
    ):
        rows.append(f"images/{number:02d}.png,{label},{part}")
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    dataset = f"csv:{tmp_path}/rows.csv"
    with caplog.at_level(logging.WARNING, "cma_tune"):
        record = run(tmp_path / "runs", dataset)
    assert caplog.messages == [
        f"1 of 2 classes of '{dataset}' have no test image (first: 'dog'); accuracies say nothing about them."
    ]
    assert record.per_class["test"]["dog"] is None and record.dataset["classes_without_test_image"] == 1


@pytest.mark.parametrize(
    "key", ["../../elsewhere.jpg", "/etc/elsewhere.jpg", r"C:\elsewhere.jpg", r"a\..\..\b.jpg"]
)
def test_a_split_that_leaves_the_image_folder_is_refused_and_found(key: str, tmp_path: Path) -> None:
    split = write_miniature("eurosat", tmp_path, (2, 1, 1)) / "split_zhou_EuroSAT.json"
    content = json.loads(split.read_text())
    content["test"][0][0] = key
    split.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"paths below the image folder in .*, got 1 that leave it \(first: "):
        load_dataset("eurosat", tmp_path)
    found = {one.what: one.found for one in check_dataset("eurosat", tmp_path) if one.state == "wrong"}
    assert found["paths that leave the image folder"] == f"1 (first: {key})"


def test_lists_of_images_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    folder = write_miniature("fgvc_aircraft", tmp_path, (1, 1, 1))
    lists = folder / "images_variant_test.txt"
    lists.write_text(f"../elsewhere {lists.read_text().split(maxsplit=1)[1]}")
    with pytest.raises(UserError, match=r"test\.txt, got 1 that leave it \(first: \.\./elsewhere\.jpg\)"):
        load_dataset("fgvc_aircraft", tmp_path)


def test_a_name_of_ones_own_that_is_taken_is_refused_by_the_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("dtd:\n  source: folder:photos\n")
    monkeypatch.setenv("CMA_TUNE_CATALOG", str(tmp_path / "own.yaml"))
    for action in ("list", "status"):
        with pytest.raises(SystemExit):
            main(["data", action, "--data-root", str(tmp_path)])
        assert "Expected new names for datasets of one's own, got 'dtd'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fetch", "eurosat"], ["miniature", "dtd"]])
def test_a_place_that_cant_be_written_is_one_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    place = str(tmp_path / "file")
    with pytest.raises(SystemExit) as ended:
        main(["data", *words, *([place] if words[0] == "miniature" else []), "--data-root", place])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("cma-tune: Expected") and place in said
