"""A run killed with SIGKILL at any moment and started again ends as one that was never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiny_runs import tiny_clip

DRIVER = Path(__file__).with_name("kill_driver.py")

LIVE = ["--train_features=live", "--optim.epochs=4", "--checkpoint_every=1", "--weights=0.3"]
STORED = ["--train_features=stored", "--views=2", "--optim.epochs=40", "--weights=0,0.5"]
COCOOP = ["--train_features=stored", "--learner=cocoop", "--optim.epochs=5", "--checkpoint_every=2"]


def arguments(output: Path, *more: str) -> list[str]:
    return [
        "few-shot",
        "--dataset=digits",
        f"--backbone=local-dir:{tiny_clip()}",
        f"--output={output}",
        "--shots=3",
        "--context.tokens=3",
        "--optim.batch_size=7",
        "--optim.lr=0.05",
        "--loss.reduction=mean",
        "--loss.normalize=true",
        *more,
    ]


SPECS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "live": (LIVE, {"mode": "never"}),
    "live-killed": (LIVE, {"mode": "writes", "kills": 30}),
    "stored": (STORED, {"mode": "never"}),
    "stored-killed": (STORED, {"mode": "moments", "kills": 8}),
    "cocoop": (COCOOP, {"mode": "never"}),
    "cocoop-killed": (COCOOP, {"mode": "writes", "kills": 3}),
}


def run_all(folder: Path) -> None:
    """Make every spec's output, and write down what happened: NAME and NAME.log."""
    specs = [
        {"kills": 0, "arguments": arguments(folder / name, *more), "log": str(folder / f"{name}.log"), **spec}
        for name, (more, spec) in SPECS.items()
    ]
    (folder / "specs.json").write_text(json.dumps(specs))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder / "specs.json")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]


def results(output: Path) -> dict[str, Any]:
    """All that the runs of a folder left, without times and paths."""
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("record.json")):
        record = json.loads(path.read_text())
        del record["config"]["output"], record["training"]["seconds_since_last_start"]
        run = str(path.parent.relative_to(output))
        found[run] = (record, (path.parent / "prompt/prompt.safetensors").read_bytes())
    assert found and not list(output.rglob("checkpoint.safetensors"))
    return found


def positions(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Where the attempts went on."""
    return [(event["position"][0], event["position"][1]) for event in found if "position" in event]


def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path) -> None:
    # One test, so that workers that share the tests out don't each run all of it.
    run_all(tmp_path)
    check_killed_inside_its_writes(tmp_path)
    check_killed_at_random_moments(tmp_path)
    check_killed_with_a_meta_net(tmp_path)


def check_killed_inside_its_writes(folder: Path) -> None:
    # Of checkpoints within an epoch and between two, of stored features, of the prompt and of the record.
    assert events(folder, "live") == [{"position": [0, 0]}, {"attempts": 1}]
    found = events(folder, "live-killed")
    kinds = [event["killed"] for event in found if "killed" in event]
    assert {"half written", "written, not in place", "in place"} == set(kinds) and len(kinds) >= 6
    assert "checkpoint.safetensors" in {event.get("file") for event in found}
    went_on = positions(found)
    assert any(step > 0 for _, step in went_on) and went_on == sorted(went_on)
    assert results(folder / "live-killed") == results(folder / "live")


def check_killed_at_random_moments(folder: Path) -> None:
    found = events(folder, "stored-killed")
    assert sum("killed" in event for event in found) >= 4
    assert len({epoch for epoch, _ in positions(found)}) >= 4
    assert results(folder / "stored-killed") == results(folder / "stored")
    assert len(results(folder / "stored")) == 2


def check_killed_with_a_meta_net(folder: Path) -> None:
    found = events(folder, "cocoop-killed")
    assert sum("killed" in event for event in found) == 3 and max(positions(found)) > (1, 0)
    assert results(folder / "cocoop-killed") == results(folder / "cocoop")
