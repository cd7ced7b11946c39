"""Run one of the laboratory's experiments."""

from __future__ import annotations

from pathlib import Path

from cma_tune.companion.lab.connectivity import train_connected
from cma_tune.companion.lab.grokking import AdditionSetup, as_addition, train_grokking
from cma_tune.companion.lab.temperature import train_temperatures
from cma_tune.companion.runs import Train, each_companion_run, train_one
from cma_tune.companion_options import LabConfig
from cma_tune.companion_run import expand_companion

PROTOCOL = "lab"

EXPERIMENTS: dict[str, Train] = {
    "dynamics": train_one,
    "temperature": train_temperatures,
    "connectivity": train_connected,
}
"""Those on images: what makes one run of each."""


def lab(config: LabConfig) -> list[Path]:
    """Run an experiment for every number of labels and seed, skipping finished ones.

    Returns:
        Folders of the records.

    Raises:
        UserError: see `each_companion_run`.
    """
    if config.experiment == "grokking":
        config = as_addition(config)
        each_companion_run(PROTOCOL, config, train_grokking, AdditionSetup)
    else:
        each_companion_run(PROTOCOL, config, EXPERIMENTS[config.experiment])
    return [run.folder() for run in expand_companion(PROTOCOL, config)]
