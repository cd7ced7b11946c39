"""Experiments of the laboratory in a second: a few steps on `digits`, or addition modulo 7."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

# Compared to loops on the CPU, on machines with a GPU too.
os.environ["ACCELERATE_USE_CPU"] = "true"

from cma_tune.companion_options import GrokkingConfig, LabConfig, ScheduleConfig

GROKKING = GrokkingConfig(modulus=7, epochs=12, width=8, heads=2, hidden=16, eval_every=5)


def lab_config(experiment: Any, output: Path, **changes: Any) -> LabConfig:
    """6 steps on 40 images of `digits`, evaluated twice."""
    tiny = LabConfig(
        experiment=experiment,
        output=str(output),
        image_size=8,
        labels=[0 if experiment == "grokking" else 40],
        schedule=ScheduleConfig(steps=6, batch_size=20, ema=0.0),
        eval_every=3,
        temperatures=[1.0, 4.0],
        rates=[0.03],
        points=3,
        grokking=GROKKING,
    )
    return replace(tiny, **changes)


def curves_of(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / "curves.json").read_text())
    return found


def left_in(output: Path) -> dict[str, Any]:
    """Curves and records below a folder, without times and places; there is no checkpoint any more."""
    assert not list(output.rglob("checkpoint*"))
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("record.json")):
        record = json.loads(path.read_text())
        del record["training"]["seconds_since_last_start"], record["config"]["output"]
        found[str(path.parent.relative_to(output))] = (record, curves_of(path.parent))
    assert found
    return found
