"""What a grid consists of: its tasks in order, and why some have no record."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast, get_type_hints

from cma_tune.checks import check, check_transfer
from cma_tune.config import (
    BaseToNovelConfig,
    FewShotConfig,
    Precision,
    Weight,
    ZeroShotConfig,
    shared_entries,
)
from cma_tune.data.catalog import check_dataset_name
from cma_tune.data.own_catalog import own_weights
from cma_tune.data.sources import default_templates
from cma_tune.errors import UserError
from cma_tune.files import read_json, write_json
from cma_tune.method_options import resolved_loss
from cma_tune.options import CrossDatasetConfig, DomainGeneralizationConfig, GridConfig
from cma_tune.protocols.cross_dataset import check_targets
from cma_tune.protocols.runs import runs_of
from cma_tune.protocols.selection import choices
from cma_tune.protocols.transfers import few_shot_config, transfer_run
from cma_tune.protocols.zero_shot import zero_shot_run
from cma_tune.recipes import RELEASE_WEIGHTS, recipe_weight
from cma_tune.records import finished_record
from cma_tune.run import Run
from cma_tune.value_checks import at_least

ELEVEN = tuple(RELEASE_WEIGHTS)
"""The literature's datasets."""

KINDS: dict[str, type[FewShotConfig]] = {
    "few-shot": FewShotConfig,
    "base-to-novel": BaseToNovelConfig,
    "cross-dataset": CrossDatasetConfig,
    "domain-generalization": DomainGeneralizationConfig,
}

FAILURE = "failure.json"
"""In the folder of a run: why it has no record."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is done at one go: one run, the choice among the λ of some, or the test of one on targets.

    Attributes:
        run: with one dataset, one number of shots and one seed.
        needs: the runs that must have ended before, for a choice and a test on targets.
    """

    run: Run
    needs: tuple[Run, ...] = ()

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.run.config.dataset


def plan(config: GridConfig) -> list[Task]:
    """All tasks of a grid, dataset by dataset; the runs of one follow each other, so that they share it.

    Raises:
        UserError: a value is out of its range, a dataset's name is unknown or given twice, "recipe" is no λ
            of any dataset, two runs would share a folder, or a folder holds another run's record.
    """
    _check(config)
    tasks: list[Task] = []
    without = left_out(config)
    for name in dataset_names(config):
        one = run_config(config, name)
        if config.zero_shot:
            beside = ZeroShotConfig(**shared_entries(ZeroShotConfig, one))
            tasks.append(Task(zero_shot_run(beside, beside.templates or default_templates(name))))
        having = [shots for shots in one.shots if (name, shots) not in without]
        lacking = [shots for shots in one.shots if (name, shots) in without]
        for part in (replace(one, shots=having), without_recipe(replace(one, shots=lacking))):
            if part.shots and part.weights:
                tasks += _tasks(config, part)
        if not one.shots:
            check(one)
    _check_folders(tasks)
    return tasks


def _tasks(config: GridConfig, one: FewShotConfig) -> list[Task]:
    """All of one dataset but zero-shot."""
    check(one)
    if config.protocol != "few-shot":
        check_transfer(one, config.protocol)
    if not isinstance(one, CrossDatasetConfig):
        return _learning_tasks(config.protocol, one)
    check_targets(one)
    learning = _learning_tasks("few-shot", few_shot_config(one))
    tests = [Task(transfer_run(config.protocol, one, task.run), (task.run,)) for task in learning]
    return [*learning, *tests]


def left_out(config: GridConfig) -> dict[tuple[str, int], str]:
    """Why there are no runs with the λ "recipe", by dataset and shots: it is none of theirs.

    Raises:
        UserError: it is none at all.
    """
    if "recipe" not in config.weights:
        return {}
    reasons: dict[tuple[str, int], str] = {}
    places, own = list(product(dataset_names(config), config.shots)), own_weights()
    for name, shots in places:
        try:
            recipe_weight(name, shots, own.get(name))
        except UserError as error:
            reasons[name, shots] = str(error)
    if places and len(reasons) == len(places):
        raise UserError(next(iter(reasons.values())))
    return reasons


def without_recipe(config: FewShotConfig) -> FewShotConfig:
    """The same with the other λ alone, in the form of the loss that all runs of the command have."""
    weights: list[Weight] = [weight for weight in config.weights if weight != "recipe"]
    loss = resolved_loss(config.loss, of_release=True)
    return replace(
        config, weights=weights, loss=loss, select_weight=config.select_weight and len(weights) > 1
    )


