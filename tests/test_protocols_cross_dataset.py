"""Cross-dataset and domain generalisation from end to end."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grid_runs import OPTIM, image_folder
from tiny_runs import backbone, few_shot_config

import cma_tune.protocols.cross_dataset
import cma_tune.protocols.runs
from cma_tune.cli import parse
from cma_tune.config import ContextConfig
from cma_tune.data.catalog import ENTRIES
from cma_tune.data.sources import load_dataset
from cma_tune.errors import UserError
from cma_tune.learners import from_pretrained
from cma_tune.method_options import TipConfig
from cma_tune.options import CrossDatasetConfig, DomainGeneralizationConfig
from cma_tune.protocols.cross_dataset import cross_dataset
from cma_tune.records import load_record
from cma_tune.report import build_tables


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backbones that were loaded; the tiny one is, once for all tests."""
    made: list[str] = []

    def load(name: str, *_: object) -> Any:
        made.append(name)
        return backbone()

    monkeypatch.setattr("cma_tune.build.load_backbone", load)
    return made


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    return image_folder(tmp_path_factory.mktemp("target") / "colours")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another target, with test images alone of some classes."""
    name = image_folder(tmp_path_factory.mktemp("target") / "few", per_class=2)
    shutil.rmtree(Path(name.partition(":")[2]) / "test/red")
    return name


def config_for(output: Path, targets: list[str], **changes: Any) -> CrossDatasetConfig:
    one = few_shot_config(output, shots=[1], optim=OPTIM)
    content = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    return CrossDatasetConfig(**{**content, "targets": targets, **changes})


def by_hand(prompt: Path | None, name: str) -> float:
    """Accuracy over a target's test images, one at a time, among its own names."""
    dataset = load_dataset(name, Path())
    names = dataset.split.class_names
    with torch.no_grad():
        if prompt is None:
            text = backbone().encode_texts([dataset.templates[0].replace("{}", each) for each in names])
        else:
            text = from_pretrained(prompt, backbone()).for_classes(names).text_features()
        right = [
            int(
                (
                    text @ backbone().encode_image(backbone().transform(dataset.images.load(i.key))[None])[0]
                ).argmax()
            )
            == i.label
            for i in dataset.split.test
        ]
    return 100 * sum(right) / len(right)


