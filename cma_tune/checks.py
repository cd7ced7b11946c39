"""Mistakes in a config, found before anything is loaded. Standard library only."""

from __future__ import annotations

import math
from dataclasses import asdict

from cma_tune.config import FewShotConfig, ZeroShotConfig, trains_images
from cma_tune.errors import UserError
from cma_tune.method_facts import BLOCKS, FULL_BATCH, OWN_CLASSES, UNTRAINED
from cma_tune.method_options import LORA_MATRICES, RELEASE_FORM, LoraConfig, LossConfig, lora_layers
from cma_tune.value_checks import (
    above_zero,
    at_least,
    check_axis,
    check_output,
    check_seeds,
    from_0_to_1,
    not_negative,
)


def check(config: ZeroShotConfig, writes_output: bool = True) -> None:
    """Check all values before anything is loaded.

    Args:
        config: of the command.
        writes_output: its output folder is written to.

    Raises:
        UserError: naming the flag, what is expected and what came.
    """
    at_least("workers", config.workers, 0)
    at_least("eval_batch_size", config.eval_batch_size, 1)
    check_output(config.output, writes_output)
    if isinstance(config, FewShotConfig):
        _check_sweep(config)
        _check_training(config)
        _check_method(config)


def check_transfer(config: FewShotConfig, what: str) -> None:
    """Check that what is learned can go to other classes.

    Args:
        config: of the run.
        what: where they are met: the protocol, in words.

    Raises:
        UserError: it can't.
    """
    if config.learner in OWN_CLASSES:
        raise UserError(
            f"Expected a method that can go to other classes for {what}, got {config.learner}, which learns "
            f"{OWN_CLASSES[config.learner]}; use few-shot, or another --learner."
        )
    if "context" in BLOCKS[config.learner] and config.context.per_class:
        raise UserError(
            f"Expected a shared context for {what}, got class-specific ones, "
            "which other classes can't take; set --context.per-class false."
        )


def _check_sweep(config: FewShotConfig) -> None:
    check_axis("shots", config.shots)
    check_seeds(config.seeds)
    check_axis("weights", config.weights)
    for shots in config.shots:
        at_least("shots", shots, 1)
    for weight in config.weights:
        if not isinstance(weight, str) and not 0 <= weight <= 1:
            raise UserError(f"Expected λ between 0 and 1 in --weights, got {weight}.")
    if "recipe" in config.weights:
        _check_release_form(config.loss)
    if config.select_weight and len(config.weights) < 2:
        raise UserError(f"Expected several λ in --weights to select among, got {config.weights}.")


def _check_release_form(loss: LossConfig) -> None:
    for name, wanted in asdict(RELEASE_FORM).items():
        given = getattr(loss, name)
        if given not in (None, wanted):
            raise UserError(
                f"Expected the release's form of the loss for its λ, got --loss.{name} {_word(given)}; leave "
                f"it out (it is {_word(wanted)} with 'recipe'), or give numbers in --weights."
            )


def _word(value: object) -> str:
    """As on the command line."""
    return str(value).lower()


def _check_training(config: FewShotConfig) -> None:
    at_least("context.tokens", config.context.tokens, 1)
    at_least("views", config.views, 0)
    if config.views and config.train_features == "live":
        raise UserError(
            f"Expected --views with --train-features stored, got {config.views} views of live features; "
            "live features are encoded anew in every epoch."
        )
    at_least("text_chunk", config.text_chunk, 0)
    if not 0 < config.text_memory < math.inf:
        raise UserError(f"Expected a finite --text-memory above 0, in GiB, got {config.text_memory}.")
    if not 0 <= config.image_memory < math.inf:
        raise UserError(f"Expected a finite --image-memory of at least 0 GiB, got {config.image_memory}.")
    at_least("checkpoint_every", config.checkpoint_every, 0)
    optim = config.optim
    for name in ("batch_size", "epochs", "steps_per_shot"):
        if getattr(optim, name) is not None:
            at_least(f"optim.{name}", getattr(optim, name), 1)
    if optim.lr is not None:
        above_zero("optim.lr", optim.lr)
    for name in ("warmup_lr", "momentum", "weight_decay"):
        if getattr(optim, name) is not None:
            not_negative(f"optim.{name}", getattr(optim, name))
    if not 0 < config.augment.scale_min <= 1:
        raise UserError(
            f"Expected --augment.scale-min above 0 and at most 1, got {config.augment.scale_min}."
        )
    from_0_to_1("augment.flip", config.augment.flip)


