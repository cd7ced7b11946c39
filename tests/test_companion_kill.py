"""Companion runs killed with SIGKILL and started again end as ones that were never killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kill_runs import events, positions, results, run_all

SMALL = [
    *("--dataset=digits", "--image_size=8", "--labels=20", "--schedule.batch_size=6", "--schedule.lr=0.05"),
    *("--schedule.ratio=2", "--schedule.steps=12", "--schedule.ema=0.9", "--eval_every=5"),
]
SUPERVISED = ["supervised", *SMALL, "--min_hd=0.1", "--checkpoint_every=1"]
# What the algorithms remember between steps is part of it. (FlexMatch's takes longer than these steps to show
# in a loss; that its state holds it is tested with the algorithms.)
FREEMATCH = [
    *("semi-supervised", *SMALL, "--algorithm=freematch", "--max_mi=0.1", "--checkpoint_every=2"),
    "--schedule.steps=28",
]
FLEXMATCH = ["semi-supervised", *SMALL, "--algorithm=flexmatch", "--checkpoint_every=1"]

SPECS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "supervised": (SUPERVISED, {"mode": "never"}),
    "supervised-killed": (SUPERVISED, {"mode": "writes", "kills": 6}),
    "freematch": (FREEMATCH, {"mode": "never"}),
    "freematch-killed": (FREEMATCH, {"mode": "moments", "kills": 4}),
    "flexmatch": (FLEXMATCH, {"mode": "never"}),
    "flexmatch-killed": (FLEXMATCH, {"mode": "writes", "kills": 3}),
}


def test_a_killed_companion_run_ends_as_one_that_was_never_killed(tmp_path: Path) -> None:
    # One test, so that workers that share the tests out don't each run all of it.
    specs = {
        name: {"arguments": [*line, f"--output={tmp_path / name}"], "loop": "cma_tune.companion.loop", **how}
        for name, (line, how) in SPECS.items()
    }
    run_all(tmp_path, specs)
    for name in ("supervised", "freematch", "flexmatch"):
        found = events(tmp_path, f"{name}-killed")
        assert sum("killed" in event for event in found) >= 3, name
        assert any(step > 0 for _, step in positions(found)), name
        files = ("model.safetensors", "predictions.safetensors", "curves.json")
        assert results(tmp_path / f"{name}-killed", *files) == results(tmp_path / name, *files), name
