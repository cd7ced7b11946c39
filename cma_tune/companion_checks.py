"""Mistakes in a companion's config, found before anything is loaded. Standard library only."""

from __future__ import annotations

from cma_tune.companion_options import LabConfig, SemiSupervisedConfig, SupervisedConfig
from cma_tune.errors import UserError
from cma_tune.value_checks import (
    above_zero,
    at_least,
    check_axis,
    check_output,
    check_seeds,
    from_0_to_1,
    not_negative,
)


def check_companion(config: SupervisedConfig) -> None:
    """Check all values of a companion's command before anything is loaded.

    Raises:
        UserError: naming the flag, what is expected and what came.
    """
    check_output(config.output)
    check_axis("labels", config.labels)
    check_seeds(config.seeds)
    for labels in config.labels:
        at_least("labels", labels, 0)
    if config.image_size is not None:
        at_least("image_size", config.image_size, 8)  # four halvings leave a pixel
    at_least("eval_every", config.eval_every, 0)
    at_least("eval_batch_size", config.eval_batch_size, 1)
    at_least("checkpoint_every", config.checkpoint_every, 0)
    for name in ("max_mi", "min_hd"):
        not_negative(name, getattr(config, name))
    if config.flip is not None:
        from_0_to_1("flip", config.flip)
    _check_schedule(config)
    if isinstance(config, SemiSupervisedConfig):
        _check_matching(config)
    if isinstance(config, LabConfig):
        _check_lab(config)


def _check_schedule(config: SupervisedConfig) -> None:
    schedule = config.schedule
    for name in ("steps", "batch_size", "ratio"):
        number = getattr(schedule, name)
        if number is not None:
            at_least(f"schedule.{name}", number, 1)
    above_zero("schedule.lr", schedule.lr)
    if not isinstance(schedule.weight_decay, str):
        not_negative("schedule.weight_decay", schedule.weight_decay)
    for name in ("momentum", "ema"):
        value = getattr(schedule, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"Expected --schedule.{name} of at least 0 and below 1, got {value}.")


def _check_matching(config: SemiSupervisedConfig) -> None:
    matching = config.matching
    if 0 in config.labels and config.algorithm != "supervised":
        raise UserError(
            f"Expected a number of labelled images in --labels for {config.algorithm}, got 0, which is all; "
            "use cma-tune supervised to train on all labels."
        )
    for name in ("unlabelled_weight", "fairness_weight", "transport_weight"):
        value = getattr(matching, name)
        if value is not None:
            not_negative(f"matching.{name}", value)
    for name in ("threshold", "momentum"):
        from_0_to_1(f"matching.{name}", getattr(matching, name))


def _check_lab(config: LabConfig) -> None:
    for flag, values in (("temperatures", config.temperatures), ("rates", config.rates)):
        check_axis(flag, values)
        for value in values:
            above_zero(flag, value)
    at_least("points", config.points, 2)
    grokking = config.grokking
    at_least("grokking.modulus", grokking.modulus, 3)
    for name in ("epochs", "width", "heads", "hidden", "eval_every"):
        at_least(f"grokking.{name}", getattr(grokking, name), 1)
    if grokking.width % grokking.heads:
        raise UserError(
            f"Expected --grokking.width as a multiple of the {grokking.heads} heads, got {grokking.width}."
        )
    if not 0 < grokking.train_share < 1:
        raise UserError(f"Expected --grokking.train-share between 0 and 1, got {grokking.train_share}.")
    above_zero("grokking.lr", grokking.lr)
    not_negative("grokking.weight_decay", grokking.weight_decay)
