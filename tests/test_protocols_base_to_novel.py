"""Base-to-novel from end to end on `shapes`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import backbone, base_to_novel_config
from torch import Tensor

import cma_tune.protocols.runs
from cma_tune.build import Setup
from cma_tune.config import BaseToNovelConfig, ContextConfig, OptimConfig
from cma_tune.data.few_shot import few_shot_split
from cma_tune.data.sources import Dataset, load_dataset
from cma_tune.data.splits import Item
from cma_tune.errors import UserError
from cma_tune.learners import from_pretrained
from cma_tune.metrics import class_similarity, modal_similarity
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.records import Record
from cma_tune.report import report

BASE, NOVEL = range(16), range(16, 32)


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_dataset("shapes", Path())


def run(config: BaseToNovelConfig) -> list[Record]:
    return base_to_novel(config, Setup(config, backbone=backbone()))


def half_by_hand(folder: Path, shapes: Dataset, labels: range) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[N, D]`` of a half's test images, text ``[C, D]`` of its names, labels from 0."""
    names = [shapes.split.class_names[label] for label in labels]
    items = [item for item in shapes.split.test if item.label in labels]
    learner = from_pretrained(folder / "prompt", backbone()).for_classes(names)
    with torch.no_grad():
        images = torch.stack([backbone().transform(shapes.images.load(item.key)) for item in items])
        features = backbone().encode_image(images)
        text = learner.text_features(features)
    return features, text, torch.tensor([item.label - labels[0] for item in items])


@pytest.mark.parametrize("learner", ["coop", "cocoop"])
def test_both_halves_among_their_own_names(tmp_path: Path, shapes: Dataset, learner: str) -> None:
    config = base_to_novel_config(
        tmp_path, learner=learner, weights=[0.3], optim=OptimConfig(epochs=3, batch_size=7, lr=0.3)
    )
    (record,) = run(config)
    folder = next(tmp_path.rglob("record.json")).parent
    figures = record.figures
    halves = [("base", BASE, ""), ("novel", NOVEL, "novel_")]
    for name, labels, prefix in halves:
        features, text, target = half_by_hand(folder, shapes, labels)
        cosines = torch.einsum(
            "nd,ncd->nc", features, text if text.dim() == 3 else text.expand(len(target), -1, -1)
        )
        expected = 100 * (cosines.argmax(dim=1) == target).double().mean()
        assert figures[f"{name}_accuracy"] == pytest.approx(float(expected), abs=1e-9)
        own = float(class_similarity(features, text, target))
        assert figures[f"{prefix}class_similarity"] == pytest.approx(own, abs=1e-6)
        assert figures[f"{prefix}modal_similarity"] == pytest.approx(
            float(modal_similarity(features, text)), abs=1e-6
        )
        assert list(record.per_class[name]) == [shapes.split.class_names[label] for label in labels]
    base, novel = figures["base_accuracy"], figures["novel_accuracy"]
    assert figures["harmonic_mean"] == pytest.approx(2 / (1 / base + 1 / novel))
    assert record.protocol == "base-to-novel" and 0 <= figures["validation_accuracy"] <= 100


@pytest.mark.parametrize("learner", ["coop", "cocoop"])
def test_the_generalised_figures_are_those_among_all_names(
    tmp_path: Path, shapes: Dataset, learner: str
) -> None:
    (record,) = run(base_to_novel_config(tmp_path, learner=learner, optim=OptimConfig(epochs=2, lr=0.3)))
    folder = next(tmp_path.rglob("record.json")).parent
    features, text, target = half_by_hand(folder, shapes, range(32))
    shares = []
    for name, half in (("base", BASE), ("novel", NOVEL)):
        right = [
            int((text if text.dim() == 2 else text[n]).mv(features[n]).argmax()) == label
            for n, label in enumerate(target.tolist())
            if label in half
        ]
        shares.append(100 * sum(right) / len(right))
        assert record.figures[f"{name}_accuracy_among_all"] == pytest.approx(shares[-1], abs=1e-9)
        # The other half's names can only mislead.
        assert shares[-1] <= record.figures[f"{name}_accuracy"]
    mean = 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0
    assert record.figures["harmonic_mean_among_all"] == pytest.approx(mean)


