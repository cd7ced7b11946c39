"""Fit a learner and evaluate it, on any number of processes: short functions on accelerate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from cma_tune.checkpoint import Position, load_checkpoint, save_checkpoint
from cma_tune.data.batches import Batch, Share, TrainBatches
from cma_tune.learners.base import Learner, PromptOutput
from cma_tune.losses import CMALoss, cma_objective
from cma_tune.metrics import accuracy, per_class_accuracy


@dataclass(frozen=True)
class Recipe:
    """How a learner is trained; the defaults are the references'.

    Attributes:
        epochs: passes over the few-shot images.
        lr: peak learning rate of SGD.
        warmup_lr: constant learning rate of the first epoch.
        momentum, weight_decay: of SGD.
        cma_weight: λ of (1−λ)·CE + λ·CMA.
        reduction, normalize: form of the CMA loss, see `CMALoss`.
    """

    epochs: int
    lr: float = 0.002
    warmup_lr: float = 1e-5
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
        run: digest of what the run is.
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
        images: how many there were.
    """

    accuracy: float
    per_class: list[float | None]
    class_similarity: float
    modal_similarity: float
    images: int


@dataclass
class FitReport:
    """What a fit gave: mean loss terms of the last epoch, steps taken in all."""

    steps: int
    losses: dict[str, float] = field(default_factory=dict)


def learning_rate(epoch: int, recipe: Recipe) -> float:
    """The reference's schedule: one epoch of constant warm-up, then a cosine from `lr` that counts from epoch 1."""
    if epoch == 0:
        return recipe.warmup_lr
    return 0.5 * recipe.lr * (1.0 + math.cos(math.pi * (epoch - 1) / recipe.epochs))


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names epoch and step."""


def loss_terms(
    output: PromptOutput, batch: Batch, labels: Tensor, penalty: CMALoss, weight: float, processes: int
) -> dict[str, Tensor]:
    """Cross-entropy, penalty and objective of one batch.

    The gradients of DistributedDataParallel are means over processes, so the cross-entropy of this process's
    share is scaled such that its mean over processes is the mean over the whole batch. The penalty is the whole
    batch's on every process already.
    """
    summed = torch.nn.functional.cross_entropy(output.logits, labels, reduction="sum")
    cross_entropy = summed * (processes / batch.size)
    if weight == 0:  # CoOp, step for step: the penalty is not even computed
        return {"loss": cross_entropy, "cross_entropy": cross_entropy}
    cma = penalty(output.image_features, output.text_features, labels)
    return {"loss": cma_objective(cross_entropy, cma, weight), "cross_entropy": cross_entropy, "cma": cma}


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
        NonFiniteLossError: the loss is no longer a number.
        UserError: the checkpoint is another run's.
    """
    optimizer = torch.optim.SGD(
        learner.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    position = Position()
    if checkpointing is not None and checkpointing.resume:
        position = load_checkpoint(checkpointing.path, checkpointing.run, learner, optimizer, accelerator)
    accelerator.wait_for_everyone()
    model, prepared = accelerator.prepare(learner, optimizer)
    penalty = CMALoss(recipe.reduction, recipe.normalize, gather_across_processes=accelerator.num_processes > 1)
    per_epoch = data.steps_per_epoch()
    report = FitReport(steps=recipe.epochs * per_epoch)

    def save(at: Position) -> None:
        if checkpointing is not None:
            save_checkpoint(checkpointing.path, checkpointing.run, learner, optimizer, at, accelerator)

    learner.train()
    with _progress(report.steps, position.epoch * per_epoch + position.step, description, accelerator) as bar:
        for epoch in range(position.epoch, recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch, recipe)
            sums = dict(position.sums)
            for step, batch in enumerate(data.batches(epoch, position.step), start=position.step):
                output = model(batch.image_features)
                terms = loss_terms(
                    output, batch, batch.labels, penalty, recipe.cma_weight, accelerator.num_processes
                )
                prepared.zero_grad()
                accelerator.backward(terms["loss"])
                _stop_if_not_finite(terms["loss"], epoch, step)
                prepared.step()
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach())
                bar.update()
                done = step + 1
                if checkpointing is not None and checkpointing.every and done < per_epoch and done % checkpointing.every == 0:
                    save(Position(epoch, done, _mean_over_processes(sums, 1, accelerator)))
            report.losses = _mean_over_processes(sums, per_epoch, accelerator)
            rate = learning_rate(epoch, recipe)
            accelerator.log({**report.losses, "learning_rate": rate}, step=(epoch + 1) * per_epoch)
            bar.set_postfix(loss=f"{report.losses['loss']:.4f}", refresh=False)
            position = Position(epoch + 1, 0)
            save(position)
    learner.eval()
    _release(accelerator, learner)
    return report


