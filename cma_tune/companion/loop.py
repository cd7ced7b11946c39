"""Train a network on labelled and unlabelled images, on any number of processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cma_tune.checkpoint import Position, load_checkpoint, save_checkpoint
from cma_tune.companion.algorithms import BatchOutputs
from cma_tune.companion.networks import Network, Output
from cma_tune.companion.objective import Objective
from cma_tune.companion.steps import Step, Steps
from cma_tune.data.batches import Share
from cma_tune.fitting import fresh_scaler, gather_in_order, progress, released, stop_if_not_finite
from cma_tune.processes import gather_rows
from cma_tune.train import Checkpointing


@dataclass(frozen=True)
class Schedule:
    """Optimiser and schedule; the defaults are the references'.

    Attributes:
        steps: K.
        lr: at the first step; at step k it is lr·cos(7πk/16K).
        momentum: of SGD, with Nesterov's correction unless it is 0.
        weight_decay: on all but biases and norms.
        ema: decay of the averaged weights; 0 keeps none.
        eval_every: steps between evaluations; the last step is always followed by one.
        eval_start: evaluate before the first step too.
    """

    steps: int
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.999
    eval_every: int = 1000
    eval_start: bool = False


class Trained(nn.Module):
    """All that a checkpoint keeps of a run: network, averaged weights, state of the algorithm.

    Attributes:
        network: is trained.
        algorithm: holds running averages of its own.
        average: a network with the exponential moving average of the weights; None where there is none.
    """

    def __init__(self, network: Network, algorithm: nn.Module, ema: float) -> None:
        super().__init__()
        self.network = network
        self.algorithm = algorithm
        self.average: Network | None = copy.deepcopy(network).requires_grad_(False) if ema else None

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the averaged weights towards the network's."""
        if self.average is not None:
            current = [parameter.detach() for parameter in self.network.parameters()]
            torch._foreach_lerp_(list(self.average.parameters()), current, 1 - decay)

    @torch.no_grad()
    def evaluated(self) -> Network:
        """The network to evaluate, in evaluation mode: averaged weights, current BatchNorm statistics."""
        if self.average is None:
            return self.network.eval()
        for own, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
            own.copy_(current)
        return self.average.eval()


Evaluate = Callable[[Network, int], dict[str, float]]
"""Figures of a network in evaluation mode after so many steps; called by every process."""


def learning_rate(step: int, schedule: Schedule) -> float:
    """lr·cos(7πk/16K), which ends at a fifth of the start (FixMatch)."""
    return schedule.lr * math.cos(7 * math.pi * step / (16 * schedule.steps))


