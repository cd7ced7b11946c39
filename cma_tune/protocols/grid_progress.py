"""How far a grid is, how long the rest takes, how it ended."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from cma_tune.checkpoint import read_position
from cma_tune.config import FewShotConfig
from cma_tune.protocols.grid_estimate import Work, duration
from cma_tune.protocols.grid_plan import Task
from cma_tune.protocols.runs import CHECKPOINT
from cma_tune.records import Record

LOOK, SAY = 5.0, 60.0
"""Seconds between two looks at the runs that go on, and between two lines about them."""


class Progress:
    """Says how far a grid is, and roughly how long the rest takes at the speed so far.

    Attributes:
        failed: why tasks have no record, so far.

    Args:
        tasks: all of the grid.
        records: of those that had one before.
    """

    def __init__(self, tasks: Sequence[Task], records: Mapping[Task, Record]) -> None:
        work = Work(tasks, records.values())
        self._tasks = tasks
        self._left = {task: work.of(task) for task in tasks if task not in records}
        # From the first sign of work: before it, processes start and libraries, dataset and weights load.
        self._first: tuple[float, float] | None = None
        self._done = 0.0
        # What a killed grid had trained of runs that it did not end took none of the time that is counted.
        self._before = {task: self._left[task] * share for task, share in self._trained().items()}
        self._looked = self._said = time.monotonic()
        self._lock = threading.RLock()
        self.failed: dict[Task, str] = {}

    @property
    def open(self) -> list[Task]:
        """Tasks that have not ended."""
        return list(self._left)

    def settle(self, task: Task, outcome: Record | str) -> None:
        """Say how one task ended: its record, or why there is none. Only the first time counts."""
        with self._lock:
            if task not in self._left:
                return
            amount = self._left.pop(task)
            left = ""
            before = self._before.pop(task, 0.0)
            if isinstance(outcome, Record):
                self._done += amount - before
                left = self._time_left(self._trained())
                text = outcome.headline()
            else:
                known = (task.dataset, outcome) in {(one.dataset, why) for one, why in self.failed.items()}
                self.failed[task] = outcome
                text = "failed for the same reason" if known else f"failed: {outcome}"
            settled, total = len(self._tasks) - len(self._left), len(self._tasks)
            self._say(f"[{settled}/{total}] {task.run.folder()}: {text}{left}")

    def look(self) -> None:
        """Say, once a minute, how far the runs that go on are, as their checkpoints tell."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked < LOOK:
                return
            self._looked = now
            trained = self._trained()
            left = self._time_left(trained)
            if trained and left and now - self._said >= SAY:
                shares = "; ".join(f"{t.run.folder()} {share:.0%}" for t, share in trained.items())
                settled = len(self._tasks) - len(self._left)
                self._say(f"[{settled}/{len(self._tasks)}] training: {shares}{left}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the runs from a thread of its own, while this one does them."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(LOOK):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        tqdm.write(text, file=sys.stdout)  # a bar of the run that goes on stays below
        sys.stdout.flush()

    def _trained(self) -> dict[Task, float]:
        """Share of the epochs that is done, of tasks that are under way."""
        shares = {}
        for task, amount in self._left.items():
            config = task.run.config
            if not amount or not isinstance(config, FewShotConfig):
                continue
            position, epochs = read_position(task.run.folder() / CHECKPOINT), config.optim.epochs
            if position is not None and epochs:  # of a number of steps the share is not known
                shares[task] = position.epoch / epochs
        return shares

    def _time_left(self, trained: Mapping[Task, float]) -> str:
        """From the work since the first sign of it; nothing without any."""
        running = sum(self._left[task] * share for task, share in trained.items())
        now, done = time.monotonic(), self._done + running - sum(self._before.values())
        rest = sum(self._left.values()) - running
        if self._first is None and done > 0:
            self._first = (now, done)
        if self._first is None or done <= self._first[1] or not rest:
            return ""
        seconds = (now - self._first[0]) * rest / (done - self._first[1])
        return f" (about {duration(seconds)} left)"

    def summary(self) -> str:
        """Runs by dataset, done and failed, with the reasons."""
        header = ["dataset", "runs", "done", "failed"]
        rows = []
        for name in dict.fromkeys(task.dataset for task in self._tasks):
            mine = [task for task in self._tasks if task.dataset == name]
            failed = sum(task in self.failed for task in mine)
            done = len(mine) - failed - sum(task in self._left for task in mine)
            rows.append([name, str(len(mine)), str(done), str(failed)])
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(4)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in [header, *rows]
        ]
        for (name, reason), count in Counter((t.dataset, why) for t, why in self.failed.items()).items():
            lines.append(f"{name}, {count} failed: {reason}")
        return "\n".join(lines)
