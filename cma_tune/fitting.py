"""What training loops share: optimiser, gradients, scaler, clean-up, sums over processes, progress."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from cma_tune.errors import UserError


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the message names epoch and step."""


def make_optimizer(
    kind: Literal["sgd", "adam", "adamw"],
    groups: list[dict[str, Any]],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimiser over parameter groups; `momentum` is SGD's."""
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[kind](groups, lr=lr, weight_decay=weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int) -> None:
    """Set the learning rate of every group before step number `step` from 0.

    It is times the group's own ``rate``, and 0 but at each ``every``-th step, where a group says so.
    """
    for group in optimizer.param_groups:
        moves = (step + 1) % group.get("every", 1) == 0
        group["lr"] = rate * group.get("rate", 1.0) if moves else 0.0


def backward(
    loss: Tensor,
    guide: Tensor | None,
    parameters: Sequence[nn.Parameter],
    accelerator: Accelerator,
    guide_weight: float = 1.0,
) -> None:
    """Gradients of `loss` into the parameters; with a guide, without the part that opposes its gradient.

    Args:
        loss: scalar whose mean over processes is the batch's.
        guide: another such scalar over the same graph, if any.
        parameters: those that are trained.
        accelerator: the processes.
        guide_weight: how much of that part is taken out.
    """
    if guide is None:
        accelerator.backward(loss)
        return
    # The loss's scale too, so that neither underflows in fp16; the projection does not depend on it.
    scaled = accelerator.scaler.scale(guide) if accelerator.scaler is not None else guide
    own = torch.autograd.grad(scaled, parameters, retain_graph=True)
    accelerator.backward(loss)
    for parameter, gradient in zip(parameters, own, strict=True):
        assert parameter.grad is not None
        guiding = accelerator.reduce(gradient, reduction="mean")
        parameter.grad.copy_(project_gradient(parameter.grad, guiding, guide_weight))


def project_gradient(gradient: Tensor, guide: Tensor, weight: float = 1.0) -> Tensor:
    """g, or g − w·(g·h/‖h‖²)·h where g·h < 0: less what opposes the guide's gradient h (ProGrad, sec. 3)."""
    product = (gradient * guide).sum()
    # Not finite gradients stay so: fp16's scaler has to see them.
    share = torch.where(product < 0, product / guide.square().sum(), product * 0)
    return gradient - weight * share * guide


def fresh_scaler(accelerator: Accelerator) -> None:
    """Set the loss scale of fp16 back to its start.

    It outlives a run; starting anew, a run does not depend on what its process did before.
    """
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(type(accelerator.scaler)().state_dict())


@contextmanager
def released(learner: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Let go of what `prepare` keeps, however the fit ends, so that this process's next one starts clean."""
    try:
        yield
    finally:
        learner.eval()
        accelerator.free_memory()
        # Mixed precision wraps `forward` on the instance; evaluation calls the class's own under autocast.
        learner.__dict__.pop("forward", None)
        learner.__dict__.pop("_original_forward", None)


def over_processes(terms: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Means over the processes: the terms of the whole batch, the same on every process."""
    mine = torch.stack([value.detach() for value in terms.values()])[None]  # [1, terms]
    gathered: Tensor = accelerator.gather(mine)  # [processes, terms]
    return dict(zip(terms, gathered.cpu().double().mean(dim=0).tolist(), strict=True))


def stop_if_not_finite(loss: float, where: str) -> None:
    """Raise `NonFiniteLossError` for a loss that is no number, naming the step."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"Expected a finite loss, got {loss} in {where}; "
            "try a smaller learning rate, or --mixed-precision no."
        )


def progress(total: int, done: int, description: str, accelerator: Accelerator) -> tqdm[Any]:
    """A bar over steps with the time left, on the main process and where there is a terminal."""
    quiet = None if accelerator.is_main_process else True  # None: quiet only where there is no terminal
    return tqdm(total=total, initial=done, desc=description, unit="step", leave=False, disable=quiet)


def gather_in_order(table: Tensor, count: int, accelerator: Accelerator) -> Tensor:
    """Rows of all processes in the order of the items (process r holds rows r, r+P, …)."""
    processes = accelerator.num_processes
    if processes == 1:
        return table
    longest = math.ceil(count / processes)
    padded = torch.nn.functional.pad(table, (0, 0, 0, longest - len(table)))
    gathered: Tensor = accelerator.gather(padded[None])  # [P, longest, width]
    return gathered.transpose(0, 1).reshape(processes * longest, -1)[:count]
