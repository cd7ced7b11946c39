"""Grids that are killed, and grids over several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grid_runs import grid_config, image_folder
from tiny_runs import tiny_clip

from cma_tune.errors import UserError
from cma_tune.protocols.grid import grid, watch
from cma_tune.protocols.grid_plan import FAILURE, failure, forget_failures, plan, write_failure
from cma_tune.protocols.grid_progress import Progress
from cma_tune.protocols.grid_worker import end_with_parent, in_turn
from cma_tune.protocols.grid_workers import CLUSTER_POLL, ClusterJob, worker_environment
from cma_tune.records import load_record

DRIVER = Path(__file__).with_name("kill_driver.py")


def figures(folder: Path) -> dict[str, Any]:
    return {str(p.parent.relative_to(folder)): load_record(p).figures for p in folder.rglob("record.json")}


def test_a_grid_that_is_killed_twice_ends_complete(tmp_path: Path) -> None:
    datasets = ["digits", image_folder(tmp_path / "colours")]
    specs = []
    for name, kills in (("killed", 2), ("whole", 0)):
        arguments = ["grid", "few-shot", f"--datasets={','.join(datasets)}", "--weights=0,0.3"]
        arguments += ["--shots=1,2"]
        arguments += [f"--backbone=local-dir:{tiny_clip()}", f"--output={tmp_path / name}"]
        arguments += [
            "--context.tokens=3",
            "--optim.epochs=3",
            "--optim.batch_size=7",
            "--train-features=stored",
        ]
        arguments += [f"--features-dir={tmp_path / 'features'}"]
        log = str(tmp_path / f"{name}.log")
        specs.append({"arguments": arguments, "mode": "moments", "kills": kills, "log": log})
    (tmp_path / "specs.json").write_text(json.dumps(specs))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path / "specs.json")],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in (tmp_path / "killed.log").read_text().splitlines()]
    assert sum("killed" in event for event in events) == 2 and events[-1]["attempts"] == 3
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert len(figures(tmp_path / "killed")) == 2 * 2 * 2 and not list(tmp_path.rglob(FAILURE))


def test_workers_share_the_runs_and_survive_a_failing_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    good, broken = image_folder(tmp_path / "colours"), image_folder(tmp_path / "broken")
    (tmp_path / "broken/test/red/1.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        grid(grid_config(tmp_path / "runs", [good, broken], workers=2))
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert f"{broken}, 4 failed: Expected an image at" in out and "[8/8]" in out
    grid(grid_config(tmp_path / "here", [good]))
    assert figures(tmp_path / "runs") == figures(tmp_path / "here") != {}
    assert len(list((tmp_path / "runs/grid").glob("*.worker*.log"))) == 2


def test_a_cluster_of_submitit_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, absent = image_folder(tmp_path / "colours"), f"folder:{tmp_path / 'absent'}"
    with pytest.raises(SystemExit) as ended:
        grid(grid_config(tmp_path / "runs", [good, absent], cluster="local", gpus=0, cpus=1))
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "submitted " in out and "[8/8]" in out and f"{absent}, 4 failed: Expected" in out
    grid(grid_config(tmp_path / "here", [good]))
    assert figures(tmp_path / "runs") == figures(tmp_path / "here") != {}


def test_slurm_is_asked_for_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A slurm that takes every job, and says of each that it failed.
    programs = {
        "srun": "",
        "sbatch": f'cat "$1" >> {tmp_path}/submitted; echo Submitted batch job 7',
        "sacct": "echo 'JobID|State|NodeList'; echo '7|FAILED|node1'",
        "scancel": "",
    }
    for name, text in programs.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(CLUSTER_POLL, "slurm", 0.1)
    asked = {"partition": "short", "time": 90, "gpus": 2, "cpus": 6, "workers": 2}
    with pytest.raises(SystemExit):
        grid(grid_config(tmp_path / "runs", ["digits"], cluster="slurm", **asked))
    submitted = (tmp_path / "submitted").read_text()
    for line in ("partition=short", "time=90", "gpus-per-node=2", "cpus-per-task=6", "ntasks-per-node=1"):
        assert submitted.count(f"#SBATCH --{line}\n") == 2, line
    out = capsys.readouterr().out
    assert "submitted 7, 7" in out and "digits, 4 failed: job 7 ended (FAILED, without a result)" in out


def test_a_job_that_is_out_of_time_goes_on_in_a_new_one() -> None:
    again = ClusterJob().checkpoint("grid.json", 3)  # what submitit asks for
    assert isinstance(again.function, ClusterJob) and again.args == ("grid.json", 3)


def test_a_job_goes_on_with_the_run_it_was_taken_from(tmp_path: Path) -> None:
    tasks = plan(grid_config(tmp_path, ["digits"]))
    for number, (final, worker) in enumerate([(False, 0), (True, 0), (False, 1)]):
        write_failure(tasks[number].run, f"failure {number}", worker, final)
    forget_failures(tasks, worker=0)
    assert [failure(task.run) for task in tasks] == [None, "failure 1", "failure 2", None]


def test_a_cluster_needs_submitit_and_a_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = grid_config(tmp_path, ["digits"], cluster="slurm")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="from which jobs can be submitted with --cluster slurm"):
            grid(config)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="Expected the package submitit for --cluster"):
        grid(config)


class Dying:
    """A worker that is killed in the middle of its first run."""

    poll = 0.01

    def __init__(self) -> None:
        self.looks = 0

    def ended(self) -> bool:
        self.looks += 1
        return self.looks > 2

    def trouble(self) -> str | None:
        return "worker 0 ended with signal SIGKILL"

    def stop(self) -> None:
        raise AssertionError("it was not asked to stop")


def test_what_a_dead_worker_left_has_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = grid_config(tmp_path, ["digits"])
    progress = Progress(plan(config), {})
    watch([Dying()], progress)
    assert set(progress.failed.values()) == {"worker 0 ended with signal SIGKILL"}
    assert "digits      4     0       4" in progress.summary()


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    mine, parents = os.pipe()
    codes: list[int] = []
    thread = end_with_parent(os.fdopen(mine, "rb"), codes.append)
    thread.join(0.05)
    assert codes == []
    os.close(parents)  # as the kernel closes it, however the parent ends
    thread.join(10)
    assert codes == [1]


def test_every_worker_has_a_device_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("cma_tune.protocols.grid_workers._cores", lambda: 9)
    several = [worker_environment(number, 4, gpus=3) for number in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in several] == ["0", "1", "2", "0"]
    assert {one["OMP_NUM_THREADS"] for one in several} == {"2"}
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 2, gpus=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    mine = worker_environment(1, 2, gpus=8)
    assert (mine["CUDA_VISIBLE_DEVICES"], mine["OMP_NUM_THREADS"]) == ("7", "3")


def test_workers_begin_at_different_datasets(tmp_path: Path) -> None:
    names = ["digits", "shapes", "dtd", "eurosat"]
    tasks = plan(grid_config(tmp_path, names))
    orders = [in_turn(tasks, number, 2) for number in range(2)]
    assert [list(dict.fromkeys(task.dataset for task in order)) for order in orders] == [
        names,
        [*names[2:], *names[:2]],
    ]
    assert all(set(order) == set(tasks) for order in orders)
    # With more workers than datasets, several begin at the same one.
    assert [in_turn(tasks, number, 8)[0].dataset for number in (0, 1, 7)] == ["digits", "digits", "eurosat"]
