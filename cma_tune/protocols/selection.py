"""Choosing λ on the few-shot validation images, and on nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig
from cma_tune.errors import UserError
from cma_tune.files import write_atomically
from cma_tune.learners.cards import CARD
from cma_tune.predictions import FILE as PREDICTIONS
from cma_tune.records import Record, finished_record, save_record
from cma_tune.run import Run

ON = "few-shot validation images"


def choices(runs: Sequence[Run]) -> list[Run]:
    """For every (shots, seed) of `runs`, the choice among its λ as a run of its own.

    The λ of such a run are those to choose from, in ascending order.
    """
    groups: dict[tuple[int, int], list[FewShotConfig]] = {}
    for run in runs:
        assert isinstance(run.config, FewShotConfig)
        groups.setdefault((run.config.shots[0], run.config.seeds[0]), []).append(run.config)
    return [
        Run(
            runs[0].protocol,
            replace(group[0], weights=sorted(_weight(one) for one in group), select_weight=True),
        )
        for group in groups.values()
    ]


def _weight(config: FewShotConfig) -> float:
    return float(config.weights[0])


def check_choices(chosen: Sequence[Run], setup: Setup) -> None:
    """Check that there are images to choose λ on, and room for the choices.

    Raises:
        UserError: the dataset has no validation part, or takes its test images for it; or a folder holds
            another run's record.
    """
    for run in chosen:
        assert isinstance(run.config, FewShotConfig)
        finished_record(run)
        check_validation(setup, run.config, "--select-weight", "give one λ")


def check_validation(setup: Setup, config: FewShotConfig, flag: str, otherwise: str) -> None:
    """Check that there are images to choose something on, and that they are no test images.

    Args:
        setup: with the dataset.
        config: of one run.
        flag: what asks for the choice.
        otherwise: what else to do.

    Raises:
        UserError: there are none, or some are test images.
    """
    validation = setup.picks(config).val
    if not validation:
        raise UserError(
            f"Expected validation images in '{setup.dataset.name}' for {flag}, got none; "
            f"{otherwise}, or a val part."
        )
    tested_on = {item.key for item in setup.dataset.split.test}
    shared = sum(item.key in tested_on for item in validation)
    if shared:
        raise UserError(
            f"Expected validation images of '{setup.dataset.name}' that are no test images for "
            f"{flag}, got {shared} test images among {len(validation)}; "
            f"{otherwise}, or a val part of its own."
        )


def select_weights(chosen: Sequence[Run], setup: Setup, records: Sequence[Record]) -> list[Record]:
    """For every choice, the record of the λ with the highest validation accuracy.

    It is saved once more, with its prompt, as a run of its own, which says what it was chosen from.

    Args:
        chosen: from `choices`.
        setup: processes and output.
        records: those of all runs to choose from.

    Raises:
        UserError: see `choose`.
    """
    results = []
    for run in chosen:
        config = run.config
        assert isinstance(config, FewShotConfig)
        record = finished_record(run) if config.resume else None
        if record is None:
            place = (config.shots[0], config.seeds[0])
            record = _selected(run, [r for r in records if (r.shots, r.seed) == place])
            if setup.accelerator.is_main_process:
                best = replace(config, weights=[record.weight], select_weight=False)
                _copy_results(replace(run, config=best), run)
                save_record(run.folder(), record)
            setup.accelerator.wait_for_everyone()
        setup.say(f"{run.folder()}: λ={record.weight:g} by validation, {record.headline()}")
        results.append(record)
    return results


def _selected(run: Run, candidates: Sequence[Record]) -> Record:
    best = choose(candidates)
    selection = {
        "on": ON,
        "candidates": [[r.weight, r.figures["validation_accuracy"]] for r in candidates],
        "chosen": best.weight,
    }
    config = {**best.config, "select_weight": True}
    return replace(best, run=run.digest(), selection=selection, config=config)


def _copy_results(best: Run, run: Run) -> None:
    """The chosen λ's prompt and predictions beside the choice's record, so that they are found there."""
    prompt = sorted(best.prompt_folder().glob("[!.]*"), key=lambda path: path.name == CARD)  # the card last
    for source in (*prompt, best.folder() / PREDICTIONS):
        if source.is_file():  # a prompt that was taken away does not make the record less true
            target = run.folder() / source.relative_to(best.folder())
            write_atomically(target, partial(shutil.copyfile, source))


def choose(candidates: Sequence[Record]) -> Record:
    """The candidate with the highest validation accuracy (ties: the smaller λ), whatever its test figures.

    Raises:
        UserError: a candidate has no validation accuracy.
    """
    if any("validation_accuracy" not in r.figures for r in candidates):
        raise UserError(
            "Expected validation images to choose λ on, got a dataset without any; give one λ, or a val part."
        )
    return min(candidates, key=lambda r: (-r.figures["validation_accuracy"], r.weight))
