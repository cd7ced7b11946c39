"""Commands in two processes under ``accelerate launch``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

DRIVER = Path(__file__).with_name("commands_driver.py")

LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"),
    *("--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
]
"""``--cpu`` would start one process whatever the number. Without a GPU these are two, with gloo."""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.accelerator.is_available():
        environment.pop("ACCELERATE_USE_CPU", None)  # they have to find each other without being told
    return subprocess.run([*LAUNCH, *arguments], capture_output=True, text=True, timeout=240, env=environment)


def run_commands(folder: Path, commands: list[list[str]]) -> int:
    """Run command lines one after another in the same two processes; how many runs there were."""
    (folder / "commands.json").write_text(json.dumps(commands))
    done = launch(str(DRIVER), str(folder / "commands.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    # Every run is reported once.
    runs = [line for line in done.stdout.splitlines() if "accuracy" in line]
    assert len(runs) == len(list(folder.rglob("record.json")))
    assert "Warning" not in done.stderr
    return len(runs)
