"""What experiments of several trainings share: one training with its own checkpoint, and the record."""

from __future__ import annotations

import time
from typing import Any

from cma_tune.companion.loop import Trained
from cma_tune.companion.networks import Network
from cma_tune.companion.runs import CURVES, drop_checkpoints, record_of, train_network
from cma_tune.companion.setup import CompanionSetup
from cma_tune.companion_options import SupervisedConfig
from cma_tune.companion_run import CompanionRun
from cma_tune.files import write_json
from cma_tune.records import Record, save_record
from cma_tune.train import Checkpointing


def part_of_experiment(
    setup: CompanionSetup,
    run: CompanionRun,
    name: str,
    config: SupervisedConfig | None = None,
    order: int | None = None,
    temperature: float = 1.0,
) -> tuple[Trained, list[dict[str, float]]]:
    """One training of an experiment, from its checkpoint on; a finished one is only read again.

    Its checkpoint stays until the experiment's record is written.

    Args:
        setup: of the experiment.
        run: the experiment.
        name: of this training, different from those of the others.
        config: of this training; by default the run's.
        order: seed of the order of images and of their noise; by default the run's seed.
        temperature: T of CE(z/T).

    Returns:
        The network, and the entries of its evaluations.
    """
    config = config or run.config
    checkpointing = Checkpointing(
        run.folder() / f"checkpoint-{name}.safetensors",
        f"{run.digest()}-{setup.digest}-{name}",
        run.config.checkpoint_every,
        run.config.resume,
    )
    data = setup.steps(config, setup.labelled(config), order)
    return train_network(setup, config, data, checkpointing, name, temperature)


def leave_experiment(
    setup: CompanionSetup,
    run: CompanionRun,
    network: Network,
    figures: dict[str, float],
    curves: list[dict[str, float]],
    training: dict[str, Any],
    started: float,
) -> Record:
    """Write curves and record of an experiment on images.

    Args:
        setup: of the experiment.
        run: the experiment.
        network: any of its networks, for the number of parameters.
        figures: of the record.
        curves: one entry a point of the figure.
        training: what is particular to this experiment.
        started: `time.perf_counter` at the start.
    """
    accelerator, labelled = setup.accelerator, setup.labelled(run.config)
    common = {
        "setting": "inductive",  # no test image takes part, not even without its label
        "steps": run.config.schedule.steps,
        "seconds_since_last_start": round(time.perf_counter() - started, 3),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "mixed_precision": setup.precision,
        "labelled_images": len(labelled),
    }
    record = record_of(setup, run, network, figures, {**common, **training}, labelled)
    leave_curves(setup, run, curves, record)
    return record


def leave_curves(
    setup: CompanionSetup, run: CompanionRun, curves: list[dict[str, float]], record: Record
) -> None:
    """Write curves and record, then drop the checkpoints: so a kill loses nothing."""
    if setup.accelerator.is_main_process:
        write_json(run.folder() / CURVES, curves)
        save_record(run.folder(), record)
        drop_checkpoints(run.folder())
    setup.accelerator.wait_for_everyone()
