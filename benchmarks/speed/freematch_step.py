"""Whole steps of FreeMatch on images of CIFAR-10's size, and what the recipe's 2^20 of them would take.

python benchmarks/speed/freematch_step.py --device cuda --precision bf16 --steps 200

Augmentation, forward, losses, backward, optimiser and average, as `cma-tune semi-supervised` runs them, with
and without the interplay losses, on random images: 64 labelled and 448 unlabelled ones a step on WRN-28-2.
"""

from __future__ import annotations

import argparse
import time

import torch
from accelerate import Accelerator
from speed_options import leave, parse, precision_option, timing_options
from speed_tools import synchronize

from cma_tune.companion.algorithms import algorithm
from cma_tune.companion.image_sets import ImageSet
from cma_tune.companion.loop import Schedule, Trained, fit
from cma_tune.companion.networks import network
from cma_tune.companion.objective import Objective
from cma_tune.companion.pools import Pool
from cma_tune.companion.steps import Steps
from cma_tune.companion_run import FULL_STEPS
from cma_tune.data.batches import Share
from cma_tune.losses import InterplayLoss

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
WEIGHTS = {"FreeMatch": (0.0, 0.0), "FreeMatch + MI": (0.1, 0.0), "FreeMatch + HD": (0.0, 0.1)}


def random_images(count: int) -> ImageSet:
    """As CIFAR-10, with fewer images: how many there are does not change a step."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pool = Pool(pixels, torch.arange(count) % 10)
    names = tuple(str(number) for number in range(10))
    return ImageSet("random", "made", names, pool, None, pool, pool, (127.5,) * 3, (127.5,) * 3)


def seconds_a_step(
    options: argparse.Namespace, accelerator: Accelerator, images: ImageSet, weights: tuple[float, float]
) -> float:
    """Of `--steps` steps, after three that warm up."""
    torch.manual_seed(0)
    device = accelerator.device
    method = algorithm("freematch", 10, len(images.train))
    trained = Trained(network(options.network, 10), method, 0.999).to(device)
    unlabelled = options.batch * options.ratio
    data = Steps(images, list(range(40)), options.batch, unlabelled, True, 1, 0.5, Share(), device)
    objective = Objective(method, InterplayLoss(*weights) if any(weights) else None)

    def run(steps: int) -> float:
        started = time.perf_counter()
        fit(trained, data, objective, Schedule(steps), accelerator, lambda network, step: {})
        synchronize(options.device)
        return time.perf_counter() - started

    run(min(3, options.steps))
    return run(options.steps) / options.steps


def main() -> None:
    """One line for FreeMatch alone and with either loss."""
    parser = timing_options(__doc__.splitlines()[0] if __doc__ else "")
    precision_option(parser)
    parser.add_argument("--steps", type=int, default=5, help="of a measurement")
    parser.add_argument("--batch", type=int, default=64, help="labelled images a step")
    parser.add_argument("--ratio", type=int, default=7, help="unlabelled images for each")
    parser.add_argument("--network", default="wrn-28-2")
    options = parse(parser)
    # The device is accelerate's own choice; a GPU that is there is used.
    accelerator = Accelerator(
        cpu=options.device == "cpu", mixed_precision=PRECISIONS.get(options.precision, "no")
    )
    images = random_images(max(1000, options.batch * options.ratio))
    best = dict.fromkeys(WEIGHTS, float("inf"))
    for _ in range(options.repeats):
        for name, weights in WEIGHTS.items():
            best[name] = min(best[name], seconds_a_step(options, accelerator, images, weights))
    rows: list[dict[str, object]] = [
        {
            "method": name,
            "images a step": options.batch * (1 + 2 * options.ratio),
            "seconds a step": taken,
            "steps a second": 1 / taken,
            "2^20 steps, hours": taken * FULL_STEPS / 3600,
            "more than FreeMatch, %": 100 * (taken / best["FreeMatch"] - 1),
        }
        for name, taken in best.items()
    ]
    leave("freematch_step", options, rows)


if __name__ == "__main__":
    main()
