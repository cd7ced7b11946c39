"""What the protocols share: going through runs, training one, leaving its record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, entries, searched
from cma_tune.data.own_catalog import own_weights
from cma_tune.data.splits import Split, base_novel_labels
from cma_tune.errors import UserError
from cma_tune.learners import Learner
from cma_tune.learners.saving import save_prompt
from cma_tune.metrics import accuracy, harmonic_mean
from cma_tune.predictions import save_predictions
from cma_tune.protocols.selection import ON, check_choices, check_validation, choices, select_weights
from cma_tune.recipes import recipe_weight
from cma_tune.records import RECIPE_WEIGHT, Record, finished_on, save_record, versions
from cma_tune.run import Run, expand
from cma_tune.trackers import finish_trackers, start_trackers
from cma_tune.train import (
    Checkpointing,
    Evaluation,
    FitReport,
    NonFiniteLossError,
    Recipe,
    evaluate,
    fit,
)

CHECKPOINT = "checkpoint.safetensors"

INDUCTIVE = "inductive"
"""In a record: no test image takes part in training, not even without its label."""

WALL_SECONDS = "wall_seconds_since_last_start"
"""In a record: seconds of the whole run, with encoding and evaluation.

What several runs share counts for the first that needs it, or for none in a grid, which does it before.
"""


def each_run(
    protocol: str, config: FewShotConfig, setup: Setup, one: Callable[[Setup, Run], Record]
) -> list[Record]:
    """Run all combinations of a config, skipping finished ones; then choose λ where asked.

    Returns:
        One record a run, then one for every choice.

    Raises:
        UserError: a folder holds another run's record, the dataset's split has changed since, a class has too
            few images, or there is nothing to choose λ on.
    """
    runs = runs_of(protocol, replace(config, mixed_precision=setup.precision))
    # Mistakes that can be seen beforehand are seen before the first run starts.
    for run in runs:
        assert isinstance(run.config, FewShotConfig)
        setup.picks(run.config)
        if flag := searched(run.config):
            check_validation(setup, run.config, flag, "give the values")
        finished(run, setup)
    chosen = choices(runs) if config.select_weight else []
    check_choices(chosen, setup)
    records = []
    for number, run in enumerate(runs, start=1):
        record = finished(run, setup) if config.resume else None  # without resume a run is done again
        label = f"[{number}/{len(runs)}] {run.folder()}"
        if record is not None:
            if setup.accelerator.is_main_process:
                # Left where the run was killed after its record was written.
                (run.folder() / CHECKPOINT).unlink(missing_ok=True)
            setup.say(f"{label}: finished before, skipped")
        else:
            record = one(setup, run)
            setup.say(f"{label}: {record.headline()}")
        records.append(record)
    return records + select_weights(chosen, setup, records)


def runs_of(protocol: str, config: FewShotConfig) -> list[Run]:
    """The runs of a config; "recipe" is the λ of the user's catalogue for the dataset, or the release's.

    Raises:
        UserError: neither has one.
    """
    return expand(protocol, config, own_weights().get(config.dataset))


def finished(run: Run, setup: Setup) -> Record | None:
    """The record of `run` if it is finished, None if it has none. No weights are loaded for it.

    Raises:
        UserError: its folder holds another run's record, or the dataset's split has changed since.
    """
    return finished_on(run, setup.split_digest, "split")


def train_one(setup: Setup, run: Run, split: Split) -> tuple[Learner, dict[str, Any]]:
    """Train a learner on the training items of `split` (relabelled already), resuming where it was stopped.

    Returns:
        The learner, and what the record says of its training.

    Raises:
        UserError: there are no training images; see also `fit`.
    """
    config = run.config
    assert isinstance(config, FewShotConfig)
    if not split.train:
        raise UserError(
            f"Expected training images of the {len(split.class_names)} classes to learn of "
            f"'{setup.dataset.name}', got none; use another split."
        )
    folder = run.folder()
    learner = setup.learner(config, split.class_names, split.train)
    data = setup.train_batches(split.train, config)
    identity = setup.checkpoint_identity(run, split)
    checkpointing = Checkpointing(folder / CHECKPOINT, identity, config.checkpoint_every, config.resume)
    started = time.perf_counter()
    if config.tracker is not None:
        start_trackers(setup.accelerator, folder, entries(config))
    label = f"{config.learner} λ={config.weights[0]:g} {config.shots[0]}-shot seed {config.seeds[0]}"
    report = FitReport(0)
    if any(parameter.requires_grad for parameter in learner.parameters()):
        how = recipe(config, data.steps_per_epoch())
        report = fit(learner, data, how, setup.accelerator, checkpointing, label)
    finish_trackers(setup.accelerator)
    training = {
        "setting": INDUCTIVE,
        "steps": report.steps,
        "losses": report.losses,
        "seconds_since_last_start": round(time.perf_counter() - started, 3),
        "processes": setup.accelerator.num_processes,
        "device": str(setup.accelerator.device.type),
        "mixed_precision": setup.precision,
        "train_images": len(split.train),
        "train_images_in_test": setup.trained_again(split.train),
    }
    if searched(config):
        training["chosen"] = {"on": ON, **learner.choose(*setup.validation_features(split.val, learner))}
    return learner, training


def recipe(config: FewShotConfig, steps_per_epoch: int) -> Recipe:
    """Recipe of one run; λ and the entries of optimiser and loss are values by then."""
    own = asdict(config.optim)
    del own["batch_size"]
    steps = own.pop("steps_per_shot")
    if own["epochs"] is None:
        own["epochs"] = math.ceil(steps * config.shots[0] / steps_per_epoch)
    return Recipe(**own, **asdict(config.loss), cma_weight=float(config.weights[0]))


def validate(setup: Setup, learner: Learner, split: Split) -> dict[str, float]:
    """Accuracy over the few-shot validation picks, or nothing where there are none."""
    if not split.val:
        return {}
    features, labels = setup.validation_features(split.val, learner)
    result = evaluate(learner, features, labels, setup.accelerator, setup.config.eval_batch_size)
    return {"validation_accuracy": result.accuracy}


def per_class(evaluation: Evaluation, class_names: Sequence[str]) -> dict[str, float | None]:
    """Accuracy by class name; names that occur twice carry their label."""
    names = [
        f"{name} [{label}]" if class_names.count(name) > 1 else name for label, name in enumerate(class_names)
    ]
    return dict(zip(names, evaluation.per_class, strict=True))


def make_record(
    setup: Setup,
    run: Run,
    figures: dict[str, float],
    by_class: dict[str, dict[str, float | None]],
    started: float,
    training: dict[str, Any] | None = None,
    picked: Split | None = None,
) -> Record:
    """The record of a run that has just ended, and started at this reading of `time.perf_counter`."""
    split = setup.dataset.split
    dataset: dict[str, Any] = {
        "name": setup.dataset.name,
        "origin": setup.dataset.origin,
        "split": setup.split_digest,
        "classes": len(split.class_names),
        "test_images": len(split.test),
        "classes_without_test_image": len(split.classes_without("test")),
        "templates": list(setup.dataset.templates),
    }
    if picked is not None:
        dataset |= {"picks": picked.digest()}
        dataset |= {"train_images": len(picked.train), "val_images": len(picked.val)}
    training = {**(training or {}), **_own_recipe(run)}
    return Record(
        run=run.digest(),
        protocol=run.protocol,
        config=entries(run.config),
        dataset=dataset,
        backbone=setup.backbone.describe(),
        figures=figures,
        per_class=by_class,
        training={**training, WALL_SECONDS: round(time.perf_counter() - started, 3)},
        versions=versions(),
    )


def _own_recipe(run: Run) -> dict[str, float]:
    """λ that the user's catalogue gives the dataset at these shots, which a report can't know by itself."""
    own = own_weights().get(run.config.dataset, {})
    if not isinstance(run.config, FewShotConfig) or not own:
        return {}
    try:
        return {RECIPE_WEIGHT: recipe_weight(run.config.dataset, run.config.shots[0], own)}
    except UserError:  # it gives none at these shots
        return {}


def leave(
    setup: Setup,
    run: Run,
    record: Record,
    learner: Learner | None = None,
    tested: Mapping[str, Evaluation] | None = None,
) -> Record:
    """Write prompt, predictions and record, then drop the checkpoint: in this order a kill loses nothing.

    Args:
        setup: processes.
        run: says where.
        record: of the run.
        learner: what was learned, if anything.
        tested: evaluations whose predictions are stored, by the name of the test list, as in `per_class`.

    Raises:
        NonFiniteLossError: the last steps spoilt what was learned, so that a figure is no number; nothing is
            written.
    """
    wrong = [name for name, value in record.figures.items() if not math.isfinite(value)]
    if wrong:
        raise NonFiniteLossError(
            f"Expected finite figures of {run.folder()}, got {record.figures[wrong[0]]} for "
            f"{wrong[0].replace('_', ' ')}: training diverged in its last steps; try a smaller learning rate "
            "with another --output."
        )
    if setup.accelerator.is_main_process:
        folder = run.folder()
        if learner is not None:
            provenance = {
                "split": record.dataset["split"],
                "picks": record.dataset["picks"],
                "dataset": record.dataset["name"],
                "run": record.run,
                "figures": record.figures,
            }
            save_prompt(learner, run.prompt_folder(), provenance)
        if tested:
            save_predictions(folder, {name: result.predictions for name, result in tested.items()})
        save_record(folder, record)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    setup.accelerator.wait_for_everyone()
    return record


def class_half(features: Tensor, labels: Tensor, half: list[int]) -> tuple[Tensor, Tensor]:
    """The images of one half of the classes, relabelled from 0."""
    kept = torch.isin(labels, torch.tensor(half))
    return features[kept], labels[kept] - half[0]


def generalised(tested: Evaluation) -> dict[str, float]:
    """Accuracies of base and novel images among all names, in percent, and their harmonic mean.

    Args:
        tested: over images of both halves, among the names of all classes.

    Raises:
        ValueError: a half has no images.
    """
    base, novel = (
        accuracy(*tested.predictions[torch.isin(tested.predictions[:, 1], torch.tensor(half))].unbind(dim=1))
        for half in base_novel_labels(len(tested.per_class))
    )
    return {
        "base_accuracy_among_all": base,
        "novel_accuracy_among_all": novel,
        "harmonic_mean_among_all": harmonic_mean(base, novel),
    }
