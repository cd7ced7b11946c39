"""The companion's commands give with two processes what they give with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import run_commands
from safetensors.torch import load_file

from cma_tune.cli import main

COMMON = [
    *("--dataset=digits", "--image_size=8", "--labels=20", "--schedule.lr=0.01", "--schedule.steps=4"),
    *("--schedule.ema=0.5", "--eval_every=3", "--eval_batch_size=100"),
]
# Batches of 7 are shared 4 and 3; with batches of 1, one process has no labelled image. Large and many steps
# would blow up what is rounding, 1e-7 after the first.
COMMANDS = {
    "supervised": ["supervised", *COMMON, "--schedule.batch_size=7", "--max_mi=0.2", "--min_hd=0.3"],
    "one": ["supervised", *COMMON, "--schedule.batch_size=1", "--image_size=16", "--schedule.steps=2"],
    "wide": [
        *("supervised", *COMMON, "--schedule.batch_size=3", "--schedule.steps=2", "--network=wrn-28-2"),
        *("--channels_last=true", "--image_size=16", "--schedule.lr=0.003"),
    ],
    "freematch": [
        *("semi-supervised", *COMMON, "--schedule.batch_size=7", "--schedule.ratio=3", "--max_mi=0.2"),
        "--min_hd=0.3",
    ],
    "flexmatch": ["semi-supervised", *COMMON, "--schedule.batch_size=3", "--algorithm=flexmatch"],
    "softmatch": ["semi-supervised", *COMMON, "--schedule.batch_size=3", "--algorithm=softmatch"],
}


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    # One test, so that workers that share the tests out don't each launch all of it.
    folders = [tmp_path / "two", tmp_path / "one"]
    folders[0].mkdir()
    assert run_commands(folders[0], lines(folders[0])) == len(COMMANDS)
    for line in lines(folders[1]):
        main(line)
    for name in COMMANDS:
        two, one = (only_run(folder / name) for folder in folders)
        check_the_same(name, two, one)


def lines(folder: Path) -> list[list[str]]:
    return [[*line, f"--output={folder / name}"] for name, line in COMMANDS.items()]


def only_run(folder: Path) -> Path:
    (path,) = folder.rglob("record.json")
    return path.parent


def check_the_same(name: str, two: Path, one: Path) -> None:
    theirs, ours = (json.loads((run / "record.json").read_text()) for run in (two, one))
    assert theirs["run"] == ours["run"] and theirs["dataset"] == ours["dataset"]
    assert (theirs["training"]["processes"], ours["training"]["processes"]) == (2, 1)
    assert theirs["training"]["losses"] == pytest.approx(ours["training"]["losses"], abs=1e-5), name
    curves: list[list[dict[str, Any]]] = [json.loads((run / "curves.json").read_text()) for run in (two, one)]
    for theirs_at, ours_at in zip(*curves, strict=True):
        for entry, value in ours_at.items():
            # Networks that have hardly begun have ties among their logits: rounding may turn two images over.
            apart = 2 * 100 / 355 if "accuracy" in entry else 1e-3
            assert theirs_at[entry] == pytest.approx(value, rel=1e-3, abs=apart), (name, entry)
        assert theirs_at.keys() == ours_at.keys()
    weights = [load_file(run / "model.safetensors") for run in (two, one)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
