"""Train a classifier on few labels and many images without one."""

from __future__ import annotations

from cma_tune.companion.runs import each_companion_run
from cma_tune.companion_options import SemiSupervisedConfig
from cma_tune.records import Record

PROTOCOL = "semi-supervised"


def semi_supervised(config: SemiSupervisedConfig) -> list[Record]:
    """Run every number of labels and seed with the config's algorithm.

    Raises:
        UserError: see `each_companion_run`.
    """
    return each_companion_run(PROTOCOL, config)
