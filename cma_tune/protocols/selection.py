"""Choosing λ on the few-shot validation images, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, Run
from cma_tune.errors import UserError
from cma_tune.records import Record, finished_record, save_record

ON = "few-shot validation images"


def check_validation(config: FewShotConfig, setup: Setup) -> None:
    """Check that there are images to choose λ on.

    Raises:
        UserError: the dataset has no validation part, or takes its test images for it.
    """
    tested_on = {item.key for item in setup.dataset.split.test}
    for shots in config.shots:
        for seed in config.seeds:
            validation = setup.picks(replace(config, shots=[shots], seeds=[seed])).val
            if not validation:
                raise UserError(
                    f"Expected validation images in '{setup.dataset.name}' for --select-weight, got none; "
                    "give one λ, or a val part."
                )
            shared = sum(item.key in tested_on for item in validation)
            if shared:
                raise UserError(
                    f"Expected validation images of '{setup.dataset.name}' that are no test images for "
                    f"--select-weight, got {shared} test images among {len(validation)}; "
                    "give one λ, or a val part of its own."
                )


def select_weights(
    protocol: str, config: FewShotConfig, setup: Setup, records: Sequence[Record]
) -> list[Record]:
    """For every (shots, seed), the record of the λ with the highest validation accuracy.

    It is saved once more as a run of its own, which says what it was chosen from.

    Args:
        protocol: of the runs.
        config: with `select_weight`.
        setup: processes and output.
        records: those of all runs of `config`.

    Raises:
        UserError: see `choose`; or a folder holds another run's record.
    """
    chosen = []
    for shots in config.shots:
        for seed in config.seeds:
            candidates = [r for r in records if r.shots == shots and r.seed == seed]
            run = _selection_run(protocol, config, setup, candidates)
            record = finished_record(run) if config.resume else None
            if record is None:
                finished_record(run)  # refuses a folder that holds another run's record
                record = _selected(run, candidates)
                if setup.accelerator.is_main_process:
                    save_record(run.folder(), record)
                setup.accelerator.wait_for_everyone()
            setup.say(f"{run.folder()}: λ={record.weight:g} by validation, {record.headline()}")
            chosen.append(record)
    return chosen


def _selection_run(protocol: str, config: FewShotConfig, setup: Setup, candidates: Sequence[Record]) -> Run:
    """The choice as a run: its λ are those to choose from, in ascending order."""
    first = candidates[0]
    return Run(
        protocol,
        replace(
            config,
            shots=[first.shots],
            seeds=[first.seed],
            weights=sorted(record.weight for record in candidates),
            mixed_precision=setup.precision,
            optim=replace(config.optim, epochs=first.config["optim"]["epochs"]),
        ),
    )


def _selected(run: Run, candidates: Sequence[Record]) -> Record:
    best = choose(candidates)
    selection = {
        "on": ON,
        "candidates": [[r.weight, r.figures["validation_accuracy"]] for r in candidates],
        "chosen": best.weight,
    }
    config = {**best.config, "select_weight": True}
    return replace(best, run=run.digest(), selection=selection, config=config)


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