def test_a_record_without_the_generalised_figures_loads_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = run(base_to_novel_config(tmp_path, dataset="digits"))
    path = next(tmp_path.rglob("record.json"))
    content = json.loads(path.read_text())
    content["figures"] = {k: v for k, v in content["figures"].items() if not k.endswith("among_all")}
    path.write_text(json.dumps(content))
    assert len(content["figures"]) == len(record.figures) - 3
    (again,) = run(base_to_novel_config(tmp_path, dataset="digits"))  # finished: skipped as it is
    assert again.figures == content["figures"]
    report(str(tmp_path), "csv")
    assert f"{record.figures['harmonic_mean']:.2f}" in capsys.readouterr().out


def test_base_images_are_the_picks_over_all_classes(
    tmp_path: Path, shapes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[tuple[Item, ...]] = []
    train = Setup.train_batches

    def seen(self: Setup, items: Any, config: Any) -> Any:
        trained_on.append(tuple(items))
        return train(self, items, config)

    monkeypatch.setattr(Setup, "train_batches", seen)
    (record,) = run(base_to_novel_config(tmp_path, seeds=[2]))
    picked = few_shot_split(shapes.split, 2, 2)
    expected = [item for item in picked.train if item.label < 16]
    assert [(item.key, item.label) for item in trained_on[0]] == [(i.key, i.label) for i in expected]
    assert record.dataset["train_images"] == 32 and record.dataset["val_images"] == 32
    # Picks drawn within the base half alone would have been others.
    alone = few_shot_split(shapes.split.restricted_to(list(BASE)), 2, 2)
    assert {item.key for item in alone.val} != {item.key for item in picked.val if item.label < 16}
    assert record.dataset["picks"] == picked.restricted_to(list(BASE)).digest()
    card = json.loads(next(tmp_path.rglob("card.json")).read_text())
    assert tuple(card["class_names"]) == shapes.split.class_names[:16]


def test_relabelling_starts_every_half_at_zero(tmp_path: Path, shapes: Dataset) -> None:
    # An odd number of classes: base takes the middle one.
    config = base_to_novel_config(tmp_path)
    setup = Setup(config, backbone=backbone())
    setup.dataset = replace(shapes, split=shapes.split.restricted_to(list(range(5))))
    (record,) = base_to_novel(config, setup)
    names = shapes.split.class_names
    assert list(record.per_class["base"]) == list(names[:3])
    assert list(record.per_class["novel"]) == list(names[3:5])
    assert all(value is not None for part in record.per_class.values() for value in part.values())


def test_a_finished_run_is_skipped_and_one_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = base_to_novel_config(tmp_path, weights=[0.0, 0.3])
    starts = []
    fit = cma_tune.protocols.runs.fit

    def stopped(*arguments: Any) -> Any:
        report = fit(*arguments)
        starts.append(arguments[-1])
        if len(starts) == 2:
            raise KeyboardInterrupt
        return report

    monkeypatch.setattr(cma_tune.protocols.runs, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    records = run(config)
    assert len(records) == 2 and len(starts) == 3  # the first is skipped, the second taken up
    assert run(config) == records and len(starts) == 3


def test_class_specific_contexts_are_refused_before_anything_loads(tmp_path: Path) -> None:
    config = base_to_novel_config(tmp_path, dataset="no such", context=ContextConfig(per_class=True))
    with pytest.raises(
        UserError, match=r"Expected a shared context for base-to-novel, got class-specific ones"
    ):
        base_to_novel(config)


def test_a_half_without_test_images_is_refused(tmp_path: Path, shapes: Dataset) -> None:
    config = base_to_novel_config(tmp_path)
    setup = Setup(config, backbone=backbone())
    tested = tuple(item for item in shapes.split.test if item.label < 16)
    setup.dataset = replace(shapes, split=replace(shapes.split, test=tested))
    with pytest.raises(UserError, match="Expected test images of the 16 novel classes of 'shapes', got none"):
        base_to_novel(config, setup)


def test_a_half_without_training_images_is_refused(tmp_path: Path, shapes: Dataset) -> None:
    config = base_to_novel_config(tmp_path, allow_fewer_shots=True)
    setup = Setup(config, backbone=backbone())
    trained = tuple(item for item in shapes.split.train if item.label >= 16)
    setup.dataset = replace(shapes, split=replace(shapes.split, train=trained))
    with pytest.raises(UserError, match="Expected training images of the 16 classes to learn of 'shapes'"):
        base_to_novel(config, setup)
