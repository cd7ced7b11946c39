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

from cma_tune.data.catalog import CATALOG
from cma_tune.data.miniature import write_miniature
from cma_tune.methods import MAKERS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"
ABOUT = {"machine": {"device": "this"}, "revision": "abc"}
STEP = ("--model=tiny", "--classes=10")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a script in this process, as quickly as can be; what it printed, and the JSON it left."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setitem(MAKERS, "coop", MAKERS["coop"])  # one script puts another in its place
    threads = torch.get_num_threads()

    running: list[str] = []

    def once(name: str, *arguments: str) -> str:
        running.append(name)
        common = ["--threads=1"] if name == "few_shot_run" else ["--threads=1", "--repeats=1", "--least=0"]
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
        return json.loads(once(running[-1], *arguments).splitlines()[-1])

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
    ours = {"text_step": "packed GB", "cocoop_step": "packed GB", "training_step": "stored GB"}
    if name in ours:
        assert all(isinstance(left["rows"][0][side], float) for side in ("plain GB", ours[name]))
    assert left["date"] and left["repeats"] == 1


def test_a_whole_run(script: Any, tmp_path: Path) -> None:
    write_miniature("caltech101", tmp_path / "data", (1, 0, 1))
    sizes = ("--shots=1", "--epochs=1", f"--data-root={tmp_path / 'data'}")
    _, left = script("few_shot_run", *sizes, f"--backbone=local-dir:{tiny_clip()}")
    assert [row["run"] for row in left["rows"]] == ["plain", "live", "stored", "stored, again"]
    plain, live, *_ = left["rows"]
    assert plain["accuracy"] == live["accuracy"]  # the same protocol over the same crops
    assert plain["plain text steps"] > 0 == live["plain text steps"]
    assert all(row["peak GB"] > 0 and row["training s"] < row["whole run s"] for row in left["rows"])
    assert (plain["whole run, times faster"], left["repeats"]) == (1, 1)


def test_classes_split_over_processes(script: Any) -> None:
    _, left = script("processes", "--model=tiny", "--classes=10", "--repeats=1")
    (row,) = left["rows"]
    assert (row["processes"], left["machine"]["threads"]) == (2, 1)
    assert row["times faster"] == row["one process s"] / row["all processes s"]


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (["text_step", "--memory-of=foo"], "invalid choice: 'foo'"),
        (["text_step", "--classes=ten"], "expected whole numbers with commas between them, got ten"),
        (["text_step", "--model=nope"], "expected a model of open_clip for --model, got nope"),
        (["cma_loss", "--precision=bf16"], "unrecognized arguments: --precision=bf16"),
        (["processes", "--device=cuda"], "expected --device cpu"),
        (["few_shot_run", "--data-root=nowhere", "--backbone=embedded"], "nowhere"),
        (["few_shot_run", "--data-root=.", "--backbone=embedded", "--side=plain"], "expected --folder with"),
    ],
)
def test_mistakes(script: Any, typed: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script(*typed)
    assert part in f"{capsys.readouterr().err}{stop.value.code}"


def test_figures_of_another_precision_are_another_file(script: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"text_step\.json"):
        script("text_step", *STEP, "--tokens=4", "--precision=bf16")
    left = json.loads((tmp_path / "json/text_step_cpu_bf16.json").read_text())
    assert left["precision"] == "bf16"


def figures(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**ABOUT, "rows": rows}))


def test_the_hours_of_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A class takes 1 ms of a plain text step and 0.1 ms of a packed one, an image 10 ms of the image tower.
    text: list[dict[str, Any]] = [
        {"context tokens": 16, "classes": classes, "plain s": 1e-3 * classes, "packed s": 1e-4 * classes}
        for classes in (10, 400)
    ]
    step = {"backbone": "tower", "plain s": 0.1 + 0.32, "live s": 0.01 + 0.32, "stored s": 0.01}
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["table1_hours.py", str(tmp_path), f"--output={tmp_path / 'to'}"])
    with pytest.raises(SystemExit, match="got no such file; run it first"):
        runpy.run_path(str(FOLDER / "table1_hours.py"), run_name="__main__")
    figures(tmp_path, "text_step", text)
    figures(tmp_path, "training_step", [step])
    runpy.run_path(str(FOLDER / "table1_hours.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()[-3:]

    expected = dict.fromkeys(("plain", "live", "stored"), 0.0)
    for entry in CATALOG.values():
        for half, all_shots, runs in ((1, (1, 2, 4, 8, 16), 3 * 2), (2, (16,), 3 * 11)):
            classes = -(-entry.classes // half)
            for shots in all_shots:
                epochs = {1: 50, 2: 100, 4: 100}.get(shots, 200) if entry.name != "imagenet" else 50
                batches = epochs * -(-classes * shots // 32)
                expected["plain"] += runs * (batches * (1e-3 * classes + 0.32) + 0.01 * entry.sizes[2])
                expected["live"] += runs * (batches * (1e-4 * classes + 0.32) + 0.01 * entry.sizes[2])
                expected["stored"] += runs * batches * 1e-4 * classes
        expected["stored"] += 0.01 * (entry.sizes[2] + 3 * 10 * 31 * entry.classes)
    left = json.loads((tmp_path / "to/table1_hours.json").read_text())
    assert [row["side"] for row in left["rows"]] == list(expected) and left["measured"]["text_step"] == ABOUT
    found = {line.split(" | ")[1]: line.split(" | ")[-1].strip(" |") for line in printed}
    assert found == {side: f"{seconds / 3600:.3g}" for side, seconds in expected.items()}


def test_figures_go_to_a_folder_not_to_a_file(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "json").write_text("")
    with pytest.raises(SystemExit):
        script("cma_loss")
    assert f"expected a folder, got the file {tmp_path / 'json'}" in capsys.readouterr().err


def test_there_is_no_other_script() -> None:
    names = {"text_step", "cocoop_step", "training_step", "cma_loss", "few_shot_run", "speed_tools"}
    names |= {
        "speed_options",
        "processes",
        "interplay_losses",
        "freematch_step",
        "augmentation",
        "table1_hours",
    }
    assert {path.stem for path in FOLDER.glob("*.py")} == names