def _release(accelerator: Accelerator, learner: Learner) -> None:
    """Let go of what `prepare` keeps, so that the next fit of this process starts clean."""
    accelerator.free_memory()
    # Mixed precision wraps `forward` on the instance; the class's own is what evaluation calls under autocast.
    learner.__dict__.pop("forward", None)
    learner.__dict__.pop("_original_forward", None)


def _stop_if_not_finite(loss: Tensor, epoch: int, step: int) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteLossError(
            f"Expected a finite loss, got {float(loss)} in step {step} of epoch {epoch} (both from 0); "
            "try a smaller learning rate, or --mixed-precision no."
        )


@contextmanager
def _progress(total: int, initial: int, description: str, accelerator: Accelerator) -> Iterator[tqdm]:
    bar = tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit="step",
        leave=False,
        disable=None if accelerator.is_main_process else True,
    )
    with bar:
        yield bar


def _mean_over_processes(sums: dict[str, float], steps: int, accelerator: Accelerator) -> dict[str, float]:
    names = sorted(sums)
    means = torch.tensor([[sums[name] / steps for name in names]], device=accelerator.device)
    gathered = accelerator.gather(means).mean(dim=0).tolist()
    return dict(zip(names, gathered, strict=True))


@torch.no_grad()
def evaluate(
    learner: Learner, features: Tensor, labels: Tensor, accelerator: Accelerator, batch_size: int = 100
) -> Evaluation:
    """Figures of `learner` over image features ``[N, D]`` and labels ``[N]``; every process takes its share.

    The result does not depend on the number of processes.
    """
    learner.eval()
    count, classes = len(labels), len(learner.class_names)
    share = Share(accelerator.process_index, accelerator.num_processes)
    mine = torch.tensor(share.of(range(count)), dtype=torch.long)
    rows = []
    with accelerator.autocast():
        text = None if learner.conditioned_on_image else learner.text_features()
        for chunk in mine.split(batch_size):
            image, label = features[chunk].to(accelerator.device), labels[chunk].to(accelerator.device)
            output = learner(image, text)
            cosines = (output.logits / learner.backbone.scale).double()
            own = cosines.gather(1, label[:, None])[:, 0]
            rows.append(torch.stack([output.logits.argmax(dim=1).double(), own, cosines.mean(dim=1)], dim=1))
    table = torch.cat(rows) if rows else torch.zeros(0, 3, dtype=torch.float64, device=accelerator.device)
    table = _gather_in_order(table, count, accelerator).cpu()  # [N, 3]
    predictions, target = table[:, 0].long(), labels.cpu()
    per_class = per_class_accuracy(predictions, target, classes).tolist()
    return Evaluation(
        accuracy=float(accuracy(predictions, target)),
        per_class=[None if math.isnan(value) else value for value in per_class],
        class_similarity=float(table[:, 1].mean()),
        modal_similarity=float(table[:, 2].mean()),
        images=count,
    )


def _gather_in_order(table: Tensor, count: int, accelerator: Accelerator) -> Tensor:
    """Rows of all processes in the order of the items (process r holds rows r, r+P, …)."""
    processes = accelerator.num_processes
    if processes == 1:
        return table
    longest = math.ceil(count / processes)
    padded = torch.nn.functional.pad(table, (0, 0, 0, longest - len(table)))
    gathered: Tensor = accelerator.gather(padded[None])  # [P, longest, 3]
    return gathered.transpose(0, 1).reshape(processes * longest, -1)[:count]
