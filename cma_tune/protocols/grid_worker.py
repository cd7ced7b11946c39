"""One worker of a grid, as a process: ``python -m cma_tune.protocols.grid_worker CONFIG NUMBER``."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from cma_tune.messages import plain_messages
from cma_tune.protocols.grid import work
from cma_tune.protocols.grid_plan import Task, forget_failures, plan, read_config
from cma_tune.records import Record


def work_from(path: Path, number: int) -> None:
    """Do the runs of a grid that nobody else does.

    Args:
        path: the grid's config.
        number: of this worker, from 0.
    """
    config = read_config(path)
    tasks = plan(config)
    forget_failures(tasks, worker=number)  # a job that was moved may go on with the run it was taken from
    with plain_messages():
        work(config, in_turn(tasks, number, config.workers), _say, number)


def in_turn(tasks: Sequence[Task], number: int, count: int) -> list[Task]:
    """The tasks, begun at another dataset by every worker, so that each stays with its own while it can."""
    names = list(dict.fromkeys(task.dataset for task in tasks))
    first = number * len(names) // count
    order = {name: (place - first) % len(names) for place, name in enumerate(names)}
    return sorted(tasks, key=lambda task: order[task.dataset])


def _say(task: Task, outcome: Record | str) -> None:
    text = outcome.headline() if isinstance(outcome, Record) else f"failed: {outcome}"
    print(f"{task.run.folder()}: {text}", flush=True)


def end_with_parent(pipe: IO[bytes], end: Callable[[int], object] = os._exit) -> threading.Thread:
    """End this process when the one that started it has: the other end of `pipe` closes then."""

    def wait() -> None:
        pipe.read()
        end(1)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    end_with_parent(sys.stdin.buffer)
    work_from(Path(sys.argv[1]), int(sys.argv[2]))