def test_the_figures_are_those_of_the_learned_prompt_on_every_target(
    tmp_path: Path,
    loads: list[str],
    fits: list[str],
    colours: str,
    few: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_for(tmp_path, [colours, few], weights=[0.3])
    (record,) = cross_dataset(config)
    (path,) = (tmp_path / "cross-dataset").rglob("record.json")
    assert load_record(path) == record and record.protocol == "cross-dataset"
    (source,) = (tmp_path / "few-shot").rglob("record.json")  # what was learned is a run of its own
    assert record.figures["source_accuracy"] == load_record(source).figures["accuracy"]
    accuracies = []
    for name in (colours, few):
        accuracies.append(by_hand(source.parent / "prompt", name))
        assert record.figures[f"accuracy: {name}"] == pytest.approx(accuracies[-1])
        assert record.figures[f"zero_shot_accuracy: {name}"] == pytest.approx(by_hand(None, name))
        # A target's own names, in its own order, whatever was learned on.
        assert list(record.per_class[name]) == list(load_dataset(name, Path()).split.class_names)
        assert record.dataset["targets"][name]["split"] == load_dataset(name, Path()).split.digest()
    assert record.figures["mean_accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert record.training["setting"] == "inductive"
    assert (record.shots, record.seed, record.weight) == (1, 1, 0.3) and record.dataset["name"] == "digits"
    assert f"{record.figures['mean_accuracy']:.2f}" in capsys.readouterr().out
    # Finished: nothing is loaded. Other targets: nothing is learned.
    loads.clear()
    assert cross_dataset(config) == [record] and loads == [] and len(fits) == 1
    (other,) = cross_dataset(replace(config, targets=[few]))
    assert len(fits) == 1 and len(loads) == 1
    assert other.figures[f"accuracy: {few}"] == record.figures[f"accuracy: {few}"]
    assert len(list((tmp_path / "cross-dataset").rglob("record.json"))) == 2


def test_the_source_may_stand_among_the_targets(
    tmp_path: Path, loads: list[str], few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = cross_dataset(config_for(tmp_path, ["digits", few]))
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert "digits (source)" in lines and "mean without the source" in lines
    figures = record.figures
    assert figures["accuracy: digits"] == figures["source_accuracy"]
    assert figures["zero_shot_accuracy: digits"] == pytest.approx(by_hand(None, "digits"))
    for kind in ("", "zero_shot_"):
        assert figures[f"{kind}mean_accuracy"] == figures[f"{kind}accuracy: {few}"]
    (table,) = [table for table in build_tables([record]) if table.protocol == "cross-dataset"]
    assert table.columns == ("digits (source)", few, "mean of targets")
    plain, learned = ([cell.mean for cell in row.cells if cell] for row in table.rows)
    assert learned[0] == figures["source_accuracy"] and plain[0] == figures["zero_shot_accuracy: digits"]


def test_a_saved_prompt_gives_the_same_without_its_dataset(
    tmp_path: Path, loads: list[str], fits: list[str], few: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(tmp_path / "learned", [few], seeds=[2])
    (record,) = cross_dataset(config)
    (prompt,) = (tmp_path / "learned").rglob("prompt")
    saved = CrossDatasetConfig(targets=[few], prompt=str(prompt), output=str(tmp_path / "saved"))
    (again,) = cross_dataset(saved)
    assert again.figures == record.figures and len(fits) == 1
    assert (again.seed, again.learner, again.dataset["name"]) == (2, "coop", "digits")
    # Moved away from its record it is the same prompt: the finished run is found.
    shutil.copytree(prompt, tmp_path / "moved")
    loads.clear()
    assert cross_dataset(replace(saved, prompt=str(tmp_path / "moved"))) == [again] and loads == []
    (alone,) = cross_dataset(replace(saved, prompt=str(tmp_path / "moved"), output=str(tmp_path / "alone")))
    assert alone.figures == record.figures and alone.shots == 0  # unknown
    assert load_record(next((tmp_path / "alone").rglob("record.json"))) == alone
    with pytest.raises(
        UserError, match=r"no --dataset beside --prompt, which has its own \(digits\), got dtd"
    ):
        cross_dataset(replace(saved, dataset="dtd"))
    with pytest.raises(
        UserError, match=r"no --backbone beside --prompt, which has its own \(local-dir:.*\), got RN50"
    ):
        cross_dataset(replace(saved, backbone="RN50", pretrained="openai"))
    cross_dataset(replace(saved, shots=[1, 4], tip=TipConfig(alpha=2.0)))
    assert "nothing of it is changed by --tip, --shots" in caplog.text


def test_a_run_that_is_stopped_on_a_target_goes_on_without_learning_again(
    tmp_path: Path, loads: list[str], fits: list[str], few: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, [few], weights=[0.0, 0.3], select_weight=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cma_tune.protocols.cross_dataset, "leave", _interrupt)
        cross_dataset(config)
    assert not list((tmp_path / "cross-dataset").rglob("record.json"))
    plain, penalised, chosen = cross_dataset(config)
    assert (
        len(fits) == 2
        and chosen.selection is not None
        and chosen.figures
        in (
            plain.figures,
            penalised.figures,
        )
    )
    assert len(list((tmp_path / "cross-dataset").rglob("record.json"))) == 3


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_changed_target_under_a_finished_record_is_refused(tmp_path: Path, loads: list[str]) -> None:
    name = image_folder(tmp_path / "target", per_class=2)
    config = config_for(tmp_path / "runs", [name])
    cross_dataset(config)
    (tmp_path / "target/test/red/1.png").unlink()
    with pytest.raises(UserError, match=r"Expected the split of folder:.*choose another --output"):
        cross_dataset(config)


def test_domain_generalization_is_the_same_under_its_own_name(
    tmp_path: Path, loads: list[str], few: str, caplog: pytest.LogCaptureFixture
) -> None:
    default = DomainGeneralizationConfig()
    assert default.dataset == "imagenet" and len(default.targets) == 4
    assert set(default.targets) < set(ENTRIES) and "imagenetv2" in default.targets
    parsed = parse("domain-generalization", ["--shots=16", "--targets=imagenet_a"])
    assert (parsed.dataset, parsed.targets) == ("imagenet", ["imagenet_a"])
    config = config_for(tmp_path, [few])
    content = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    (record,) = cross_dataset(DomainGeneralizationConfig(**content))
    assert "domain generalisation goes from ImageNet to its variants; this goes from 'digits'" in caplog.text
    assert record.protocol == "domain-generalization"
    assert len(list((tmp_path / "domain-generalization").rglob("record.json"))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": []}, "at least one dataset in --targets, got none"),
        ({"targets": ["shapes", "shapes"]}, "every dataset of --targets once"),
        ({"targets": ["digits"]}, "another dataset in --targets than the source, got 'digits' alone"),
        ({"targets": ["shapez"]}, "did you mean 'shapes'"),
        ({"targets": ["folder:/no/such"]}, "/no/such"),
        ({"context": ContextConfig(per_class=True)}, "Expected a shared context"),
        ({"prompt": "/no/such"}, "card of a learned prompt"),
        ({"learner": "lp_plus_plus", "targets": ["digits"]}, "other datasets"),
    ],
)
def test_mistakes_are_found_before_anything_is_learned(
    tmp_path: Path, fits: list[str], loads: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cross_dataset(config_for(tmp_path, **{"targets": ["shapes"], **changes}))
    assert fits == loads == []
