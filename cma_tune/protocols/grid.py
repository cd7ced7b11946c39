"""A grid: a protocol over datasets, shots, seeds and λ, in this process, in several, or on a cluster.

Every process, wherever it runs, does the same: it goes over all tasks and does those that have no record and
that no other process holds a lock on. So nothing is planned ahead, processes may come and go, and a grid that
was killed goes on by being started again. A process does run after run, dataset by dataset, because dataset,
backbone and image features are then loaded once for many runs; it takes single runs, not whole datasets, so
that a large dataset does not leave the others waiting.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from cma_tune.errors import UserError
from cma_tune.options import GridConfig
from cma_tune.protocols.grid_bench import Bench, only_one_at
from cma_tune.protocols.grid_data import check_finished, data_faults, target_faults
from cma_tune.protocols.grid_estimate import preview, time_needed
from cma_tune.protocols.grid_plan import (
    Task,
    failure,
    forget_failures,
    left_out,
    plan,
    write_failure,
)
from cma_tune.protocols.grid_progress import Progress
from cma_tune.protocols.grid_workers import Worker, start_workers
from cma_tune.protocols.transfers import TransferRun
from cma_tune.records import Record, finished_record

log = logging.getLogger(__name__)

HERE = -1
"""Number of the process that the command runs in; workers count from 0."""

POLL = 0.5
"""Seconds between two looks at what others do."""

DIED = "the process that ran it was killed or died, perhaps for want of memory"


def grid(config: GridConfig) -> None:
    """Run what has no record yet, say how it goes, and print a summary.

    Raises:
        UserError: see `plan`, `check_finished` and `start_workers`; the mistakes of single runs are in the
            summary instead.
        SystemExit: with 1, a run failed, a dataset was left out, or data are missing at --dry-run.
    """
    tasks, without = plan(config), _told(left_out(config))
    records = {task: record for task in tasks if (record := finished_record(task.run)) is not None}
    rest = [task for task in tasks if task not in records]
    check_finished(config, records)
    if len(rest) > 1 and config.cluster and not config.workers:
        print(f"one job does all {len(rest)} runs: without --workers N, --cluster submits a single one")
    if config.dry_run:
        _preview(config, tasks, records, without)
        return
    for name, reason in without.items():
        print(f"{name}, recipe left out: {reason}", flush=True)
    for name, fault in target_faults(config, rest).items():  # not to be found when all is learned
        raise UserError(f"{name}: {fault}")
    forget_failures(tasks)
    progress = Progress(tasks, records)
    if records:
        print(f"{len(records)} of {len(tasks)} runs finished before", flush=True)
    if rest:
        print(time_needed(config, tasks, rest), flush=True)
        print("loading data and weights, then training", flush=True)
    if rest and (config.workers or config.cluster):
        watch(start_workers(config, len(rest)), progress)
    elif rest:
        with progress.watched():
            work(config, rest, progress.settle)
    print(progress.summary())
    for name, reason in without.items():
        print(f"{name}, recipe left out: {reason}")
    if progress.failed:
        print("the same command tries the failed ones again")
    if progress.failed or without:
        raise SystemExit(1)


def _told(left: Mapping[tuple[str, int], str]) -> dict[str, str]:
    """Why λ are left out, by dataset; the reason names the first shots, and the others are added."""
    shots = {name: [number for other, number in left if other == name] for name, _ in left}
    return {
        name: left[name, several[0]]
        + f" So it is at {', '.join(map(str, several[1:]))}." * (len(several) > 1)
        for name, several in shots.items()
    }


def _preview(
    config: GridConfig, tasks: Sequence[Task], records: Mapping[Task, Record], without: Mapping[str, str]
) -> None:
    """Print what is to be done, how long it may take, and what is missing for it."""
    rest = [task for task in tasks if task not in records]
    stuck = data_faults(config, rest)
    targets = target_faults(config, rest)
    stuck |= {task: "" for task in rest if targets and isinstance(task.run, TransferRun)}
    print(preview(config, tasks, records, stuck))
    faults = {f"{name} with its recipe": reason for name, reason in without.items()} | targets
    for name, fault in faults.items():
        print(f"{name} can't run: {fault}")
    for (name, fault), count in Counter((t.dataset, fault) for t, fault in stuck.items() if fault).items():
        several = sum(task.dataset == name for task in rest)
        print(f"{name if count == several else f'{count} of {several} runs of {name}'} can't run: {fault}")
    if faults or stuck:
        raise SystemExit(1)


def watch(workers: Sequence[Worker], progress: Progress) -> None:
    """Say what the workers have done until all of them have ended."""
    try:
        while True:
            ended = all(worker.ended() for worker in workers)
            for task in progress.open:
                outcome = finished_record(task.run) or failure(task.run, final_only=not ended)
                if outcome is not None:
                    progress.settle(task, outcome)
            if ended:
                break
            progress.look()
            time.sleep(max(worker.poll for worker in workers))
    except BaseException:
        for worker in workers:
            worker.stop()
        raise
    reasons = [reason for worker in workers if (reason := worker.trouble())]
    for task in progress.open:
        progress.settle(task, reasons[0] if reasons else DIED)


def work(
    config: GridConfig,
    tasks: Sequence[Task],
    told: Callable[[Task, Record | str], None] = lambda task, outcome: None,
    number: int = HERE,
) -> None:
    """Do all tasks that have no record and that no other process is at.

    A worker leaves those that others are at to them; the process of the command waits for them, since it has
    to tell how they ended.

    Args:
        config: the grid's.
        tasks: in the order in which this process takes them.
        told: called with every task that ended, wherever.
        number: of the worker.
    """
    left, bench = list(tasks), Bench(config)
    while left:
        held = []
        for task in left:
            outcome = _attempt(config, task, bench, number)
            if outcome is None:
                held.append(task)
            else:
                told(task, outcome)
        if len(held) == len(left):
            if number != HERE:
                return
            time.sleep(POLL)
        left = held


def _attempt(config: GridConfig, task: Task, bench: Bench, number: int) -> Record | str | None:
    """The record of one task, or why there is none; None while others are at it."""
    with only_one_at(config, task.run.digest()) as alone:
        if not alone:
            return None
        run = task.run
        try:
            record = finished_record(run)
            if record is not None:
                return record
            why = failure(run)
            if why is not None:
                return _failed(task, why, number)  # nobody is at it, so that it is final
            for needed in task.needs:
                if finished_record(needed) is None:
                    why = failure(needed, final_only=True)
                    what = "what it tests" if isinstance(run, TransferRun) else "a λ to choose among"
                    return _failed(task, f"{what} failed ({why})", number) if why else None
            write_failure(run, DIED, number, final=False)  # for the others, should this process die
            record = bench.do(task)
        except Exception as error:
            if not isinstance(error, UserError):
                log.exception("The run in %s failed.", run.folder())
            return _failed(task, _reason(error), number)
        forget_failures([task])
        return record


def _failed(task: Task, reason: str, number: int) -> str:
    write_failure(task.run, reason, number, final=True)
    return reason


def _reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
