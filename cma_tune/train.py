"""Fit a learner and evaluate it, on any number of processes: short functions on accelerate."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from cma_tune.checkpoint import Position, load_checkpoint, save_checkpoint
from cma_tune.data.batches import Batch, Share, TrainBatches
from cma_tune.errors import UserError
from cma_tune.fitting import NonFiniteLossError as NonFiniteLossError
from cma_tune.fitting import (
    backward,
    fresh_scaler,
    gather_in_order,
    make_optimizer,
    over_processes,
    progress,
    released,
    set_rate,
    stop_if_not_finite,
)
from cma_tune.learners.base import Learner, PromptOutput, cosines
from cma_tune.losses import CMALoss, cma_objective
from cma_tune.metrics import accuracy, expected_calibration_error, per_class_accuracy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a learner is trained; the defaults are the references'.

    Attributes:
        epochs: passes over the few-shot images.
        optimizer: SGD, Adam or AdamW.
        lr: peak learning rate.
        warmup_lr: constant learning rate of the first epoch.
        schedule: a cosine after the warm-up, or `lr` at every epoch.
        momentum: of SGD.
        weight_decay: of the optimiser.
        cma_weight: λ of (1−λ)·CE + λ·CMA.
        reduction, normalize: form of the CMA loss, see `CMALoss`.
    """

    epochs: int
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.002
    warmup_lr: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    cma_weight: float = 0.0
    reduction: Literal["sum", "mean"] = "sum"
    normalize: bool = False


@dataclass
class Checkpointing:
    """Where and when a run is saved.

    Attributes:
        path: the checkpoint file.
        run: digest of what the run is; a checkpoint with another one is refused.
        every: also every so many steps within an epoch; 0 for epoch boundaries alone.
        resume: go on from `path` if it exists.
    """

    path: Path
    run: str
    every: int = 0
    resume: bool = True


@dataclass
class Evaluation:
    """Figures over a test list.

    Attributes:
        accuracy: percent.
        per_class: percent per class, None for a class without images.
        class_similarity: mean cosine between an image and its own class's text embedding.
        modal_similarity: mean cosine between any image and all classes' text embeddings.
        ece: expected calibration error over 15 bins, percentage points.
        images: how many there were.
        predictions: predicted and true class of every image, in the order of the list, ``[N, 2]``, int64.
    """

    accuracy: float
    per_class: list[float | None]
    class_similarity: float
    modal_similarity: float
    ece: float
    images: int
    predictions: Tensor = field(repr=False, compare=False)


@dataclass
class FitReport:
    """What a fit gave: mean loss terms of the last epoch, steps taken in all."""

    steps: int
    losses: dict[str, float] = field(default_factory=dict)


