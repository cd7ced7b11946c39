"""A run killed with SIGKILL at any moment and started again ends as one that was never killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kill_runs import events, positions, results, run_all
from tiny_runs import tiny_clip

PROMPT = "prompt/prompt.safetensors"

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
    "live-killed": (LIVE, {"mode": "writes", "kills": 18}),
    "stored": (STORED, {"mode": "never"}),
    "stored-killed": (STORED, {"mode": "moments", "kills": 6}),
    "cocoop": (COCOOP, {"mode": "never"}),
    "cocoop-killed": (COCOOP, {"mode": "writes", "kills": 3}),
}


def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path) -> None:
    # One test, so that workers that share the tests out don't each run all of it.
    run_all(
        tmp_path,
        {
            name: {"arguments": arguments(tmp_path / name, *more), **how}
            for name, (more, how) in SPECS.items()
        },
    )
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
    assert results(folder / "live-killed", PROMPT) == results(folder / "live", PROMPT)


def check_killed_at_random_moments(folder: Path) -> None:
    found = events(folder, "stored-killed")
    assert sum("killed" in event for event in found) >= 4
    assert len({epoch for epoch, _ in positions(found)}) >= 4
    assert results(folder / "stored-killed", PROMPT) == results(folder / "stored", PROMPT)
    assert len(results(folder / "stored", PROMPT)) == 2


def check_killed_with_a_meta_net(folder: Path) -> None:
    found = events(folder, "cocoop-killed")
    assert sum("killed" in event for event in found) == 3 and max(positions(found)) > (1, 0)
    assert results(folder / "cocoop-killed", PROMPT) == results(folder / "cocoop", PROMPT)
