"""Runs that are killed again and again, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("kill_driver.py")


def run_all(folder: Path, specs: dict[str, dict[str, Any]]) -> None:
    """Run every spec of `kill_driver`, and write down what happened in NAME.log."""
    listed = [{"kills": 0, "log": str(folder / f"{name}.log"), **spec} for name, spec in specs.items()]
    (folder / "specs.json").write_text(json.dumps(listed))
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


def results(output: Path, *files: str) -> dict[str, Any]:
    """Records without times and paths, and the bytes of further files, of all runs of a folder."""
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("record.json")):
        record = json.loads(path.read_text())
        del record["config"]["output"], record["training"]["seconds_since_last_start"]
        record["training"].pop("wall_seconds_since_last_start", None)  # the companion has none
        contents = [(path.parent / name).read_bytes() for name in files]
        found[str(path.parent.relative_to(output))] = (record, *contents)
    assert found and not list(output.rglob("checkpoint*.safetensors"))
    return found


def positions(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Epochs and steps where the attempts went on."""
    return [(event["position"][0], event["position"][1]) for event in found if "position" in event]