def learning_rate(epoch: int, recipe: Recipe) -> float:
    """The reference's schedule for `epoch` from 0: warm-up, then a cosine that counts from epoch 1.

    One epoch of `warmup_lr`, then lr/2·(1 + cos(π(e−1)/T)) over T epochs, so the last one is not at 0. A
    constant schedule is `lr` throughout.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if epoch == 0:
        return recipe.warmup_lr
    return 0.5 * recipe.lr * (1.0 + math.cos(math.pi * (epoch - 1) / recipe.epochs))


def loss_terms(
    output: PromptOutput,
    batch: Batch,
    penalty: CMALoss,
    weight: float,
    processes: int,
    regulariser: Tensor | None = None,
) -> dict[str, Tensor]:
    """Terms and objective of one batch, scalars whose mean over processes is the batch's.

    The objective is (1−λ)·(CE + the method's own regulariser) + λ·CMA.

    The gradients of DistributedDataParallel are means over processes, so the cross-entropy of this process's
    share is scaled such that its mean over processes is the mean over the whole batch. The penalty is that
    of the whole batch on every process already.

    Args:
        output: of this process's share.
        batch: this process's share, and the size of the whole.
        penalty: the CMA loss, gathering across processes if there are several.
        weight: λ.
        processes: how many share the batch.
        regulariser: of the method, weighed already: a scalar that is the same on every process, or one value
            per image of this share.
    """
    summed = torch.nn.functional.cross_entropy(output.logits, batch.labels, reduction="sum")
    cross_entropy = summed * (processes / batch.size)
    terms = {"loss": cross_entropy, "cross_entropy": cross_entropy}
    if regulariser is not None:
        if regulariser.dim():
            regulariser = regulariser.sum() * (processes / batch.size)
        terms |= {"loss": cross_entropy + regulariser, "regulariser": regulariser}
    if weight == 0:  # the method itself, step for step: the penalty is not even computed
        return terms
    cma = penalty(output.image_features, output.text_features, batch.labels)
    return {**terms, "loss": cma_objective(terms["loss"], cma, weight), "cma": cma}


def fit(
    learner: Learner,
    data: TrainBatches,
    recipe: Recipe,
    accelerator: Accelerator,
    checkpointing: Checkpointing | None = None,
    description: str = "fit",
) -> FitReport:
    """Train the learner's parameters in place.

    Args:
        learner: on the accelerator's device; its backbone stays frozen.
        data: batches, of which every process takes its share.
        recipe: optimiser, schedule, loss.
        accelerator: processes, precision, trackers.
        checkpointing: where the run is saved and resumed from, if at all.
        description: of the progress bar.

    Raises:
        NonFiniteLossError: the loss is no longer a number; raised on every process, nothing is saved.
        UserError: the checkpoint is another run's, or a training image can't be read.
    """
    groups = learner.parameter_groups()
    optimizer = make_optimizer(recipe.optimizer, groups, recipe.lr, recipe.momentum, recipe.weight_decay)
    trained = [parameter for group in groups for parameter in group["params"]]
    fresh_scaler(accelerator)
    position = Position()
    if checkpointing is not None and checkpointing.resume:
        position = load_checkpoint(checkpointing.path, checkpointing.run, learner, optimizer, accelerator)
    accelerator.wait_for_everyone()
    learner.train()
    model, stepper = accelerator.prepare(learner, optimizer)
    several = accelerator.num_processes > 1
    penalty = CMALoss(recipe.reduction, recipe.normalize, gather_across_processes=several)
    per_epoch = data.steps_per_epoch()
    every = checkpointing.every if checkpointing is not None else 0

    def save(at: Position) -> None:
        if checkpointing is not None:
            save_checkpoint(checkpointing.path, checkpointing.run, learner, optimizer, at, accelerator)

    total, done = recipe.epochs * per_epoch, position.epoch * per_epoch + position.step
    with released(learner, accelerator), progress(total, done, description, accelerator) as bar:
        for epoch in range(position.epoch, recipe.epochs):
            rate = learning_rate(epoch, recipe)
            sums = dict(position.sums)
            for step, batch in enumerate(_batches(data, position, accelerator), start=position.step):
                set_rate(optimizer, rate, epoch * per_epoch + step)
                learner.start_step(epoch * per_epoch + step)
                output = model(batch.images)
                processes, regulariser = accelerator.num_processes, learner.regulariser(output)
                terms = loss_terms(output, batch, penalty, recipe.cma_weight, processes, regulariser)
                guide = learner.guide(output)
                if guide is not None:
                    guide = guide.sum() * (processes / batch.size)
                stepper.zero_grad()
                backward(terms["loss"], guide, trained, accelerator, learner.guide_weight)
                values = over_processes(terms, accelerator)
                stop_if_not_finite(values["loss"], f"step {step} of epoch {epoch} (both from 0)")
                stepper.step()
                sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
                bar.update()
                if every and (step + 1) % every == 0 and step + 1 < per_epoch:
                    save(Position(epoch, step + 1, sums, position.losses))
            learner.end_epoch(epoch, recipe.epochs)
            losses = {name: value / per_epoch for name, value in sums.items()}
            accelerator.log({**losses, "learning_rate": rate}, step=(epoch + 1) * per_epoch)
            bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
            position = Position(epoch + 1, losses=losses)
            save(position)
    return FitReport(total, position.losses)


def _batches(data: TrainBatches, position: Position, accelerator: Accelerator) -> Iterator[Batch]:
    """The rest of the epoch from `position` on."""
    try:
        yield from data.batches(position.epoch, position.step)
    except UserError as error:
        # Only the process whose share holds a bad image knows of it; the main one can't tell the user.
        if not accelerator.is_main_process:
            log.error("%s", error)
        raise


@torch.no_grad()
def evaluate(
    learner: Learner, features: Tensor, labels: Tensor, accelerator: Accelerator, batch_size: int = 100
) -> Evaluation:
    """Figures of `learner` over image features ``[N, D]`` and labels ``[N]``; every process takes its share.

    The result depends on neither the number of processes nor `batch_size`.

    Raises:
        ValueError: there are no images, or not one label for each.
    """
    count, classes = len(labels), len(learner.class_names)
    if not count or len(features) != count:
        raise ValueError(f"Expected features [N, D] and labels [N], N > 0, got {len(features)} and {count}.")
    learner.eval()
    share = Share(accelerator.process_index, accelerator.num_processes)
    rows = []
    with accelerator.autocast():
        text = None if learner.conditioned_on_image else learner.text_features()
        for chunk in torch.tensor(share.of(range(count)), dtype=torch.long).split(batch_size):
            image, label = features[chunk].to(accelerator.device), labels[chunk].to(accelerator.device)
            output = learner(image, text)
            similar = cosines(output.image_features, output.text_features)
            own = similar.gather(1, label[:, None])[:, 0]
            sure, predicted = output.logits.softmax(dim=1).max(dim=1)
            rows.append(torch.stack([predicted.to(own), own, similar.mean(dim=1), sure.to(own)], dim=1))
    table = gather_in_order(torch.cat(rows), count, accelerator).cpu().double()  # [N, 4]
    predictions, target = table[:, 0].long(), labels.cpu()
    per_class = per_class_accuracy(predictions, target, classes).tolist()
    return Evaluation(
        accuracy=accuracy(predictions, target),
        per_class=[None if math.isnan(value) else value for value in per_class],
        class_similarity=float(table[:, 1].mean()),
        modal_similarity=float(table[:, 2].mean()),
        ece=expected_calibration_error(table[:, 3], predictions == target),
        images=count,
        predictions=torch.stack([predictions, target], dim=1),
    )
