"""Experiments in two processes end as in one."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_runs import curves_of
from launching import run_commands

from cma_tune.cli import main

IMAGES = [
    *("--image_size=8", "--labels=40", "--schedule.steps=4", "--schedule.batch_size=21", "--eval_every=2"),
    *("--network=small-cnn", "--flip=0"),
]
SUMS = [
    *("--grokking.modulus=7", "--grokking.epochs=12", "--grokking.width=8", "--grokking.heads=2"),
    *("--grokking.hidden=16", "--grokking.eval_every=4"),
]


def test_two_processes_leave_what_one_does(tmp_path: Path) -> None:
    commands = [
        ["lab", "connectivity", *IMAGES, "--rates=0.03", "--points=3"],
        ["lab", "grokking", *SUMS],
    ]
    two = [[*command, f"--output={tmp_path / 'two'}"] for command in commands]
    (tmp_path / "two").mkdir()
    assert run_commands(tmp_path / "two", two) == 2
    for command in commands:
        main([*command, f"--output={tmp_path / 'one'}"])
    folders = sorted(path.parent for path in (tmp_path / "one").rglob("record.json"))
    assert len(folders) == 2
    for folder in folders:
        there = tmp_path / "two" / folder.relative_to(tmp_path / "one")
        assert (there / "figure.png").is_file()
        for mine, theirs in zip(curves_of(folder), curves_of(there), strict=True):
            assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-5)
