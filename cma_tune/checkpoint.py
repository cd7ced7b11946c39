"""Where a run stands, as one safetensors file that is replaced in one step."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cma_tune.errors import UserError
from cma_tune.files import write_atomically

FORMAT = 1


@dataclass
class Position:
    """The next step to take.

    Attributes:
        epoch, step: both from 0.
        sums: loss terms of this epoch's steps so far, summed.
        losses: mean loss terms of the epoch before.
        history: figures of the evaluations so far.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    run: str,
    learner: nn.Module,
    optimizer: Optimizer,
    position: Position,
    accelerator: Accelerator,
) -> None:
    """Write weights, optimiser, random states and position; called by every process, written by the main one.

    The learning rate is a function of the epoch alone, so the position holds the schedule.

    Args:
        path: the checkpoint file.
        run: digest of what the run is; another run's checkpoint is refused when read.
        learner, optimizer: unwrapped.
        position: the next step to take.
        accelerator: the processes; each one's random state is kept.
    """
    tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    state = optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    tensors |= _random_states(accelerator)
    if not accelerator.is_main_process:
        return
    metadata = {
        "format": FORMAT,
        "run": run,
        "position": asdict(position),
        "param_groups": state["param_groups"],
        "optimizer_scalars": scalars,
        "python_random": random.getstate(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
    }
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = {"checkpoint": json.dumps(metadata)}
    write_atomically(path, lambda temporary: save_file(contiguous, str(temporary), text))


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """Random states of all processes, ``[processes, bytes]`` each."""
    states = {"random.cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(accelerator.device)
    gathered: dict[str, Tensor] = accelerator.gather(
        {name: state[None].to(accelerator.device) for name, state in states.items()}
    )
    return gathered


def load_checkpoint(
    path: Path, run: str, learner: nn.Module, optimizer: Optimizer, accelerator: Accelerator
) -> Position:
    """Put everything back as `save_checkpoint` found it.

    Returns:
        The next step to take; the start if there is no checkpoint.

    Raises:
        UserError: the file is another run's, or can't be read.
    """
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        # A kill inside a write leaves its temporary file behind; nothing ever reads it.
        if accelerator.is_main_process:
            left.unlink(missing_ok=True)
    if not path.is_file():
        return Position()
    metadata, tensors = _read(path)
    if metadata["run"] != run:
        raise UserError(
            f"Expected a checkpoint of this run at {path}, got one of another run (its config, the dataset's "
            "split or the backbone was another); choose another --output or delete it."
        )
    learner.load_state_dict(_below(tensors, "learner."))
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*_below(tensors, "optimizer.").items(), *metadata["optimizer_scalars"].items()]:
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": metadata["param_groups"]})
    _restore_random_states(tensors, metadata["python_random"], accelerator)
    if accelerator.scaler is not None and metadata["scaler"]:
        accelerator.scaler.load_state_dict(metadata["scaler"])
    return Position(**metadata["position"])


def read_position(path: Path) -> Position | None:
    """Where a run stands that another process may be at; None if there is no checkpoint."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            return Position(**json.loads((handle.metadata() or {})["checkpoint"])["position"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        return None  # none yet, or gone meanwhile


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_checkpoint` wrote: metadata and tensors."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = json.loads((handle.metadata() or {})["checkpoint"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"Expected a checkpoint at {path}, but it can't be read ({error}); delete it to start anew."
        ) from None
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"Expected a checkpoint of format {FORMAT} at {path}, got {metadata.get('format')}; "
            "delete it to start anew."
        )
    return metadata, tensors


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_random_states(tensors: dict[str, Tensor], python_random: Any, accelerator: Accelerator) -> None:
    rank = accelerator.process_index
    version, numbers, gauss = python_random
    random.setstate((version, tuple(numbers), gauss))
    if rank < len(tensors["random.cpu"]):  # a run may go on with more processes than it was stopped with
        torch.set_rng_state(tensors["random.cpu"][rank])
        if accelerator.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"][rank], accelerator.device)
