"""What the companion's commands share: going through runs, training one, leaving its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cma_tune.companion.loop import Evaluate, Trained, fit, outputs_of
from cma_tune.companion.networks import Network, Output
from cma_tune.companion.setup import CompanionSetup, objective_of, schedule_of
from cma_tune.companion.steps import Steps
from cma_tune.companion_checks import check_companion
from cma_tune.companion_options import SupervisedConfig
from cma_tune.companion_run import CompanionRun, expand_companion, recipe_network
from cma_tune.files import write_atomically, write_json
from cma_tune.metrics import CollapseMonitor, accuracy, per_class_accuracy
from cma_tune.predictions import save_predictions
from cma_tune.records import Record, finished_on, save_record, versions
from cma_tune.trackers import finish_trackers, start_trackers
from cma_tune.train import Checkpointing

CHECKPOINT, WEIGHTS, CURVES = "checkpoint.safetensors", "model.safetensors", "curves.json"
CHECKPOINTS = "checkpoint*.safetensors"

MEASURED = ("validation_accuracy", *CollapseMonitor.names)
"""Entries of the last evaluation that a record repeats."""


def each_companion_run(
    protocol: str,
    config: SupervisedConfig,
    train: Train | None = None,
    make_setup: Callable[[SupervisedConfig], CompanionSetup] = CompanionSetup,
) -> list[Record]:
    """Run all combinations of labels and seeds, skipping finished ones.

    Args:
        protocol: supervised, semi-supervised or lab.
        config: of the command.
        train: makes one run and leaves its record; `train_one` by default.
        make_setup: from the config to what the runs share.

    Raises:
        UserError: a value is out of range, the dataset can't be had, a folder holds another run's record, or
            the dataset has changed since.
    """
    check_companion(config)
    setup = make_setup(config)
    runs = expand_companion(protocol, replace(config, mixed_precision=setup.precision))
    for run in runs:  # mistakes that can be seen beforehand are seen before the first run starts
        finished(run, setup)
        setup.labelled(run.config)
    records = []
    for number, run in enumerate(runs, start=1):
        label = f"[{number}/{len(runs)}] {run.folder()}"
        record = finished(run, setup) if config.resume else None
        if record is not None:
            if setup.accelerator.is_main_process:
                # Left where the run was killed after its record was written.
                drop_checkpoints(run.folder())
            setup.say(f"{label}: finished before, skipped")
        else:
            record = (train or train_one)(setup, run)
            setup.say(f"{label}: {record.headline()}")
        records.append(record)
    return records


Train = Callable[[CompanionSetup, CompanionRun], Record]
"""Makes one run, going on where it was stopped, and leaves its record."""


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run whose record is written; an experiment has one for each training."""
    for path in folder.glob(CHECKPOINTS):
        path.unlink(missing_ok=True)


def finished(run: CompanionRun, setup: CompanionSetup) -> Record | None:
    """The record of `run` if it is finished, None if it has none.

    Raises:
        UserError: its folder holds another run's record, or the dataset has changed since.
    """
    return finished_on(run, setup.digest, "images")


def train_one(setup: CompanionSetup, run: CompanionRun) -> Record:
    """Train one run, resuming where it was stopped, and leave its record."""
    config, accelerator, images = run.config, setup.accelerator, setup.images
    labelled = setup.labelled(config)
    data = setup.steps(config, labelled)
    checkpointing = Checkpointing(
        run.folder() / CHECKPOINT, f"{run.digest()}-{setup.digest}", config.checkpoint_every, config.resume
    )
    started = time.perf_counter()
    if config.tracker is not None:
        start_trackers(accelerator, run.folder(), asdict(config))
    description = (
        f"{run.folder().parent.parent.name} {config.labels[0] or 'all'} labels seed {config.seeds[0]}"
    )
    trained, history = train_network(setup, config, data, checkpointing, description)
    finish_trackers(accelerator)
    training = {
        "setting": "inductive",  # no test image takes part, not even without its label
        "steps": config.schedule.steps,
        "losses": {name: value for name, value in history[-1].items() if name in ("loss", "supervised")},
        "seconds_since_last_start": round(time.perf_counter() - started, 3),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "mixed_precision": setup.precision,
        "labelled_images": len(labelled),
        "unlabelled_images": data.pool_size if trained.algorithm.uses_unlabelled else 0,
    }
    tested = outputs_of(
        trained.evaluated(), images.test.images, setup.prepare(config), accelerator, config.eval_batch_size
    )
    return leave(setup, run, trained.evaluated(), tested, history, training, labelled)


