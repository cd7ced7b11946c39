"""Run commands again and again, killing them with SIGKILL, until they end by themselves.

``python kill_driver.py SPECS.json``: a spec holds ``arguments`` of the command line, ``mode`` ("never",
"moments" or "writes"), ``kills`` (how often at most), ``loop`` (the module whose training loop it is) and
``log`` (a file that gets one line an event). Every attempt is a process of its own, forked before torch has
computed anything, so that imports are paid for once.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ["ACCELERATE_USE_CPU"] = "true"

import jsonargparse  # noqa: F401
import open_clip  # noqa: F401
import torch

import cma_tune.checkpoint
from cma_tune.cli import main
from cma_tune.data.builtin import load_builtin

HALF, WRITTEN, REPLACED = "half written", "written, not in place", "in place"
WRITES_BEFORE = 3
"""Writes that an attempt is granted before it is killed inside one."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def log_positions(loop: Any, log: Path) -> None:
    """Note where every attempt goes on."""
    load = loop.load_checkpoint

    def logged(*arguments: Any) -> cma_tune.checkpoint.Position:
        position = load(*arguments)
        note(log, position=[position.epoch, position.step])
        return position

    loop.load_checkpoint = logged


def note(log: Path, **event: Any) -> None:
    with open(log, "a") as handle:
        handle.write(json.dumps(event) + "\n")


def kill_inside_a_write(where: str, log: Path) -> None:
    """Have this process die inside its write number `WRITES_BEFORE`, of whatever file."""
    count = itertools.count(1)
    fsync, replace = os.fsync, os.replace
    number = 0

    save_file = cma_tune.checkpoint.save_file

    def save_or_die(tensors: dict[str, torch.Tensor], path: str, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if number + 1 == WRITES_BEFORE and where == HALF:
            note(log, killed=where, file=Path(path).name)
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def fsync_or_die(descriptor: int) -> None:
        nonlocal number
        number = next(count)
        if number == WRITES_BEFORE and where == HALF:
            note(log, killed=where)
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        fsync(descriptor)

    def replace_or_die(source: Path, target: Path) -> None:
        if number == WRITES_BEFORE and where == WRITTEN:
            note(log, killed=where, file=target.name)
            die()
        replace(source, target)
        if number == WRITES_BEFORE and where == REPLACED:
            note(log, killed=where, file=target.name)
            die()

    cma_tune.checkpoint.save_file = save_or_die  # type: ignore[assignment]
    os.fsync, os.replace = fsync_or_die, replace_or_die  # type: ignore[assignment]


def tell_progress(loop: Any, pipe: int) -> None:
    """Send a byte whenever the loop asks for a learning rate: at the start of an epoch, or of a step."""
    learning_rate = loop.learning_rate

    def told(*arguments: Any) -> float:
        os.write(pipe, b"!")
        return learning_rate(*arguments)

    loop.learning_rate = told


def attempt(spec: dict[str, Any], where: str | None, moment: tuple[int, float] | None) -> bool:
    """One run in a process of its own; whether it ended by itself.

    `where` kills it inside a write, `moment` so many seconds after so many epochs or steps have begun.
    """
    log = Path(spec["log"])
    loop = importlib.import_module(spec.get("loop", "cma_tune.train"))
    told, told_by_child = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        log_positions(loop, log)
        if where is not None:
            kill_inside_a_write(where, log)
        tell_progress(loop, told_by_child)
        try:
            main(spec["arguments"])
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(told_by_child)
    if moment is not None and all(os.read(told, 1) for _ in range(moment[0])):  # no byte: it has ended
        time.sleep(moment[1])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(told)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        if moment is not None:
            note(log, killed=moment)
        return False
    if status != 0:
        raise SystemExit(f"an attempt failed with status {status}")
    return True


def run(spec: dict[str, Any]) -> None:
    log = Path(spec["log"])
    generator = random.Random(0)
    for number in itertools.count():
        where = moment = None
        if number < spec["kills"] and spec["mode"] == "writes":
            where = (HALF, WRITTEN, REPLACED)[number % 3]
        if number < spec["kills"] and spec["mode"] == "moments":
            moment = generator.randint(1, 12), generator.uniform(0, 0.03)
        if attempt(spec, where, moment):
            note(log, attempts=number + 1)
            return


if __name__ == "__main__":
    load_builtin("digits")  # imports scikit-learn, and reads the scans
    for each in json.loads(Path(sys.argv[1]).read_text()):
        run(each)
