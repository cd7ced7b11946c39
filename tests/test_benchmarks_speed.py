"""The scripts of benchmarks/speed run, at sizes that measure nothing."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_clip

from cma_tune.data.miniature import write_miniature
from cma_tune.learners import CoOp
from cma_tune.learners.saving import LEARNERS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"
STEP = ("--model=tiny", "--classes=10")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a script in this process, as quickly as can be; what it printed, and the JSON it left."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setitem(LEARNERS, "coop", CoOp)  # one script puts another in its place
    (tmp_path / "names").mkdir()
    (tmp_path / "names/ten.txt").write_text("\n".join(f"{letter} thing" for letter in "abcdefghij"))
    threads = torch.get_num_threads()
    common = ["--threads=1", "--repeats=1", "--least=0", f"--names={tmp_path / 'names'}"]

    def once(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *common, *arguments])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return printed.getvalue()

    def run(name: str, *arguments: str) -> tuple[str, Any]:
        printed = once(name, f"--output={tmp_path / 'json'}", *arguments)
        return printed, json.loads((tmp_path / "json" / f"{name}.json").read_text())

    import speed_tools

    def here(*arguments: str) -> Any:
        return json.loads(once("text_step", *arguments).splitlines()[-1])

    # Another process would start a minute's worth of libraries anew for every figure.
    monkeypatch.setattr(speed_tools, "in_a_process_of_its_own", here)
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "arguments", "rows", "ratio"),
    [
        ("text_step", (*STEP, "--tokens=4"), 1, "times faster"),
        ("cocoop_step", STEP, 2, "times faster"),
        ("training_step", STEP, 1, "stored, times faster"),
        ("cma_loss", (), 4, "times faster"),
        ("interplay_losses", ("--quick",), 2, "times faster"),
        ("augmentation", ("--quick",), 1, "times faster"),
        (
            "freematch_step",
            ("--network=small-cnn", "--batch=4", "--ratio=1", "--steps=1"),
            3,
            "steps a second",
        ),
    ],
)
def test_steps(script: Any, name: str, arguments: tuple[str, ...], rows: int, ratio: str) -> None:
    printed, left = script(name, *arguments)
    assert len(left["rows"]) == rows and all(row[ratio] > 0 for row in left["rows"])
    assert f"| {' | '.join(left['rows'][0])} |" in printed and left["machine"]["threads"] == 1
    if name == "text_step":
        assert all(isinstance(left["rows"][0][side], float) for side in ("plain GB", "packed GB"))


def test_a_whole_run(script: Any, tmp_path: Path) -> None:
    write_miniature("caltech101", tmp_path / "data", (1, 0, 1))
    sizes = ("--shots=1", "--epochs=1", f"--data-root={tmp_path / 'data'}")
    _, left = script("few_shot_run", *sizes, f"--backbone=local-dir:{tiny_clip()}")
    assert [row["run"] for row in left["rows"]] == ["plain", "live", "stored", "stored, again"]
    plain, live, *_ = left["rows"]
    assert plain["accuracy"] == live["accuracy"]  # the same protocol over the same crops


def test_there_is_no_other_script() -> None:
    names = {"text_step", "cocoop_step", "training_step", "cma_loss", "few_shot_run", "speed_tools"}
    names |= {"interplay_losses", "freematch_step", "augmentation"}
    assert {path.stem for path in FOLDER.glob("*.py")} == names
