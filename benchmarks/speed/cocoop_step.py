"""CoCoOp's step, forward and backward: the plain path against the packed one.

python benchmarks/speed/cocoop_step.py

Batch 1, 4 context tokens and 100 classes are the reference's setting for Caltech101.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from speed_options import PRECISIONS, leave, numbers, parse, step_options
from speed_tools import PlainPrompts, in_turns, memory, print_memory, random_backbone, real_names
from torch.nn.functional import cross_entropy, normalize

from cma_tune.learners import CoCoOp, CoOp
from cma_tune.learners.coop import ContextOptions


def make(options: argparse.Namespace, batch: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of both sides."""
    backbone = random_backbone(options.model, options.device)
    names = real_names(options.classes)
    learner = CoCoOp(backbone, names, ContextOptions(4))
    plain = PlainPrompts(CoOp(backbone, names, ContextOptions(4)))
    autocast = PRECISIONS[options.precision]
    generator = torch.Generator().manual_seed(0)
    width = backbone.encode_texts(["a"]).shape[-1]
    images = normalize(torch.randn(batch, width, generator=generator), dim=-1).to(options.device)
    labels = torch.arange(batch, device=options.device)

    def step(packed: bool) -> None:
        with torch.autocast(options.device, dtype=autocast, enabled=autocast is not None):
            contexts = learner.context + learner.meta_net(images)[:, None, :]
            text = None if packed else plain(contexts)
            cross_entropy(learner(images, text).logits, labels).backward()

    return {"plain": lambda: step(False), "packed": lambda: step(True)}


def main() -> None:
    """Measure batches of one and of four, or the memory of one side."""
    parser = step_options(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=numbers, default=[1, 4])
    options = parse(parser)
    if options.memory_of:
        print_memory(make(options, options.batch[0]), options)
        return
    rows: list[dict[str, object]] = []
    for batch in options.batch:
        best = in_turns(make(options, batch), options)
        settings = ("--model", options.model, "--classes", str(options.classes), "--batch", str(batch))
        rows.append(
            {
                "batch": batch,
                "classes": options.classes,
                "context tokens": 4,
                "plain s": best["plain"],
                "packed s": best["packed"],
                "times faster": best["plain"] / best["packed"],
                "plain GB": memory(options, "plain", *settings),
                "packed GB": memory(options, "packed", *settings),
            }
        )
        print(rows[-1], flush=True)
    leave("cocoop_step", options, rows)


if __name__ == "__main__":
    main()
