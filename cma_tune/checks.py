"""Mistakes in a config, found before anything is loaded. Standard library only."""

from __future__ import annotations

import math
from pathlib import Path

from cma_tune.config import FewShotConfig, ZeroShotConfig
from cma_tune.errors import UserError


def check(config: ZeroShotConfig) -> None:
    """Check all values before anything is loaded.

    Raises:
        UserError: naming the flag, what is expected and what came.
    """
    _at_least("workers", config.workers, 0)
    _at_least("eval_batch_size", config.eval_batch_size, 1)
    if Path(config.output).exists() and not Path(config.output).is_dir():
        raise UserError(f"Expected a folder for --output, got the file {config.output}.")
    if isinstance(config, FewShotConfig):
        _check_sweep(config)
        _check_training(config)


def _check_sweep(config: FewShotConfig) -> None:
    for name, values in (("shots", config.shots), ("seeds", config.seeds), ("weights", config.weights)):
        if not values:
            raise UserError(f"Expected at least one value for --{name}, got none.")
        if len(set(values)) < len(values):
            raise UserError(f"Expected every value of --{name} once, got {values}.")
    for shots in config.shots:
        _at_least("shots", shots, 1)
    for seed in config.seeds:
        if not 0 <= seed < 2**32:  # NumPy's generator takes no others
            raise UserError(f"Expected --seeds from 0 to {2**32 - 1}, got {seed}.")
    for weight in config.weights:
        if not isinstance(weight, str) and not 0 <= weight <= 1:
            raise UserError(f"Expected λ between 0 and 1 in --weights, got {weight}.")
    if "recipe" in config.weights and (config.loss.reduction, config.loss.normalize) != ("mean", True):
        raise UserError(
            "Expected the release's form of the loss for its λ "
            f"(--loss.reduction mean --loss.normalize true), got reduction {config.loss.reduction} "
            f"and normalize {str(config.loss.normalize).lower()}; "
            "use a config of configs/ or numbers in --weights."
        )
    if config.select_weight and len(config.weights) < 2:
        raise UserError(f"Expected several λ in --weights to select among, got {config.weights}.")


def _check_training(config: FewShotConfig) -> None:
    _at_least("context.tokens", config.context.tokens, 1)
    if config.context.per_class and config.learner == "cocoop":
        raise UserError(
            "Expected a shared context for cocoop, got class-specific ones; set --context.per_class false."
        )
    _at_least("views", config.views, 0)
    if config.views and config.train_features == "live":
        raise UserError(
            f"Expected --views with --train_features stored, got {config.views} views of live features; "
            "live features are encoded anew in every epoch."
        )
    _at_least("text_chunk", config.text_chunk, 0)
    if not 0 < config.text_memory < math.inf:
        raise UserError(f"Expected a finite --text_memory above 0, in GiB, got {config.text_memory}.")
    if not 0 <= config.image_memory < math.inf:
        raise UserError(f"Expected a finite --image_memory of at least 0 GiB, got {config.image_memory}.")
    _at_least("checkpoint_every", config.checkpoint_every, 0)
    optim = config.optim
    _at_least("optim.batch_size", optim.batch_size, 1)
    if optim.epochs is not None:
        _at_least("optim.epochs", optim.epochs, 1)
    if not 0 < optim.lr < math.inf:
        raise UserError(f"Expected a finite --optim.lr above 0, got {optim.lr}.")
    for name in ("warmup_lr", "momentum", "weight_decay"):
        value = getattr(optim, name)
        if not 0 <= value < math.inf:
            raise UserError(f"Expected a finite --optim.{name} of at least 0, got {value}.")
    if not 0 < config.augment.scale_min <= 1:
        raise UserError(
            f"Expected --augment.scale_min above 0 and at most 1, got {config.augment.scale_min}."
        )
    if not 0 <= config.augment.flip <= 1:
        raise UserError(f"Expected --augment.flip between 0 and 1, got {config.augment.flip}.")


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"Expected --{flag} of at least {least}, got {value}.")