def _learning_tasks(protocol: str, config: FewShotConfig) -> list[Task]:
    """The runs of one dataset, then the choices among them."""
    runs = runs_of(protocol, config)
    tasks = [Task(run) for run in runs]
    for choice in choices(runs) if config.select_weight else []:
        needs = [run for run in runs if _place(run) == _place(choice)]
        tasks.append(Task(choice, tuple(needs)))
    return tasks


def _check(config: GridConfig) -> None:
    names = dataset_names(config)
    for name in names:
        check_dataset_name(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"Expected every dataset of --datasets once, got '{twice[0]}' more than once.")
    if not config.resume:
        raise UserError(
            "Expected a grid that goes on where it was stopped, got --resume false; "
            "choose another --output to run it anew."
        )
    for flag, least in (("workers", 0), ("decode_workers", 0), ("gpus", 0), ("cpus", 1), ("time", 1)):
        at_least(flag, getattr(config, flag), least)
    if config.targets and not issubclass(KINDS[config.protocol], CrossDatasetConfig):
        raise UserError(
            "Expected --targets with cross-dataset or domain-generalization, got them with "
            f"{config.protocol}; take them out."
        )
    if config.partition is not None and config.cluster != "slurm":
        raise UserError("Expected --cluster slurm with --partition, got none or another.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "Expected one process for a grid, got several of accelerate launch; "
            "use --workers N, which gives every run a device of its own."
        )


def _check_folders(tasks: Iterable[Task]) -> None:
    seen: dict[Path, Task] = {}
    for task in tasks:
        other = seen.setdefault(task.run.folder(), task)
        if other is not task:
            raise UserError(
                f"Expected a folder for every run, but those of '{other.dataset}' and '{task.dataset}' "
                f"would share {task.run.folder()}; rename one of them."
            )
        finished_record(task.run)


def dataset_names(config: GridConfig) -> list[str]:
    """The datasets a grid goes over."""
    usual = "imagenet" if config.protocol == "domain-generalization" else FewShotConfig().dataset
    return _all_or(config.datasets) or [config.dataset or usual]


def _all_or(names: list[str]) -> list[str]:
    return list(ELEVEN) if names == ["all"] else names


def run_config(config: GridConfig, dataset: str) -> FewShotConfig:
    """The config of the protocol for one dataset: what the runs would have without a grid."""
    kind = KINDS[config.protocol]
    content = shared_entries(kind, config)
    if config.targets:
        content["targets"] = _all_or(config.targets)
    else:
        content.pop("targets", None)  # those of the protocol
    content |= {"dataset": dataset, "workers": config.decode_workers}
    # As accelerate resolves it in a process of its own.
    content["mixed_precision"] = config.mixed_precision or cast(
        Precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    )
    return kind(**content)


def read_config(path: Path) -> GridConfig:
    """A grid's config from the JSON that it was written to.

    Raises:
        UserError: it can't be read.
    """
    content: dict[str, Any] = read_json(path, "the config of a grid")
    hints: dict[str, Any] = get_type_hints(GridConfig)
    nested: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    return GridConfig(**{**content, **{name: kind(**content[name]) for name, kind in nested.items()}})


def _place(run: Run) -> tuple[int, int]:
    config = run.config
    assert isinstance(config, FewShotConfig)
    return config.shots[0], config.seeds[0]


# What is known of a run from its folder alone, so that any process may ask.


def write_failure(run: Run, reason: str, worker: int, final: bool) -> None:
    """Leave why a run has no record. One that is not final holds only if its process dies."""
    write_json(run.folder() / FAILURE, {"reason": reason, "worker": worker, "final": final})


def failure(run: Run, final_only: bool = False) -> str | None:
    """Why a run has no record, None if it was not tried."""
    path = run.folder() / FAILURE
    try:
        content = read_json(path, "a failure") if path.is_file() else None
        return content["reason"] if content and (content["final"] or not final_only) else None
    except (UserError, KeyError, TypeError):
        return None  # removed meanwhile


def forget_failures(tasks: Iterable[Task], worker: int | None = None) -> None:
    """Forget earlier failures, so that what failed is tried again; of one worker only those it died in."""
    for task in tasks:
        path = task.run.folder() / FAILURE
        if worker is not None and path.is_file():
            content = read_json(path, "a failure")
            if content["final"] or content["worker"] != worker:
                continue
        path.unlink(missing_ok=True)
