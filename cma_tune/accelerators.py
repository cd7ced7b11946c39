"""Processes, device, precision and trackers of a command: one `Accelerator`, the same way everywhere."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import get_args

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin

from cma_tune.config import Precision
from cma_tune.errors import UserError


def make_accelerator(precision: Precision | None, tracker: str | None, folder: str) -> Accelerator:
    """An `Accelerator` for this process.

    Args:
        precision: what is computed in; None is accelerate's own setting.
        tracker: accelerate tracker, if any.
        folder: of the results, where trackers log.

    Raises:
        UserError: the device can't compute in the precision.
    """
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=tracker,
        project_dir=folder,
        # A batch is a step, whatever accelerate is configured to.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # The others wait while one process encodes a whole dataset.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        # Else processes without a GPU would not find each other, and each would do everything.
        cpu=int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available(),
    )
    found = accelerator.mixed_precision
    if found not in get_args(Precision):
        raise UserError(f"Expected precision {', '.join(get_args(Precision))}, got accelerate's '{found}'.")
    if found == "fp16" and not accelerator.native_amp:
        raise UserError(
            f"Expected a GPU for precision fp16, got device '{accelerator.device.type}'; "
            "use --mixed-precision bf16 or no."
        )
    return accelerator
