"""The whole line in about a minute on embedded data: zero-shot, CoOp, CoOp+CMA, base-to-novel, report."""

from __future__ import annotations

import time
from pathlib import Path

from cma_tune.build import Setup
from cma_tune.config import (
    AugmentConfig,
    BaseToNovelConfig,
    ContextConfig,
    FewShotConfig,
    LossConfig,
    OptimConfig,
    ZeroShotConfig,
)
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.report import comparison_sentence, report

NEXT = (
    "Next, with a real backbone on your own images (a folder of class folders): "
    "cma-tune few-shot --dataset folder:PATH --backbone ViT-B-16-quickgelu --pretrained openai "
    "--shots 1,4,16 --seeds 1,2,3 --weights 0,0.1,0.5 --loss.reduction mean --loss.normalize true "
    "--output runs/mine"
)


def digits_config(output: str) -> FewShotConfig:
    """Few-shot on `digits`: CoOp and CoOp+CMA over some shots and seeds.

    ``configs/quickstart.yaml`` holds the same for those who start from it; the package ships without configs.
    """
    return FewShotConfig(
        dataset="digits",
        output=output,
        learner="coop",
        context=ContextConfig(tokens=4),
        shots=[1, 4, 16],
        seeds=[1, 2],
        weights=[0.0, 0.3],
        loss=LossConfig("mean", True),
        optim=OptimConfig(epochs=30, lr=0.02),
        augment=AugmentConfig(scale_min=0.6, flip=0.0),  # a mirrored digit is another sign
        train_features="stored",
        views=4,
    )


def shapes_config(output: str) -> BaseToNovelConfig:
    """Base-to-novel on `shapes` with some λ; ``configs/quickstart_shapes.yaml`` holds the same."""
    return BaseToNovelConfig(
        dataset="shapes",
        output=output,
        learner="coop",
        context=ContextConfig(tokens=4),
        shots=[16],
        seeds=[1, 2],
        weights=[0.0, 0.3, 0.7],
        loss=LossConfig("mean", True),
        optim=OptimConfig(epochs=15, lr=0.02),
        augment=AugmentConfig(scale_min=0.6),
        train_features="stored",
        views=2,
    )


def quickstart(output: str) -> None:
    """Run it, print the tables, draw the figures, say what the tables show and what to do next."""
    started = time.perf_counter()
    digits, shapes = digits_config(output), shapes_config(output)
    setup = Setup(digits)
    # The zero-shot run shares dataset, backbone and stored features with the few-shot runs.
    zero_shot(ZeroShotConfig(dataset=digits.dataset, output=output), setup)
    records = few_shot(digits, setup)
    on_shapes = Setup(shapes, backbone=setup.backbone)
    zero_shot(ZeroShotConfig(dataset=shapes.dataset, output=output), on_shapes)
    records += base_to_novel(shapes, on_shapes)
    if setup.accelerator.is_main_process:
        report(output)
    shown = comparison_sentence(records)
    if shown:
        setup.say(f"\n{shown}")
    seconds = time.perf_counter() - started
    setup.say(f"\n{seconds:.0f} s in all; records, prompts and figures in {Path(output)}.\n{NEXT}")
