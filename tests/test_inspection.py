"""``cma-tune inspect`` against the records, the stored predictions and plain loops."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from tiny_runs import backbone, base_to_novel_config, cpu, few_shot_config, random_features

import cma_tune.build
from cma_tune.build import Setup
from cma_tune.cli import main
from cma_tune.config import OptimConfig, ZeroShotConfig
from cma_tune.data.splits import Item
from cma_tune.errors import UserError
from cma_tune.inspection.command import inspect
from cma_tune.inspection.figures import class_changes, examples, most_changed, most_confused, most_similar
from cma_tune.inspection.image_grid import changes_picture
from cma_tune.inspection.outputs import Outputs, Part, load_parts, load_run, outputs
from cma_tune.inspection.pictures import similarity_picture
from cma_tune.learners import CoCoOp
from cma_tune.learners.coop import ContextOptions
from cma_tune.options import InspectConfig
from cma_tune.predictions import load_predictions
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import Record

PICTURES = ("similarity", "changes", "confusion", "reliability")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record, Record]:
    """Folder of a few-shot run, its record and zero-shot's; moved after they were made."""
    made = tmp_path_factory.mktemp("made") / "runs"
    config = few_shot_config(made, features_dir=None, optim=OptimConfig(epochs=4, batch_size=7, lr=0.3))
    setup = Setup(config, backbone=backbone())
    (record,) = few_shot(config, setup)
    shared = {name: getattr(config, name) for name in ("dataset", "backbone", "output")}
    beside = zero_shot(ZeroShotConfig(**shared), setup)
    moved = shutil.move(made, tmp_path_factory.mktemp("moved"))
    return next(Path(moved).rglob("seed1")), record, beside


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Record, Record]) -> Path:
    """The folder that the command leaves, without encoding an image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cma_tune.build, "encode_items", _fail)
        main(["inspect", str(runs[0]), "--images", "3", "--rows", "4"])
    return runs[0] / "inspect"


def _fail(*_: object) -> None:
    raise AssertionError("an image was encoded")


def predictions(folder: Path) -> list[list[int]]:
    """Predicted and true class of every test image."""
    stored = load_predictions(folder)
    assert stored is not None
    return stored["test"].tolist()


def test_the_figures_are_those_of_the_two_records(runs: tuple[Path, Record, Record], page: Path) -> None:
    _, after, before = runs
    content = json.loads((page / "inspect.json").read_text())
    figures = content["parts"]["test"]
    assert content["run"] == after.run
    for side, record in (("before", before), ("after", after)):
        assert figures[side]["accuracy"] == pytest.approx(record.figures["accuracy"], abs=1e-9)
        assert figures[side]["ece"] == pytest.approx(record.figures["ece"], abs=1e-3)
        bins = figures["reliability"][side]
        filled = [m for m, count in enumerate(bins["counts"]) if count]
        gaps = [bins["counts"][m] * abs(bins["accuracy"][m] - bins["confidence"][m]) for m in filled]
        assert 100 * sum(gaps) / figures["images"] == pytest.approx(figures[side]["ece"])
    assert figures["before"] != figures["after"]


def test_changes_and_confusion_are_those_of_the_stored_predictions(
    runs: tuple[Path, Record, Record], page: Path
) -> None:
    folder = runs[0]
    after, before = predictions(folder), predictions(next(folder.parents[4].parent.rglob("zero_shot")))
    kinds = Counter((b == true, a == true) for (b, true), (a, _) in zip(before, after, strict=True))
    figures = json.loads((page / "inspect.json").read_text())["parts"]["test"]
    assert figures["changed"]["gained"] == kinds[False, True] > 0
    assert figures["changed"]["lost"] == kinds[True, False] > 0
    moved = [b != a and true not in (a, b) for (b, true), (a, _) in zip(before, after, strict=True)]
    assert figures["changed"]["still_wrong"] == sum(moved) > 0
    for when, pairs in (("before", before), ("after", after)):
        header, *lines = csv.reader((page / f"test_confusion_{when}.csv").open())
        predicted, true = zip(*pairs, strict=True)
        assert [[int(n) for n in line[1:]] for line in lines] == confusion_matrix(true, predicted).tolist()
        assert header[1:] == [line[0] for line in lines] == list(runs[1].per_class["test"])
    wrong = Counter((true, a) for a, true in after if a != true).most_common(4)
    assert [pair["images"] for pair in figures["confused"]] == [count for _, count in wrong]


def test_the_page_names_every_picture_and_each_shows_something(page: Path) -> None:
    text = (page / "inspect.md").read_text(encoding="utf-8")
    assert "| Zero-shot |" in text and "| CoOp |" in text and "## Test: 546 images of 10 classes" in text
    for kind in PICTURES:
        assert f"(test_{kind}.png)" in text
        with Image.open(page / f"test_{kind}.png") as picture:
            colors = picture.convert("L").histogram()
        assert sum(colors[:250]) > 0.02 * sum(colors)  # more than titles on a white sheet
    assert len(list(page.iterdir())) == len(PICTURES) + 4  # two CSV, the page, its figures


def test_as_many_images_are_drawn_as_were_asked_for(runs: tuple[Path, Record, Record]) -> None:
    record, setup = load_run(InspectConfig(str(runs[0])))
    (part,) = load_parts(runs[0], record, setup)
    figure = changes_picture(part, setup.dataset.images, 3)
    assert figure is not None
    drawn = [axes for axes in figure.axes if axes.images]
    captions = [[text.get_text() for text in axes.texts] for axes in drawn]
    assert len(drawn) == 6
    for index, axes, said in zip(chain(*examples(part, 3)), drawn, captions, strict=True):
        assert axes.get_title(loc="left") == f"true: {part.class_names[part.items[index].label]}"
        for when, side in (("before", part.before), ("after", part.after)):
            name = part.class_names[int(side.logits[index].argmax())]
            assert any(text.startswith(f"{when}: {name} ") for text in said)


def test_both_halves_of_base_to_novel_are_inspected_with_conditioned_text(tmp_path: Path) -> None:
    config = base_to_novel_config(tmp_path, dataset="digits", learner="cocoop")
    (record,) = base_to_novel(config, Setup(config, backbone=backbone()))
    folder = next(tmp_path.rglob("seed1"))
    inspect(InspectConfig(str(folder), output=str(tmp_path / "page"), rows=2))
    parts = json.loads((tmp_path / "page/inspect.json").read_text())["parts"]
    for name, prefix in (("base", ""), ("novel", "novel_")):
        assert parts[name]["after"]["accuracy"] == pytest.approx(record.figures[f"{name}_accuracy"])
        assert parts[name]["after"]["ece"] == pytest.approx(record.figures[f"{prefix}ece"], abs=1e-3)
        assert parts[name]["classes"] == 5


def test_cosines_of_conditioned_text_are_means_over_images() -> None:
    names = ("cat", "red dog", "ship")
    learner = CoCoOp(backbone(), names, ContextOptions(tokens=3), seed=1)
    features, labels = random_features(9, 2)  # the last class has no image
    items = [Item(str(i), label) for i, label in enumerate(labels.tolist())]
    found = outputs(learner, features[0], items, cpu(), batch_size=4)
    with torch.no_grad():
        text = [learner.text_features(image[None])[0] for image in features[0]]
    for row in range(3):
        mine = [i for i, label in enumerate(labels.tolist()) if label == row]
        for column in range(3):
            between = sum(float(t[row] @ t[column]) for t in text) / len(text)
            assert float(found.class_cosines[row, column]) == pytest.approx(between, abs=1e-6)
            own = [float(text[i][column] @ features[0][i]) for i in mine]
            expected = sum(own) / len(own) if own else float("nan")
            assert float(found.image_cosines[row, column]) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def _side(logits: list[list[float]], labels: list[int], cosines: list[list[float]]) -> Outputs:
    return Outputs(torch.tensor(logits), torch.tensor(labels), torch.tensor(cosines), torch.eye(3))


def test_lists_start_with_what_changed_most() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    sure, less = [3.0, 0.0, 0.0], [2.0, 0.0, 0.0]
    to_one, to_two = [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]
    before = _side([to_one, to_one, to_one, to_one, to_two, to_two], labels, [[1, 0.1, 0.2]] * 3)
    after = _side([less, sure, to_one, sure, to_one, to_one], labels, [[1, 0.3, 0.2], [0, 1, 0.9], [0, 0, 1]])
    items = tuple(Item(str(i), label) for i, label in enumerate(labels))
    part = Part("test", ("a", "b", "c"), items, before, after)
    assert [one.difference for one in class_changes(part)] == [2, -1, -2]
    won, lost = most_changed(part, 1)
    assert [one.name for one in won] == ["a"] and [one.name for one in lost] == ["c"]
    assert examples(part, 5) == ([1, 0], [4, 3, 5])  # the surest first, one of each class in turn
    assert [(one.true, one.predicted, one.images, one.of) for one in most_confused(part, 2)] == [
        ("c", "b", 2, 2),
        ("a", "b", 1, 3),
    ]
    assert [(one.first, one.second) for one in most_similar(part, 2)] == [("b", "c"), ("a", "b")]


def _changed(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy of the run whose record says something else."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / "record.json").read_text())
    for name, entries in changes.items():
        content[name] = {**content[name], **entries}
    (copy / "record.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"figures": {"accuracy": 99.0}}, r"Expected the test accuracy of the record in .* \(99.00 %\), got"),
        (
            {"dataset": {"split": "0" * 64}},
            r"Expected the split of digits .* \(000000000000\), got .*--data-root",
        ),
    ],
)
def test_a_run_that_is_no_longer_what_it_was_is_refused(
    changes: dict[str, Any], named: str, runs: tuple[Path, Record, Record], tmp_path: Path
) -> None:
    features = str(runs[0].parents[5] / "features")
    with pytest.raises(UserError, match=named):
        inspect(InspectConfig(str(_changed(runs[0], tmp_path / "copy", **changes)), features_dir=features))


def test_the_third_panel_of_similarity_is_after_less_before() -> None:
    labels = [0, 1, 2]
    logits = torch.eye(3).tolist()
    before = _side(logits, labels, [[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    after = _side(logits, labels, [[1, 0.4, 0.1], [0.4, 1, 0.3], [0.1, 0.3, 1]])
    part = Part("test", ("a", "b", "c"), tuple(Item(str(i), i) for i in labels), before, after)
    axes = [one for one in similarity_picture(part).axes if one.images]
    assert [one.get_title().rpartition(", ")[2] for one in axes[2::3]] == ["after less before"] * 2
    drawn = axes[2].images[0]
    expected = np.ma.array([[0, 0.3, -0.1], [0.3, 0, 0], [-0.1, 0, 0]], mask=np.eye(3, dtype=bool))
    array = drawn.get_array()
    assert isinstance(array, np.ma.MaskedArray)
    np.testing.assert_allclose(array.filled(9), expected.filled(9), atol=1e-6)
    assert drawn.get_clim() == pytest.approx((-0.3, 0.3))
    assert axes[5].images[0].get_clim() == (-1, 1)  # nothing has changed there


@pytest.mark.parametrize("below", ["prompt", "record.json"])
def test_what_is_in_a_run_names_the_run(below: str, runs: tuple[Path, Record, Record]) -> None:
    with pytest.raises(UserError, match=re.escape(f"got {runs[0] / below}; name {runs[0]}.")):
        inspect(InspectConfig(str(runs[0] / below), output=str(runs[0] / "inspect")))


def test_a_run_without_a_prompt_of_its_own_is_refused(runs: tuple[Path, Record, Record]) -> None:
    zero = next(runs[0].parents[4].parent.rglob("zero_shot"))
    with pytest.raises(
        UserError, match=r"Expected a run of few-shot or base-to-novel in .* got one of zero-shot"
    ):
        inspect(InspectConfig(str(zero)))
    with pytest.raises(UserError, match="Expected --rows of at least 1, got 0"):
        inspect(InspectConfig(str(runs[0]), rows=0))
    with pytest.raises(UserError, match="Expected a folder that can be written to for --output, got /proc"):
        inspect(InspectConfig(str(runs[0]), output="/proc/x"))
