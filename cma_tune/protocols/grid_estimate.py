"""How much there is to do in a grid, and how long it may take."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cma_tune.config import FewShotConfig
from cma_tune.data.catalog import CATALOG
from cma_tune.errors import UserError
from cma_tune.options import GridConfig
from cma_tune.protocols.grid_plan import Task
from cma_tune.protocols.runs import WALL_SECONDS
from cma_tune.records import Record, find_records

TRAINING_SECONDS = "seconds_since_last_start"

NOT_COVERED = (
    "not in it: what each process does once, which is to start, to load weights and to encode test images"
)


class Work:
    """How much there is to do for a task, in images to train on: epochs × shots × classes, say.

    A run's training goes with its images, and the text side with the classes.
    """

    def __init__(self, tasks: Iterable[Task], records: Iterable[Record]) -> None:
        self._classes = {name: entry.classes for name, entry in CATALOG.items()}
        self._classes |= {str(r.config["dataset"]): int(r.dataset["classes"]) for r in records}
        known = [self._classes[t.dataset] for t in tasks if t.dataset in self._classes]
        self._usual = sum(known) / len(known) if known else 1.0

    def of(self, task: Task) -> float:
        """Amount of one task; choices, zero-shot runs and tests on targets are nothing beside training."""
        config = task.run.config
        if task.needs or not isinstance(config, FewShotConfig):
            return 0.0
        return self._amount(asdict(config.optim), config.shots[0], task.dataset)

    def of_record(self, record: Record) -> float:
        """Amount of a run that is done."""
        return self._amount(record.config.get("optim", {}), record.shots, str(record.config["dataset"]))

    def _amount(self, optim: Mapping[str, Any], shots: int, dataset: str) -> float:
        if steps := optim.get("steps_per_shot"):
            return float(steps * shots * optim["batch_size"])
        return float((optim.get("epochs") or 0) * shots) * self._classes.get(dataset, self._usual)


class Speed:
    """What the runs that are done tell of those that are not.

    Args:
        tasks: all of the grid.
        records: of runs that are done, whether they belong to the grid or not; those of other methods,
            backbones and kinds of training features are left out.
    """

    def __init__(self, tasks: Sequence[Task], records: Iterable[Record]) -> None:
        learned = next((c for task in tasks if isinstance(c := task.run.config, FewShotConfig)), None)
        kinds = {task.run.protocol for task in tasks}
        like = [r for r in records if r.protocol in kinds and (not learned or _alike(r, learned))]
        self._work = Work(tasks, like)
        # A choice is a copy of what it chose.
        self._trained = [r for r in like if r.training.get(TRAINING_SECONDS) and r.selection is None]
        self._others = [r for r in like if r.training.get(WALL_SECONDS) and r not in self._trained]
        self.runs = len(self._trained) + len(self._others)

    def seconds(self, tasks: Iterable[Task]) -> tuple[float, int] | None:
        """How long the tasks may take one after another, and how many of them nothing is known of.

        None if nothing is known of any that takes time.
        """
        total, known, unknown = 0.0, 0, 0
        for task in tasks:
            amount = self._work.of(task)
            if not amount and task.run.protocol in ("few-shot", "base-to-novel"):
                continue  # a choice
            seconds = self._rate() * amount if amount else self._mean(task.run.protocol)
            total, known, unknown = total + seconds, known + bool(seconds), unknown + (not seconds)
        return (total, unknown) if known else None

    def covers(self) -> str:
        """What the seconds are made of, in words."""
        whole = sum(WALL_SECONDS in r.training for r in self._trained)
        parts = "training, validation, evaluation and encoding of what the runs encoded themselves"
        if whole < len(self._trained):
            parts += f" (of {len(self._trained) - whole} older ones training alone)"
        return f"{parts}; {NOT_COVERED}"

    def _rate(self) -> float:
        """Seconds per unit of work, 0 if unknown."""
        amount = sum(map(self._work.of_record, self._trained))
        whole = [r.training.get(WALL_SECONDS) or r.training[TRAINING_SECONDS] for r in self._trained]
        return sum(map(float, whole)) / amount if amount else 0.0

    def _mean(self, protocol: str) -> float:
        """Seconds of a run that learns nothing, 0 if unknown."""
        found = [float(r.training[WALL_SECONDS]) for r in self._others if r.protocol == protocol]
        return sum(found) / len(found) if found else 0.0


def speed_so_far(config: GridConfig, tasks: Sequence[Task]) -> Speed:
    """From all records below the grid's output folder."""
    try:
        return Speed(tasks, list(find_records(Path(config.output), skip=lambda _: None)))
    except UserError:
        return Speed(tasks, ())  # there is none yet


def _alike(record: Record, config: FewShotConfig) -> bool:
    """Whether a run is like those of `config` in what its time goes with, beside its amount."""
    names = ["backbone", "pretrained", *(["learner", "train_features"] if record.shots else [])]
    return all(record.config.get(name) == getattr(config, name) for name in names)


def preview(
    config: GridConfig, tasks: Sequence[Task], done: Iterable[Task], stuck: Collection[Task] = ()
) -> str:
    """Every task, done, to do or without data to do it, and how long those to do may take."""
    finished = set(done)
    rest = [task for task in tasks if task not in finished and task not in stuck]
    states = dict.fromkeys(rest, "to do") | dict.fromkeys(stuck, "can't") | dict.fromkeys(finished, "done ")
    lines = [f"{states[task]}  {task.run.folder()}" for task in tasks]
    counts = f"{len(tasks)} runs: {len(finished)} done, {len(rest)} to do"
    lines.append(f"{counts}, {len(stuck)} that can't run" if stuck else counts)
    return "\n".join([*lines, *([time_needed(config, tasks, rest)] if rest else [])])


def time_needed(config: GridConfig, tasks: Sequence[Task], rest: Sequence[Task]) -> str:
    """A sentence on how long the rest of a grid may take, what this covers and what it comes from."""
    speed = speed_so_far(config, tasks)
    estimated = speed.seconds(rest)
    if estimated is None:
        return f"no run like these is finished below {config.output} that could tell how long they take"
    seconds, unknown = estimated
    several = min(max(config.workers, 1), len(rest))
    where = "jobs" if config.cluster else "processes"
    shared = f" shared by {several} {where}" if several > 1 else ""
    without = f", without {_runs(unknown)} of a kind that none is done of" if unknown else ""
    return (
        f"about {duration(seconds / several)}{shared}{without}, by the speed of {_runs(speed.runs)} below "
        f"{config.output}: {speed.covers()}"
    )


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """``"40 s"``, ``"12 min"``, ``"3 h 20 min"``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