def _check_method(config: FewShotConfig) -> None:
    if trains_images(config) and config.train_features == "stored":
        raise UserError(
            f"Expected --train-features live for {config.learner}, which changes the image side, "
            "got stored ones, which would not change with it."
        )
    if config.learner == "cocoop" and config.context.per_class:
        raise UserError(
            "Expected a shared context for cocoop, got class-specific ones; set --context.per-class false."
        )
    if config.learner in UNTRAINED and config.weights != [0]:
        raise UserError(
            f"Expected --weights 0 with {config.learner}, which trains nothing, got {config.weights}; "
            "a loss can't change it."
        )
    if config.learner == "lp_plus_plus" and config.optim.batch_size not in (None, FULL_BATCH):
        raise UserError(
            f"Expected all images in a batch of lp_plus_plus, whose steps follow from all of them, got "
            f"--optim.batch-size {config.optim.batch_size}; leave it out."
        )
    if config.learner == "lp_plus_plus" and config.optim.optimizer not in (None, "sgd"):
        raise UserError(
            "Expected --optim.optimizer sgd with lp_plus_plus, whose step sizes are those of gradient "
            f"descent, got {config.optim.optimizer}; leave it out."
        )
    not_negative("kgcoop.weight", config.kgcoop.weight)
    not_negative("prograd.weight", config.prograd.weight)
    above_zero("prograd.temperature", config.prograd.temperature)
    not_negative("tcp.weight", config.tcp.weight)
    if config.tcp.layer is not None:
        at_least("tcp.layer", config.tcp.layer, 1)
    not_negative("tip.alpha", config.tip.alpha)
    above_zero("tip.beta", config.tip.beta)
    from_0_to_1("clip_adapter.ratio", config.clip_adapter.ratio)
    _check_prompts(config)
    _check_lora(config.lora)


def _check_prompts(config: FewShotConfig) -> None:
    """The methods with visual prompts."""
    for name in ("vpt", "ivlp", "maple", "promptsrc"):
        options = getattr(config, name)
        for entry in ("tokens", "image_tokens", "depth"):
            number = getattr(options, entry, None)
            if number is not None:
                at_least(f"{name}.{entry}", number, 1)
    promptsrc = config.promptsrc
    not_negative("promptsrc.text_weight", promptsrc.text_weight)
    not_negative("promptsrc.image_weight", promptsrc.image_weight)
    if promptsrc.mean is not None:
        not_negative("promptsrc.mean", promptsrc.mean)
    above_zero("promptsrc.std", promptsrc.std)


def _check_lora(lora: LoraConfig) -> None:
    at_least("lora.rank", lora.rank, 1)
    above_zero("lora.alpha", lora.alpha)
    if not 0 <= lora.dropout < 1:
        raise UserError(f"Expected --lora.dropout of at least 0 and below 1, got {lora.dropout}.")
    check_axis("lora.matrices", lora.matrices)
    for matrix in lora.matrices:
        if matrix not in LORA_MATRICES:
            raise UserError(
                f"Expected --lora.matrices out of {', '.join(LORA_MATRICES)}, got '{matrix}'; "
                "give them with commas between."
            )
    try:
        layers = lora_layers(lora.layers)
    except ValueError:
        layers = -1
    numbers = layers if isinstance(layers, tuple) else ()
    if layers is not None and (
        min(numbers, default=0) < 0
        or len(set(numbers)) < len(numbers)
        or (isinstance(layers, int) and layers < 1)
    ):
        raise UserError(
            "Expected --lora.layers all, last:N for the last N blocks, or different numbers of blocks, from "
            f"0, with commas between, got '{lora.layers}'."
        )
