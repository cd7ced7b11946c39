"""Grids of cross-dataset and domain generalisation: what is learned once and tested on many."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from grid_runs import OPTIM, grid_config, image_folder
from tiny_runs import backbone, few_shot_config

from cma_tune.build import Setup
from cma_tune.cli import parse
from cma_tune.errors import UserError
from cma_tune.options import CrossDatasetConfig
from cma_tune.protocols.cross_dataset import cross_dataset
from cma_tune.protocols.grid import grid
from cma_tune.protocols.grid_plan import dataset_names, plan
from cma_tune.protocols.transfers import TransferRun
from cma_tune.records import find_records
from cma_tune.report import build_tables


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone, loaded once for all tests."""
    monkeypatch.setattr("cma_tune.build.load_backbone", lambda *_: backbone())


def test_every_source_is_tested_on_all_targets_and_what_is_done_is_not_done_again(
    tmp_path: Path, fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    colours, more = image_folder(tmp_path / "colours"), image_folder(tmp_path / "more")
    config = grid_config(
        tmp_path / "runs",
        ["digits", colours],
        protocol="cross-dataset",
        targets=[colours, more],
        seeds=[1],
        select_weight=True,
    )
    grid(config)
    assert len(fits) == 2 * 2 and "[12/12]" in capsys.readouterr().out
    records = [r for r in find_records(tmp_path / "runs") if r.protocol == "cross-dataset"]
    assert len(records) == 2 * 3  # two λ and the choice
    # The same as the command alone.
    one = few_shot_config(
        tmp_path / "alone", shots=[1], weights=[0.0, 0.3], optim=OPTIM, select_weight=True, dataset="digits"
    )
    content = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    alone = cross_dataset(CrossDatasetConfig(**content, targets=[colours, more]), Setup(one))
    mine = {record.run: record.figures for record in records if record.config["dataset"] == "digits"}
    assert mine == {record.run: record.figures for record in alone}
    tables = [t for t in build_tables(records) if t.protocol == "cross-dataset"]
    assert [t.dataset for t in tables] == ["digits", colours]
    assert tables[1].columns == (f"{colours} (source)", more, "mean of targets")
    # Started again it does what is missing alone.
    fits.clear()
    next((tmp_path / "runs/cross-dataset").rglob("record.json")).unlink()
    grid(replace(config, dry_run=True))
    assert "12 runs: 11 done, 1 to do" in capsys.readouterr().out
    grid(config)
    assert fits == [] and len(list((tmp_path / "runs/cross-dataset").rglob("record.json"))) == 6


def test_domain_generalization_is_from_imagenet_to_its_variants_unless_told_otherwise(tmp_path: Path) -> None:
    config = parse("grid", ["domain-generalization", "--weights=0,recipe", f"--output={tmp_path}"])
    assert dataset_names(config) == ["imagenet"]
    learned, tested = plan(config)[:2], plan(config)[2:]
    assert [task.run.protocol for task in learned] == ["few-shot"] * 2 and len(tested) == 2
    for task in tested:
        assert isinstance(task.run, TransferRun) and task.run.protocol == "domain-generalization"
        assert task.run.options().targets == ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    everywhere = parse("grid", ["cross-dataset", "--datasets=all", "--targets=all", f"--output={tmp_path}"])
    assert len(plan(everywhere)) == 2 * 11


def test_mistakes_with_targets_are_found_before_anything_is_learned(tmp_path: Path, fits: list[str]) -> None:
    transfer = grid_config(tmp_path, ["digits"], protocol="cross-dataset")
    with pytest.raises(UserError, match="at least one dataset in --targets"):
        grid(transfer)
    with pytest.raises(UserError, match=r"absent \(target\): Expected"):
        grid(replace(transfer, targets=[f"folder:{tmp_path}/absent"]))
    with pytest.raises(UserError, match="got them with few-shot; take them out"):
        grid(grid_config(tmp_path, ["digits"], targets=["shapes"]))
    assert fits == []
