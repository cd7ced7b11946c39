"""Whether the data of a grid's runs are there, before anything runs. No weights are loaded for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, searched
from cma_tune.errors import UserError
from cma_tune.options import CrossDatasetConfig, GridConfig
from cma_tune.protocols.base_to_novel import check_halves
from cma_tune.protocols.cross_dataset import target_setup
from cma_tune.protocols.grid_plan import Task, run_config
from cma_tune.protocols.selection import check_validation
from cma_tune.protocols.transfers import TransferRun
from cma_tune.records import Record, finished_on


def data_faults(config: GridConfig, tasks: Sequence[Task]) -> dict[Task, str]:
    """Which runs lack data, or enough of them: a sentence by task, none where all is well.

    Args:
        config: the grid's.
        tasks: those that are still to be done.
    """
    faults: dict[Task, str] = {}
    for name in dict.fromkeys(task.dataset for task in tasks):
        mine = [task for task in tasks if task.dataset == name]
        try:
            setup = Setup(run_config(config, name))
            if config.protocol == "base-to-novel":
                check_halves(setup)
        except UserError as error:
            faults |= dict.fromkeys(mine, str(error))
            continue
        for task in mine:
            try:
                _check_training(setup, task)
            except UserError as error:
                faults[task] = str(error)
    return faults


def check_finished(config: GridConfig, records: Mapping[Task, Record]) -> None:
    """Check that the runs that are done were made with the splits that are there now.

    Raises:
        UserError: a dataset has changed since.
    """
    for name in dict.fromkeys(task.dataset for task in records):
        try:
            setup = Setup(run_config(config, name))
        except UserError:
            continue  # the data have gone, so that nothing new can be mixed with what is done
        for task in records:
            if task.dataset == name and not isinstance(task.run, TransferRun):  # its data are the targets
                finished_on(task.run, setup.split_digest, "split")


def target_faults(config: GridConfig, tasks: Sequence[Task]) -> dict[str, str]:
    """What is wrong with the datasets that are tested on alone, by name."""
    faults: dict[str, str] = {}
    tests = [one for task in tasks if isinstance(one := task.run.config, CrossDatasetConfig)]
    for name in tests[0].targets if tests else []:
        try:
            target_setup(tests[0], name)
        except UserError as error:
            faults[f"{name} (target)"] = str(error)
    return faults


def _check_training(setup: Setup, task: Task) -> None:
    """Raise what the run would."""
    config = task.run.config
    if not isinstance(config, FewShotConfig):
        return
    setup.picks(config)
    if config.select_weight:
        check_validation(setup, config, "--select-weight", "give one λ")
    if flag := searched(config):
        check_validation(setup, config, flag, "give the values")
