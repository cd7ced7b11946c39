"""Dry runs, estimates of time, and how far a grid says it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from grid_runs import OPTIM, grid_config, image_folder
from tiny_runs import backbone, cpu

import cma_tune.protocols.grid
import cma_tune.protocols.grid_progress
import cma_tune.protocols.runs
from cma_tune.checkpoint import Position, read_position, save_checkpoint
from cma_tune.config import OptimConfig
from cma_tune.protocols.grid import grid
from cma_tune.protocols.grid_estimate import Speed, Work, duration
from cma_tune.protocols.grid_plan import plan
from cma_tune.protocols.grid_progress import LOOK, SAY, Progress
from cma_tune.protocols.runs import WALL_SECONDS as WALL
from cma_tune.records import find_records


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone, loaded once for all tests."""
    monkeypatch.setattr("cma_tune.build.load_backbone", lambda *_: backbone())


def test_dry_run_lists_the_runs_and_estimates_the_time(
    tmp_path: Path, fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = grid_config(tmp_path, ["digits"], dry_run=True)
    grid(config)
    out = capsys.readouterr().out
    assert out.count("to do  ") == 4 and "4 runs: 0 done, 4 to do" in out
    assert "no run like these is finished below" in out
    grid(replace(config, dry_run=False, seeds=[1], weights=[0.0]))
    fits.clear()
    capsys.readouterr()
    grid(replace(config, workers=2))
    out = capsys.readouterr().out
    assert fits == [] and out.count("done   ") == 1 and out.count("to do  ") == 3
    assert "shared by 2 processes, by the speed of 1 run below" in out
    assert "training, validation, evaluation and encoding of what the runs" in out and "not in it:" in out
    grid(replace(config, zero_shot=True, cluster="slurm"))
    out = capsys.readouterr().out
    assert "one job does all 4 runs: without --workers N, --cluster submits a single one" in out
    assert "without 1 run of a kind that none is done of" in out and "shared" not in out
    assert not list((tmp_path / "grid").glob("*.json"))


def test_a_dry_run_says_what_is_missing_by_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours, absent = image_folder(tmp_path / "colours"), f"folder:{tmp_path / 'absent'}"
    config = grid_config(tmp_path / "runs", ["digits", colours, absent], shots=[1, 4], dry_run=True)
    with pytest.raises(SystemExit, match="1"):
        grid(config)
    out = capsys.readouterr().out
    missing = [one for one in out.splitlines() if " can't run: " in one]
    assert len(missing) == 2
    few = "can't run: Expected at least 4 training images per class"
    assert missing[0].startswith(f"4 of 8 runs of {colours} {few}")
    assert missing[1].startswith(f"{absent} can't run: Expected")
    assert "24 runs: 0 done, 12 to do, 12 that can't run" in out
    assert (out.count("to do  "), out.count("can't  ")) == (12, 12)
    assert not (tmp_path / "runs").exists()
    grid(replace(config, datasets=["digits", colours], allow_fewer_shots=True))


def test_runs_that_go_on_tell_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = plan(grid_config(tmp_path, ["digits"], seeds=[1]))  # two runs of two epochs each
    now, epochs = [0.0], [0]
    monkeypatch.setattr(cma_tune.protocols.grid_progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        cma_tune.protocols.grid_progress,
        "read_position",
        lambda path: Position(epoch=epochs[0]) if path.parent == tasks[0].run.folder() else None,
    )
    progress = Progress(tasks, {})
    for seconds, epoch in ((LOOK, 0), (100.0, 1), (100.0 + SAY, 2), (101.0 + SAY, 2)):
        now[0], epochs[0] = seconds, epoch
        progress.look()
    # An epoch in the minute since the first sign; two of the other run are left.
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"[0/2] training: {tasks[0].run.folder()} 100% (about {duration(2 * SAY)} left)"


def test_a_checkpoint_tells_where_its_run_stands(tmp_path: Path) -> None:
    assert read_position(tmp_path / "none") is None
    (tmp_path / "torn").write_bytes(b"torn")
    assert read_position(tmp_path / "torn") is None
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    save_checkpoint(tmp_path / "whole", "run", layer, optimizer, Position(3, 1), cpu())
    assert read_position(tmp_path / "whole") == Position(3, 1)


def test_the_estimate_goes_with_epochs_shots_and_classes(tmp_path: Path) -> None:
    grid(grid_config(tmp_path, ["digits"], seeds=[1], weights=[0.0], zero_shot=True))
    plain, record = sorted(find_records(tmp_path), key=lambda r: r.shots)
    assert record.training[WALL] >= record.training["seconds_since_last_start"] and plain.training[WALL] > 0
    record.training[WALL], plain.training[WALL] = 6.0, 2.0
    config = grid_config(tmp_path, ["digits", "dtd"], shots=[1, 4], seeds=[1], weights=[0.0])
    tasks = plan(config)
    # In units of the run that is done: digits at 4 shots is 4; dtd has 47 classes for 10.
    expected = 6.0 * (4 + 4.7 + 4 * 4.7)
    assert Speed(tasks, [record]).seconds(tasks[1:]) == (pytest.approx(expected), 0)
    assert Speed(tasks, []).seconds(tasks) is None
    beside = plan(replace(config, zero_shot=True))
    assert Speed(beside, [record, plain]).seconds(beside) == (pytest.approx(6.0 + expected + 2 * 2.0), 0)
    assert Speed(beside, [record]).seconds(beside) == (pytest.approx(6.0 + expected), 2)
    # An older record carries its training alone, which is said; another method's says nothing.
    old = replace(record, training={"seconds_since_last_start": 6.0})
    assert Speed(tasks, [old]).seconds(tasks[:1]) == (pytest.approx(6.0), 0)
    assert "(of 1 older ones training alone)" in Speed(tasks, [old]).covers()
    other = replace(record, config={**record.config, "learner": "kgcoop"})
    assert Speed(tasks, [other]).seconds(tasks) is None
    assert Work(tasks, [record]).of(tasks[0]) == OPTIM.epochs * 1 * 10  # type: ignore[operator]
    (by_steps,) = plan(replace(config, datasets=["dtd"], shots=[4], optim=OptimConfig(steps_per_shot=500)))
    assert Work(tasks, [record]).of(by_steps) == 500 * 4 * 32
    assert (duration(40.2), duration(720), duration(12_000)) == ("40 s", "12 min", "3 h 20 min")


def test_time_left_is_counted_from_the_first_run_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = grid_config(tmp_path, ["digits"])
    grid(replace(config, seeds=[1], weights=[0.0]))
    (record,) = find_records(tmp_path)
    tasks = plan(config)
    now = [0.0]
    monkeypatch.setattr(cma_tune.protocols.grid_progress.time, "monotonic", lambda: now[0])
    progress = Progress(tasks, {})
    capsys.readouterr()
    for task, seconds in zip(tasks, (1000.0, 10.0, 30.0, 5.0), strict=True):  # the first starts everything
        now[0] += seconds
        progress.settle(task, record)
    left = [line.partition(" (about ")[2] for line in capsys.readouterr().out.splitlines()]
    assert left == ["", "20 s left)", "20 s left)", ""]  # (10 + 30) / 2 for the last one


def test_what_was_trained_before_a_restart_does_not_count_as_done_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = replace(OPTIM, epochs=100)
    tasks = plan(grid_config(tmp_path, ["digits"], seeds=[1], weights=[0.0], optim=optim))
    now, epoch = [0.0], [60]  # of 100, when the grid starts again
    monkeypatch.setattr(cma_tune.protocols.grid_progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        cma_tune.protocols.grid_progress, "read_position", lambda path: Position(epoch=epoch[0])
    )
    progress = Progress(tasks, {})
    for seconds, trained in ((200.0, 60), (300.0, 61), (310.0 + SAY, 68)):
        now[0], epoch[0] = seconds, trained
        progress.look()
    # Seven epochs in 70 seconds since the first new one; 32 are left. Loading took 300 seconds before it.
    assert f"(about {duration(320)} left)" in capsys.readouterr().out
