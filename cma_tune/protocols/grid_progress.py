"""How far a grid is, how long the rest takes, how it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cma_tune.config import FewShotConfig
from cma_tune.data.catalog import CATALOG
from cma_tune.protocols.grid_plan import Task
from cma_tune.records import Record


class Work:
    """How much there is to do for a task, in images that are trained on: epochs × shots × classes, say.

    A run's training goes with its images, and the text side with the classes.
    """

    def __init__(self, tasks: Iterable[Task], records: Iterable[Record]) -> None:
        self._classes = {name: entry.classes for name, entry in CATALOG.items()}
        self._classes |= {str(r.config["dataset"]): int(r.dataset["classes"]) for r in records}
        known = [self._classes[t.dataset] for t in tasks if t.dataset in self._classes]
        self._usual = sum(known) / len(known) if known else 1.0

    def of(self, task: Task) -> float:
        """Amount of one task; a choice and a zero-shot run are nothing beside training."""
        config = task.run.config
        if task.needs or not isinstance(config, FewShotConfig):
            return 0.0
        optim, shots = config.optim, config.shots[0]
        if optim.epochs is None:
            return float((optim.steps_per_shot or 0) * shots * (optim.batch_size or 0))
        return float(optim.epochs * shots) * self._classes.get(task.dataset, self._usual)


def estimate(tasks: Sequence[Task], records: Mapping[Task, Record]) -> float | None:
    """Seconds of training that the tasks without a record may take, one after another.

    From the training seconds of those that have one; None if there is none yet.
    """
    work = Work(tasks, records.values())
    measured = [
        (float(record.training["seconds_since_last_start"]), work.of(task))
        for task, record in records.items()
        if record.training.get("seconds_since_last_start") and not task.needs
    ]
    total = sum(amount for _, amount in measured)
    if not total:
        return None
    rate = sum(seconds for seconds, _ in measured) / total
    return rate * sum(work.of(task) for task in tasks if task not in records)


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
        # From the first run that ends: before it, processes start and libraries, dataset and weights load.
        self._started: float | None = None
        self._done = 0.0
        self.failed: dict[Task, str] = {}

    @property
    def open(self) -> list[Task]:
        """Tasks that have not ended."""
        return list(self._left)

    def settle(self, task: Task, outcome: Record | str) -> None:
        """Say how one task ended: its record, or why there is none. Only the first time counts."""
        if task not in self._left:
            return
        amount = self._left.pop(task)
        if isinstance(outcome, Record):
            if self._started is None:
                self._started = time.monotonic()
            else:
                self._done += amount
            text = outcome.headline()
        else:
            self.failed[task] = outcome
            text = f"failed: {outcome}"
        settled, total = len(self._tasks) - len(self._left), len(self._tasks)
        print(f"[{settled}/{total}] {task.run.folder()}: {text}{self._time_left()}", flush=True)

    def _time_left(self) -> str:
        rest = sum(self._left.values())
        if not rest or not self._done or self._started is None:
            return ""
        seconds = (time.monotonic() - self._started) * rest / self._done
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


def preview(tasks: Sequence[Task], records: Mapping[Task, Record], workers: int) -> str:
    """Every task, done or to do, and how long the rest may take."""
    lines = [f"{'done ' if task in records else 'to do'}  {task.run.folder()}" for task in tasks]
    missing = len(tasks) - len(records)
    lines.append(f"{len(tasks)} runs: {len(records)} done, {missing} to do")
    seconds = estimate(tasks, records)
    if not missing:
        return "\n".join(lines)
    if seconds is None:
        lines.append("no run is finished yet that could tell how long they take")
    else:
        several = min(max(workers, 1), missing)
        shared = f" shared by {several} processes" if several > 1 else ""
        lines.append(f"about {duration(seconds / several)} of training{shared}, by the speed of those done")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """``"40 s"``, ``"12 min"``, ``"3 h 20 min"``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
