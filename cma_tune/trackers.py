"""Accelerate's trackers: refused early where they can't be had, started and finished run by run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from cma_tune.errors import UserError, nearest


def check_tracker(name: str | None) -> None:
    """Accelerate leaves a tracker out in silence where its package is missing.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    if name is None or name in {str(tracker) for tracker in get_available_trackers()}:
        return
    if name in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"Expected the package of tracker '{name}', got none installed; pip install it.")
    known = sorted(LOGGER_TYPE_TO_CLASS)
    raise UserError(f"Expected a tracker out of {', '.join(known)}, got '{name}'{nearest(name, known)}.")


def start_trackers(accelerator: Accelerator, folder: Path, config: Mapping[str, Any]) -> None:
    """Start the trackers of one run, with its config, logging beside its record in `folder`."""
    # Accelerate took the first folder it was told for its logs.
    accelerator.project_configuration.logging_dir = str(folder)
    flat: dict[str, Any] = {}
    for name, value in config.items():
        entries = value if isinstance(value, dict) else {"": value}
        for entry, inner in entries.items():
            plain = isinstance(inner, int | float | bool)
            flat[f"{name}.{entry}".strip(".")] = inner if plain else str(inner)
    accelerator.init_trackers("cma_tune", config=flat)


def finish_trackers(accelerator: Accelerator) -> None:
    """End the trackers of a run, and nothing else: `end_training` would also tear the processes apart."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
