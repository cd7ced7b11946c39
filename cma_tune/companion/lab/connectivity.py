"""Linear mode connectivity: what lies between two networks of one initialisation (the paper's Fig. 3c).

Source of the test: Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis" (2020).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from cma_tune.companion.lab.trainings import leave_experiment, part_of_experiment
from cma_tune.companion.networks import Network
from cma_tune.companion.runs import evaluator
from cma_tune.companion.setup import CompanionSetup
from cma_tune.companion_options import LabConfig
from cma_tune.companion_run import CompanionRun
from cma_tune.data.images import generator_seed
from cma_tune.records import Record

STATISTICS_BATCH, STATISTICS_IMAGES = 500, 10_000
"""Images in a batch that statistics of BatchNorm are re-estimated from, and in all batches at most."""


def train_connected(setup: CompanionSetup, run: CompanionRun) -> Record:
    """Train two networks a learning rate, evaluate the line between them, and leave curves and record.

    Both start alike and see the same images in different orders. At every ω, the ends included, the
    statistics of BatchNorm are re-estimated on training images; the ends with the statistics of their
    training stand beside, as entries with ``own_statistics`` 1.
    """
    config, started = run.config, time.perf_counter()
    assert isinstance(config, LabConfig)
    curves, figures = [], {}
    for rate in config.rates:
        ends = [_end(setup, run, rate, number) for number in (0, 1)]
        line = list(line_of(setup, config, ends[0], ends[1]))
        curves += [{"rate": rate, **entry} for entry in line]
        of_line = [entry["accuracy"] for entry in line if not entry["own_statistics"]]
        figures[f"accuracy_barrier_lr_{rate:g}"] = (of_line[0] + of_line[-1]) / 2 - min(of_line)
        figures[f"accuracy_of_ends_lr_{rate:g}"] = (of_line[0] + of_line[-1]) / 2
        figures[f"distance_of_ends_lr_{rate:g}"] = distance(ends[0], ends[1])
    batches = statistics_batches(setup, config)
    batch_norm = {
        "estimated_on": "training images without augmentation, at every ω",
        "images": sum(map(len, batches)),
        "batches": len(batches),
    }
    training = {"batch_norm": batch_norm, "orders": [order_seed(config.seeds[0], n) for n in (0, 1)]}
    return leave_experiment(setup, run, ends[0], figures, curves, training, started)


def order_seed(seed: int, number: int) -> int:
    """Seed of the order and the noise of the images for the first (0) and the second (1) network."""
    return generator_seed("connectivity", seed, number)


def _end(setup: CompanionSetup, run: CompanionRun, rate: float, number: int) -> Network:
    config = replace(run.config, schedule=replace(run.config.schedule, lr=rate))
    order = order_seed(config.seeds[0], number)
    trained, _ = part_of_experiment(setup, run, f"lr-{rate:g}-order-{number}", config, order)
    return trained.evaluated()


def line_of(
    setup: CompanionSetup, config: LabConfig, first: Network, second: Network
) -> Iterator[dict[str, float]]:
    """Figures at every ω from 0 (`first`) to 1 (`second`), and of both ends with statistics of their own."""
    evaluate = evaluator(setup, config)
    batches = statistics_batches(setup, config)
    for number in range(config.points):
        omega = number / (config.points - 1)
        network = interpolated(first, second, omega)
        if number in (0, config.points - 1):
            end = (second if number else first).eval()
            yield {"omega": omega, "own_statistics": 1.0, **evaluate(end, 0)}
        re_estimate(network, batches, setup)
        yield {"omega": omega, "own_statistics": 0.0, **evaluate(network, 0)}


@torch.no_grad()
def interpolated(first: Network, second: Network, omega: float) -> Network:
    """A network with parameters (1 − ω)·first + ω·second; its buffers are `first`'s."""
    made = copy.deepcopy(first)
    for own, other in zip(made.parameters(), second.parameters(), strict=True):
        own.copy_((1 - omega) * own + omega * other)
    return made.requires_grad_(False)


@torch.no_grad()
def distance(first: Network, second: Network) -> float:
    """Euclidean distance of all parameters."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    squares = [(a.double() - b.double()).square().sum() for a, b in pairs]
    return float(torch.stack(squares).sum().sqrt())


def statistics_batches(setup: CompanionSetup, config: LabConfig) -> list[Tensor]:
    """Positions of training images in batches of near equal sizes, in an order of the run's seed alone."""
    labelled = torch.tensor(setup.labelled(config))
    generator = torch.Generator().manual_seed(generator_seed("statistics", config.seeds[0]))
    order = labelled[torch.randperm(len(labelled), generator=generator)][:STATISTICS_IMAGES]
    return list(order.tensor_split(-(-len(order) // STATISTICS_BATCH)))


def re_estimate(network: Network, batches: list[Tensor], setup: CompanionSetup) -> None:
    """Set the statistics of every BatchNorm to their means over the batches; the network ends in evaluation.

    Args:
        network: is changed in place.
        batches: positions of training images; every process takes its share of each.
        setup: for images and device.
    """
    prepare, images = setup.prepare(setup.config), setup.images.train.images
    share = setup.share
    mine = (images[batch[share.rank :: share.processes]] for batch in batches)
    update_bn((prepare(part.to(setup.accelerator.device)) for part in mine), network)
    network.eval()