def optimizer_of(network: nn.Module, schedule: Schedule) -> torch.optim.SGD:
    """SGD without decay on biases and norms, which are the parameters of one dimension."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, nesterov=schedule.momentum > 0)


def fit(
    trained: Trained,
    data: Steps,
    objective: Objective,
    schedule: Schedule,
    accelerator: Accelerator,
    evaluate: Evaluate,
    checkpointing: Checkpointing | None = None,
    description: str = "fit",
    channels_last: bool = False,
) -> list[dict[str, float]]:
    """Train the network in place.

    Args:
        trained: on the accelerator's device.
        data: every process's share of every step.
        objective: from the outputs of the whole batch to the loss.
        schedule: optimiser and schedule.
        accelerator: processes, precision, trackers.
        evaluate: figures of the averaged network, after every `eval_every` steps and at the end.
        checkpointing: where the run is saved and resumed from, if at all; `every` 0 saves at evaluations.
        description: of the progress bar.
        channels_last: memory layout of the images.

    Returns:
        One entry an evaluation: its figures, ``step``, ``learning_rate``, and the means since the one before
        of the loss and its terms.

    Raises:
        NonFiniteLossError: the loss is no longer a number; raised on every process, nothing is saved.
        UserError: the checkpoint is another run's.
    """
    network = trained.network
    optimizer = optimizer_of(network, schedule)
    fresh_scaler(accelerator)
    at = Position()
    if checkpointing is not None and checkpointing.resume:
        at = load_checkpoint(checkpointing.path, checkpointing.run, trained, optimizer, accelerator)
    accelerator.wait_for_everyone()
    network.train()
    model, stepper = accelerator.prepare(network, optimizer)
    every = checkpointing.every if checkpointing is not None else 0

    def save() -> None:
        if checkpointing is not None:
            save_checkpoint(checkpointing.path, checkpointing.run, trained, optimizer, at, accelerator)

    with (
        released(network, accelerator),
        progress(schedule.steps, at.step, description, accelerator) as bar,
    ):
        if schedule.eval_start and not at.step:
            figures = {"learning_rate": schedule.lr, **evaluate(trained.evaluated(), 0)}
            at.history.append({"step": 0.0, **figures})
            network.train()
        for number in range(at.step, schedule.steps):
            rate = learning_rate(number, schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate
            step = data.step(number)
            images = step.images.to(memory_format=torch.channels_last) if channels_last else step.images
            losses = objective(whole(model(images), step, network.classifier.weight))
            stepper.zero_grad()
            accelerator.backward(losses["loss"])
            values = _numbers(losses)
            stop_if_not_finite(values["loss"], f"step {number} (from 0)")
            stepper.step()
            trained.follow(schedule.ema)
            at.step = number + 1
            at.sums = {name: at.sums.get(name, 0.0) + value for name, value in values.items()}
            bar.update()
            evaluated = at.step % schedule.eval_every == 0 or at.step == schedule.steps
            if evaluated:
                figures = _evaluation(trained, at, rate, schedule, evaluate)
                accelerator.log({k: v for k, v in figures.items() if k != "step"}, step=at.step)
                bar.set_postfix({k: f"{figures[k]:.4g}" for k in ("loss", "accuracy") if k in figures})
                network.train()
            if (every and at.step % every == 0) or (evaluated and not every) or at.step == schedule.steps:
                save()
    return at.history


def whole(output: Output, step: Step, classifier: Tensor) -> BatchOutputs:
    """Outputs of the global batch on every process, with gradients, from this process's share of them."""
    width = output.logits.shape[1]
    rows = gather_rows(torch.cat([output.logits, output.features], dim=1).float())
    rows = torch.empty_like(rows).index_copy(0, step.order, rows)  # from the order of ranks to the batch's
    parts = rows.split(step.sizes)
    outputs = [Output(part[:, :width], part[:, width:]) if len(part) else None for part in parts]
    assert outputs[0] is not None
    return BatchOutputs(outputs[0], step.labels, outputs[1], outputs[2], step.indices, classifier)


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """All terms with one wait for the device."""
    return dict(
        zip(losses, torch.stack([v.detach().double() for v in losses.values()]).tolist(), strict=True)
    )


def _evaluation(
    trained: Trained, at: Position, rate: float, schedule: Schedule, evaluate: Evaluate
) -> dict[str, float]:
    since = at.step - (at.history[-1]["step"] if at.history else 0)
    means = {name: value / since for name, value in at.sums.items()}
    figures = evaluate(trained.evaluated(), at.step)
    entry = {"step": float(at.step), "learning_rate": rate, **means, **figures}
    at.history.append(entry)
    at.sums = {}
    return entry


@torch.no_grad()
def outputs_of(
    network: Network,
    images: Tensor,
    prepare: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
    batch_size: int,
) -> Output:
    """Logits ``[N, C]`` and features ``[N, D]`` of images ``[N, 3, H, W]``, in order, float32, on the CPU.

    Every process takes its share; the result is the same on all. `network` is in evaluation mode.

    Args:
        network: gives `Output`.
        images: uint8.
        prepare: from these to what the network takes, such as `normalize`.
        accelerator: processes and precision.
        batch_size: images a step of one process.

    Raises:
        ValueError: there are no images.
    """
    count = len(images)
    if not count:
        raise ValueError("Expected at least one image, got none.")
    share = Share(accelerator.process_index, accelerator.num_processes)
    mine = torch.tensor(share.of(range(count)), dtype=torch.long)
    rows = []
    # A process without an image still encodes one: its empty rows need their width.
    for chunk in (mine if len(mine) else torch.zeros(1, dtype=torch.long)).split(batch_size):
        with accelerator.autocast():
            output = network(prepare(images[chunk].to(accelerator.device)))
        rows.append(torch.cat([output.logits, output.features], dim=1).float())
    width = output.logits.shape[1]
    table = gather_in_order(torch.cat(rows)[: len(mine)], count, accelerator).cpu()
    return Output(table[:, :width], table[:, width:])
