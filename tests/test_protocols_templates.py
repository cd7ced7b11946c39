"""Templates that change in the YAML file of own datasets: what was measured with others stays theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from grid_runs import OPTIM, grid_config, image_folder
from tiny_runs import backbone, few_shot_config

from cma_tune.config import ZeroShotConfig, shared_entries
from cma_tune.data.own_catalog import VARIABLE
from cma_tune.data.sources import default_templates, load_dataset
from cma_tune.errors import UserError
from cma_tune.options import CrossDatasetConfig
from cma_tune.protocols.cross_dataset import cross_dataset
from cma_tune.protocols.grid import grid
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import Record, find_records, load_record, save_record
from cma_tune.run import Run

Say = Callable[..., None]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Writes the entry of the dataset `colours` with these templates."""
    monkeypatch.setattr("cma_tune.build.load_backbone", lambda *_: backbone())
    image_folder(tmp_path / "colours")
    path = tmp_path / "own.yaml"
    monkeypatch.setenv(VARIABLE, str(path))

    def write(*templates: str) -> None:
        path.write_text(f"colours: {{source: 'folder:colours', templates: {list(templates)}}}")
        written.append(0)
        os.utime(path, ns=(0, len(written)))

    written: list[int] = []
    return write


def config_for(output: Path) -> ZeroShotConfig:
    return ZeroShotConfig(**shared_entries(ZeroShotConfig, few_shot_config(output, dataset="colours")))


def test_a_finished_zero_shot_run_is_that_of_its_templates(tmp_path: Path, say: Say) -> None:
    config = config_for(tmp_path / "runs")
    say("a {} thing.")
    record = zero_shot(config)
    assert record.config["templates"] == ["a {} thing."] and zero_shot(config) == record
    say("a {} thing.", "the {} one.")
    with pytest.raises(UserError, match=r"one of another run \(it differs in templates\)"):
        zero_shot(config)
    other = zero_shot(replace(config, output=str(tmp_path / "other")))
    assert other.dataset["templates"] == ["a {} thing.", "the {} one."] and other.run != record.run
    # However the templates are given, it is the same run.
    assert zero_shot(replace(config, templates=["a {} thing."])) == record


def test_a_grid_sees_it_before_anything_runs(tmp_path: Path, say: Say, fits: list[str]) -> None:
    config = grid_config(tmp_path / "runs", ["colours"], zero_shot=True, seeds=[1], weights=[0.0])
    say("a {} thing.")
    grid(config)
    grid(config)  # done: planned runs are those that ran
    assert len(fits) == 1 and len(list(find_records(tmp_path / "runs"))) == 2
    say("the {} one.")
    with pytest.raises(UserError, match=r"it differs in templates"):
        grid(replace(config, seeds=[1, 2]))
    assert len(fits) == 1


def test_records_from_when_templates_were_no_part_of_a_run_are_found(tmp_path: Path, say: Say) -> None:
    config = replace(config_for(tmp_path / "runs"), mixed_precision="no")
    say("a {} thing.")
    record = zero_shot(config)
    (path,) = (tmp_path / "runs").rglob("record.json")
    before = Record(**{**asdict(record), "config": asdict(config), "run": Run("zero-shot", config).digest()})
    assert before.config["templates"] == [] and before.run != record.run
    save_record(path.parent, before)
    assert zero_shot(config) == before == load_record(path)
    say("the {} one.")
    with pytest.raises(UserError, match="it differs in templates"):
        zero_shot(config)


def test_zero_shot_beside_a_transfer_is_that_of_the_targets_templates(
    tmp_path: Path, say: Say, fits: list[str]
) -> None:
    one = few_shot_config(tmp_path / "runs", shots=[1], optim=OPTIM)
    content = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    config = CrossDatasetConfig(**content, targets=["colours"])
    say("a {} thing.")
    records = cross_dataset(config)
    assert cross_dataset(config) == records
    say("the {} one.")
    with pytest.raises(
        UserError, match=r"templates of colours .*\(\['a {} thing.'\]\), got \['the {} one.'\]"
    ):
        cross_dataset(config)
    assert len(fits) == 1


def test_default_templates_are_those_that_a_dataset_is_loaded_with(tmp_path: Path, say: Say) -> None:
    say("a {} thing.", "the {} one.")
    for name in ("digits", "shapes", "colours", f"folder:{tmp_path}/colours"):
        assert load_dataset(name, tmp_path).templates == default_templates(name)
    assert default_templates("dtd") == ("{} texture.",)
    say("no place")
    with pytest.raises(UserError, match=r"got 'no place'"):
        default_templates("colours")
