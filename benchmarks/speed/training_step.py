"""A whole training step of CoOp+CMA: the plain path with the image encoder in it, against ours.

python benchmarks/speed/training_step.py

Plain is the reference's step: a batch of 32 images through the image tower, all 77 tokens of 100 classes
through the text tower, the CMA loss class by class. Ours is live (image tower, packed text, batched loss) or
stored (image features read, not encoded). Images are decoded and cropped beforehand on all sides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cma_loss import loop
from speed_options import PRECISIONS, leave, parse, step_options
from speed_tools import PlainPrompts, in_turns, memory, print_memory, random_backbone, real_names
from torch.nn.functional import cross_entropy

from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextOptions
from cma_tune.losses import CMALoss, cma_objective

BATCH = 32
SIDES = ("plain", "live", "stored")


def main() -> None:
    """Measure one backbone."""
    parser = step_options(__doc__.splitlines()[0] if __doc__ else "", SIDES, "RN50,ViT-B-16")
    parser.add_argument("--classes", type=int, default=100)
    options = parse(parser)
    if options.memory_of:
        print_memory(make(options, options.model), options)
        return
    rows = [measure(options, name) for name in options.model.split(",")]
    leave("training_step", options, rows)


def make(options: argparse.Namespace, name: str) -> dict[str, Callable[[], object]]:
    """The steps of all sides over one backbone, and the loss alone."""
    device, classes = str(options.device), int(options.classes)
    backbone = random_backbone(name, device)
    names = real_names(classes)
    learner = CoOp(backbone, names, ContextOptions(16))
    plain = PlainPrompts(learner)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.002, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, *backbone.preprocessing.size, generator=generator).to(device)
    labels = torch.randint(classes, (BATCH,), generator=generator).to(device)
    stored = backbone.encode_image(images)
    penalty = CMALoss()
    autocast = PRECISIONS[options.precision]

    def step(side: str) -> None:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            if side == "plain":
                # The reference's image tower: the whole batch at once, in torch's default layout.
                with torch.no_grad():
                    features = torch.nn.functional.normalize(reference(images).float(), dim=-1)
                output = learner(features, plain(learner.context))
                cma = loop(output.image_features, output.text_features, labels)
            else:
                output = learner(stored if side == "stored" else backbone.encode_image(images))
                cma = penalty(output.image_features, output.text_features, labels)
            loss = cma_objective(cross_entropy(output.logits, labels), cma, 0.8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model: Any = random_backbone(name, device).model.to(memory_format=torch.contiguous_format)
    reference = model.encode_image
    output = learner(stored)
    image_features, text_features = output.image_features.detach(), output.text_features.detach()
    text_features.requires_grad_()

    def loss_alone() -> None:
        penalty(image_features, text_features, labels).backward()

    return {side: partial(step, side) for side in SIDES} | {"loss": loss_alone}


def measure(options: argparse.Namespace, name: str) -> dict[str, object]:
    """All sides over one backbone."""
    best = in_turns(make(options, name), options)
    settings = ("--model", name, "--classes", str(options.classes))
    row: dict[str, object] = {
        "backbone": name,
        "classes": options.classes,
        "plain s": best["plain"],
        "live s": best["live"],
        "stored s": best["stored"],
        "live, times faster": best["plain"] / best["live"],
        "stored, times faster": best["plain"] / best["stored"],
        "CMA loss, % of the stored step": 100 * best["loss"] / best["stored"],
        **{f"{side} GB": memory(options, side, *settings) for side in SIDES},
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
