"""Whole runs on miniatures: few-shot and base-to-novel, from folders and from the Hub's form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from tiny_runs import backbone, base_to_novel_config, few_shot_config

from cma_tune.build import Setup
from cma_tune.config import OptimConfig
from cma_tune.data.catalog import CATALOG
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature
from cma_tune.errors import UserError
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot

ONCE = OptimConfig(epochs=1, batch_size=256, lr=0.05)


@pytest.mark.parametrize("form", ["folder", "hub"])
@pytest.mark.parametrize("name", list(CATALOG))
def test_few_shot_and_base_to_novel_run_on_a_miniature(name: str, form: str, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    write = write_hub_miniature if form == "hub" else write_miniature
    write(name, tmp_path / "data", (2, 1, 1))
    root = f"hub:{tmp_path}/data" if form == "hub" else f"{tmp_path}/data"
    config = few_shot_config(
        tmp_path / "runs",
        dataset=name,
        data_root=root,
        shots=[1],
        weights=[0.3],
        optim=ONCE,
        features_dir=str(tmp_path / "features"),
    )
    (record,) = few_shot(config, Setup(config, backbone=backbone()))
    classes = CATALOG[name].classes
    assert record.dataset["classes"] == record.dataset["test_images"] == classes
    assert record.dataset["train_images"] == classes
    assert record.dataset["origin"].startswith("miniature of drawn images")
    assert ("not the published split" in record.dataset["origin"]) == (form == "hub")
    assert 0 <= record.figures["accuracy"] <= 100
    halves = base_to_novel_config(
        tmp_path / "runs",
        dataset=name,
        data_root=root,
        shots=[1],
        optim=ONCE,
        features_dir=str(tmp_path / "features"),
    )
    (record,) = base_to_novel(halves, Setup(halves, backbone=backbone()))
    assert record.dataset["train_images"] == (classes + 1) // 2
    assert {"base_accuracy", "novel_accuracy"} <= set(record.figures)


def test_one_split_gives_one_result_from_folders_and_from_the_hubs_form(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    write_miniature("oxford_pets", tmp_path / "data", (2, 1, 2))
    write_hub_miniature("oxford_pets", tmp_path / "hub", (2, 1, 2))
    split_file = str(CATALOG["oxford_pets"].split_file)
    (tmp_path / "hub" / split_file).symlink_to(tmp_path / "data/oxford_pets" / split_file)
    config = few_shot_config(
        tmp_path / "a",
        dataset="oxford_pets",
        data_root=str(tmp_path / "data"),
        shots=[1],
        optim=ONCE,
        train_features="live",
        features_dir=str(tmp_path / "features"),
    )
    other = replace(config, data_root=f"hub:{tmp_path}/hub", output=str(tmp_path / "b"))
    (folders,), (hub,) = (few_shot(one, Setup(one, backbone=backbone())) for one in (config, other))
    assert "recovered by the file names" in hub.dataset["origin"]
    assert folders.run == hub.run and folders.figures == hub.figures
    assert folders.per_class == hub.per_class
    assert {k: v for k, v in folders.dataset.items() if k != "origin"} == {
        k: v for k, v in hub.dataset.items() if k != "origin"
    }
    # Another split under the same output is refused rather than taken for the same run.
    (tmp_path / "hub" / split_file).unlink()
    with pytest.raises(UserError, match="Expected the split of oxford_pets that the record"):
        few_shot(replace(other, output=config.output), Setup(other, backbone=backbone()))