def train_network(
    setup: CompanionSetup,
    config: SupervisedConfig,
    data: Steps,
    checkpointing: Checkpointing,
    description: str,
    temperature: float = 1.0,
) -> tuple[Trained, list[dict[str, float]]]:
    """Train a config's network from its start on, or from its checkpoint; it comes with its evaluations."""
    algorithm = setup.algorithm(config, data.pool_size)
    schedule = schedule_of(config)
    trained = Trained(setup.network(config), algorithm, schedule.ema)
    trained.to(setup.accelerator.device)
    history = fit(
        trained,
        data,
        objective_of(config, algorithm, temperature),
        schedule,
        setup.accelerator,
        evaluator(setup, config),
        checkpointing,
        description,
        config.channels_last,
    )
    return trained, history


def evaluator(setup: CompanionSetup, config: SupervisedConfig) -> Evaluate:
    """Figures of a network on validation and test images, as the loop asks for them."""
    images, prepare = setup.images, setup.prepare(config)
    monitor = CollapseMonitor(center=config.interplay.center)

    def evaluate(network: Network, step: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, pool in (("validation_accuracy", images.val), ("accuracy", images.test)):
            if not len(pool):
                continue
            output = outputs_of(network, pool.images, prepare, setup.accelerator, config.eval_batch_size)
            figures[name] = accuracy(output.logits.argmax(dim=1), pool.labels)
        figures |= collapse_figures(monitor, network, output, images.test.labels)
        return figures

    return evaluate


def collapse_figures(
    monitor: CollapseMonitor, network: Network, output: Output, labels: Tensor
) -> dict[str, float]:
    """What a monitor says of test features, without what is undefined there."""
    weight = network.classifier.weight.detach().cpu().float()
    figures = monitor(output.features, labels, weight)
    return {name: value for name, value in figures.items() if value is not None}


def leave(
    setup: CompanionSetup,
    run: CompanionRun,
    network: Network,
    tested: Output,
    history: list[dict[str, float]],
    training: dict[str, Any],
    labelled: list[int],
) -> Record:
    """Write weights, predictions, curves and record, then drop the checkpoint: so a kill loses nothing."""
    images = setup.images
    predictions = tested.logits.argmax(dim=1)
    per_class = per_class_accuracy(predictions, images.test.labels, len(images.class_names)).tolist()
    last = history[-1]
    figures = {
        "accuracy": last["accuracy"],
        "best_accuracy": max(entry["accuracy"] for entry in history),
        **{name: value for name, value in last.items() if name in MEASURED},
    }
    record = record_of(setup, run, network, figures, training, labelled)
    record.per_class["test"] = {
        name: None if value != value else value
        for name, value in zip(images.class_names, per_class, strict=True)
    }
    if setup.accelerator.is_main_process:
        folder = run.folder()
        weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        write_atomically(folder / WEIGHTS, lambda temporary: save_file(weights, str(temporary)))
        save_predictions(folder, {"test": torch.stack([predictions, images.test.labels], dim=1)})
        write_json(folder / CURVES, history)
        save_record(folder, record)
        drop_checkpoints(folder)
    setup.accelerator.wait_for_everyone()
    return record


def record_of(
    setup: CompanionSetup,
    run: CompanionRun,
    network: Network,
    figures: dict[str, float],
    training: dict[str, Any],
    labelled: list[int],
) -> Record:
    """The record of a run on images, without figures by class."""
    images, config = setup.images, run.config
    return Record(
        run=run.digest(),
        protocol=run.protocol,
        config=asdict(config),
        dataset={
            "name": images.name,
            "origin": images.origin,
            "split": setup.digest,
            "classes": len(images.class_names),
            "test_images": len(images.test),
            "train_images": len(images.train),
            "labelled": labelled if len(labelled) < len(images.train) else "all",
        },
        backbone={
            "name": str(config.network),
            "parameters": sum(p.numel() for p in network.parameters()),
            "recipe": recipe_network(config.dataset),
        },
        figures=figures,
        per_class={},
        training=training,
        versions=versions(),
    )
