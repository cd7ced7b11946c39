"""Two processes under ``accelerate launch`` give what one gives, and say a mistake once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from launching import launch, run_commands
from safetensors.torch import load_file
from tiny_runs import tiny_clip

from cma_tune.cli import main

COMMON = ["--shots=3", "--context.tokens=3", "--optim.lr=0.05", "--optim.epochs=3"]
RELEASE = ["--loss.reduction=mean", "--loss.normalize=true"]
COMMANDS = {
    # Batches of 7 are shared 4 and 3; the last images of an epoch, less than a batch, are dropped.
    "live": ["few-shot", *COMMON, *RELEASE, "--weights=0,0.3", "--optim.batch_size=7"],
    "paper": ["few-shot", *COMMON, "--weights=0.5,1", "--optim.batch_size=7", "--train_features=stored"],
    # 15 base images in one incomplete batch of 32, shared 8 and 7.
    "halves": ["base-to-novel", *COMMON, *RELEASE, "--weights=0.3", "--train_features=stored", "--views=2"],
    # With batches of one image, one process has none.
    "cocoop": [
        *("few-shot", *COMMON, *RELEASE, "--learner=cocoop", "--optim.batch_size=1", "--weights=0,0.4"),
        "--train_features=stored",
    ],
    # Two gradients a step, one of them gathered by hand.
    "prograd": [
        *("few-shot", *COMMON, "--learner=prograd", "--optim.batch_size=7", "--weights=0.3"),
        "--train_features=stored",
    ],
    # Each process makes the tokens of its share of the classes.
    "tcp": [
        *("few-shot", *COMMON, "--learner=tcp", "--optim.batch_size=7", "--weights=0.3"),
        "--train_features=stored",
    ],
    "tip": [
        *("few-shot", *COMMON, "--learner=tip_adapter_f", "--optim.batch_size=7", "--weights=0.3"),
        *("--train_features=stored", "--tip.search"),
    ],
    # The image features, not the text's, bring the gradient of groups that span the processes; Adam.
    "adapter": [
        *("few-shot", *COMMON, *RELEASE, "--learner=clip_adapter", "--optim.batch_size=7", "--weights=0,0.4"),
        "--train_features=stored",
    ],
    # The image tower is part of the step.
    "vpt": ["few-shot", *COMMON, "--learner=vpt", "--optim.batch_size=7", "--weights=0.3"],
    "ivlp": ["few-shot", *COMMON, "--learner=ivlp", "--optim.batch_size=7", "--weights=0"],
    "maple": ["few-shot", *COMMON, *RELEASE, "--learner=maple", "--optim.batch_size=7", "--weights=0.4"],
    # One process has no image. Small steps: the kinks of absolute values make rounding grow with large ones.
    "promptsrc": [
        *("few-shot", *COMMON, *RELEASE, "--learner=promptsrc", "--shots=1", "--optim.batch_size=1"),
        *("--weights=0.4", "--optim.lr=0.002"),
    ],
    # Both towers are part of the step, dropout too; one process has an image less, and a class.
    "lora": [
        *("few-shot", *COMMON, "--learner=lora", "--optim.batch_size=7", "--weights=0.3"),
        "--optim.lr=0.002",
    ],
    # One process has no image.
    "lora-image": [
        *("few-shot", *COMMON, "--learner=lora", "--shots=1", "--optim.batch_size=1", "--lora.towers=image"),
        *("--optim.epochs=1", "--optim.lr=0.002", "--weights=0"),
    ],
    "zero": ["zero-shot"],
}
NEVER_THE_SAME = {"output", "features_dir", "workers"}


def command(name: str, folder: Path, workers: int) -> list[str]:
    protocol, *more = COMMANDS[name]
    common = ["--dataset=digits", f"--backbone=local-dir:{tiny_clip()}", f"--workers={workers}"]
    return [protocol, *common, f"--output={folder / name}", *more]


def run_with_two(folder: Path) -> None:
    """Run all commands, with two workers in each process where images are decoded in training."""
    folder.mkdir()
    commands = [command(name, folder, workers=2 if name == "live" else 0) for name in COMMANDS]
    assert run_commands(folder, commands) == 19


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    # One test, so that workers that share the tests out don't each launch all of it.
    run_with_two(tmp_path / "two")
    for name in COMMANDS:
        check_the_same(tmp_path / "two", tmp_path / "one", name)


def check_the_same(two: Path, one: Path, name: str) -> None:
    main(command(name, one, workers=0))
    paths = sorted((two / name).rglob("record.json"))
    assert paths and [path.relative_to(two) for path in paths] == [
        path.relative_to(one) for path in sorted((one / name).rglob("record.json"))
    ]
    for path in paths:
        own = one / path.relative_to(two)
        theirs, ours = (json.loads(each.read_text()) for each in (path, own))
        compare(theirs, ours)
        if name == "zero":
            continue
        assert (theirs["training"]["processes"], ours["training"]["processes"]) == (2, 1)
        prompts = [load_file(next(each.parent.glob("prompt/*.safetensors"))) for each in (path, own)]
        assert prompts[0].keys() == prompts[1].keys()
        for key, value in prompts[0].items():
            assert (value - prompts[1][key]).abs().max() < 1e-5, key


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Records agree in all but where and how they were computed."""
    assert theirs["run"] == ours["run"] and theirs["backbone"] == ours["backbone"]
    assert theirs["dataset"] == ours["dataset"] and theirs["per_class"] == ours["per_class"]
    # Figures in percent are a hundred times as large as what rounds.
    assert theirs["figures"] == pytest.approx(ours["figures"], rel=1e-5, abs=1e-5)
    for part in ("steps", "losses", "train_images"):
        assert theirs["training"].get(part) == pytest.approx(ours["training"].get(part), abs=1e-5), part
    for entry in theirs["config"].keys() - NEVER_THE_SAME:
        assert theirs["config"][entry] == ours["config"][entry], entry


def test_a_mistake_ends_every_process_with_code_2_and_is_said_once(tmp_path: Path) -> None:
    done = launch("-m", "cma_tune", *command("paper", tmp_path, 0), "--shots=500")
    assert done.returncode != 0
    sentences = [line for line in done.stderr.splitlines() if line.startswith("cma-tune: ")]
    assert len(sentences) == 1 and sentences[0].startswith(
        "cma-tune: Expected at least 500 training images per class, got fewer for zero (89), "
    )
    assert "Error: " not in done.stderr.split("ChildFailedError")[0]  # no traceback of ours
    codes = re.findall(r"exitcode\s*: (-?\d+)", done.stderr)
    # The launcher may have ended the second process (-15) before it got to end by itself.
    assert "2" in codes and set(codes) <= {"2", "-15"}
    assert not list(tmp_path.rglob("record.json"))
