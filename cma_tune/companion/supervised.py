"""Train a classifier on labels alone."""

from __future__ import annotations

from cma_tune.companion.runs import each_companion_run
from cma_tune.companion_options import SupervisedConfig
from cma_tune.records import Record

PROTOCOL = "supervised"


def supervised(config: SupervisedConfig) -> list[Record]:
    """Run every number of labels and seed.

    Raises:
        UserError: see `each_companion_run`.
    """
    return each_companion_run(PROTOCOL, config)
