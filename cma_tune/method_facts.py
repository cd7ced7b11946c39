"""What is known of the methods before anything is loaded. Standard library only."""

from __future__ import annotations

from typing import Any

COOP: dict[str, Any] = {
    "optimizer": "sgd",
    "batch_size": 32,
    "lr": 0.002,
    "warmup_lr": 1e-5,
    "schedule": "cosine",
    "weight_decay": 5e-4,
}
"""CoOp's optimiser, which the other prompt learners share; its epochs depend on the shots."""

PROBE: dict[str, Any] = {"optimizer": "adamw", "batch_size": 8, "lr": 0.001, "weight_decay": 0.01}
"""Out of the values that Lin et al. 2023 choose among on validation images."""

FULL_BATCH = 1_000_000
"""A batch of all images, however many they are."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "tcp": {"optimizer": "adam", "epochs": 50},
    "linear_probe": PROBE,
    "linear_probe_text": PROBE,
    "cross_modal_probe": PROBE,
    # The paper's (sec. 4.1). It names no weight decay: AdamW's default.
    "tip_adapter_f": {
        **{"optimizer": "adamw", "epochs": 20, "batch_size": 256},
        **{"lr": 0.001, "warmup_lr": 0.001, "weight_decay": 0.01},
    },
    # Batch and learning rate are the paper's (sec. 4.1); it names no optimiser.
    "clip_adapter": {"optimizer": "adam", "lr": 1e-5, "weight_decay": 0.0},
    # Full batches; lr multiplies the steps that follow from the data.
    "lp_plus_plus": {
        **{"epochs": 300, "batch_size": FULL_BATCH, "lr": 1.0, "warmup_lr": 1.0},
        **{"schedule": "constant", "weight_decay": 0.0},
    },
    "vpt": {"epochs": 5, "batch_size": 4, "lr": 0.0025},
    "ivlp": {"epochs": 5, "batch_size": 4, "lr": 0.0035},
    "maple": {"epochs": 5, "batch_size": 4, "lr": 0.0035},
    "promptsrc": {"epochs": 20, "batch_size": 4, "lr": 0.0025},
    # The paper's (sec. 4) and its code's; the cosine goes by epochs here.
    "lora": {
        **{"optimizer": "adamw", "epochs": None, "steps_per_shot": 500},
        **{"lr": 2e-4, "warmup_lr": 2e-4, "weight_decay": 0.01},
    },
}
"""The methods whose optimiser is not CoOp's: what differs."""

BLOCKS: dict[str, tuple[str, ...]] = {
    "coop": ("context",),
    "cocoop": ("context",),
    "kgcoop": ("context", "kgcoop"),
    "prograd": ("context", "prograd"),
    "tcp": ("context", "tcp"),
    "linear_probe": (),
    "linear_probe_text": (),
    "cross_modal_probe": (),
    "tip_adapter": ("tip",),
    "tip_adapter_f": ("tip",),
    "clip_adapter": ("clip_adapter",),
    "lp_plus_plus": (),
    "vpt": ("vpt",),
    "ivlp": ("ivlp",),
    "maple": ("maple",),
    "promptsrc": ("promptsrc",),
    "lora": ("lora",),
}
"""The groups of options that a method reads; those of other methods don't decide what a run is."""

OWN_CLASSES: dict[str, str] = {
    "linear_probe": "a row for each class",
    "linear_probe_text": "a row for each class",
    "cross_modal_probe": "a row for each class",
    "tip_adapter": "a cache of their images",
    "tip_adapter_f": "a cache of their images",
    "lp_plus_plus": "a row for each class",
}
"""Methods whose parameters belong to the classes they were learned on, and what these parameters are."""

TRAINS_IMAGES: tuple[str, ...] = ("vpt", "ivlp", "maple", "promptsrc", "lora")
"""Methods that learn on the image side too, or may, so that image features change as they learn."""

UNTRAINED: tuple[str, ...] = ("tip_adapter",)
"""Methods without a loss to minimise."""


def unused_blocks(learner: str) -> set[str]:
    """Groups of options that `learner` does not read."""
    return {block for blocks in BLOCKS.values() for block in blocks} - set(BLOCKS[learner])


def unread_options(config: object, learner: str) -> list[str]:
    """Names of options that were given values of their own and mean nothing, as ``kgcoop.weight`` may.

    They are those of other methods, and those of training for a method that trains nothing.

    Args:
        config: holds a block for every group of options, by its name.
        learner: the method.
    """
    unread = []
    for name in [*sorted(unused_blocks(learner)), *(["optim"] if learner in UNTRAINED else [])]:
        given = getattr(config, name)
        plain = type(given)()
        unread += [f"{name}.{key}" for key in vars(given) if getattr(given, key) != getattr(plain, key)]
    return unread


def default_optimizer(learner: str) -> dict[str, Any]:
    """The method's optimiser by entries of `OptimConfig`; without epochs where they are CoOp's."""
    return COOP | OPTIMIZERS.get(learner, {})
