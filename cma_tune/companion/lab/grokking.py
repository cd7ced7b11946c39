"""Grokking: long after the training sums are learned, a transformer learns to add (the paper's Fig. 3b)."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from cma_tune.checkpoint import Position, load_checkpoint, save_checkpoint
from cma_tune.companion.lab.modular_addition import (
    AdditionTransformer,
    addition_loss,
    all_sums,
    train_positions,
)
from cma_tune.companion.lab.trainings import leave_curves
from cma_tune.companion.networks import Output
from cma_tune.companion.runs import CHECKPOINT, collapse_figures
from cma_tune.companion.setup import CompanionSetup
from cma_tune.companion_options import GrokkingConfig, LabConfig, SupervisedConfig
from cma_tune.companion_run import CompanionRun
from cma_tune.errors import UserError
from cma_tune.fitting import progress, stop_if_not_finite
from cma_tune.metrics import CollapseMonitor, accuracy
from cma_tune.records import Record, versions
from cma_tune.train import Checkpointing

DATASET, NETWORK = "modular-addition", "transformer"

BETAS = (0.9, 0.98)
"""Of AdamW."""

EARLY = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Evaluations before the first of those that are evenly spaced."""

MEASURED = (
    *("feature_entropy", "classifier_entropy", "mutual_information"),
    *("mutual_information_ratio", "entropy_difference_ratio", "samples"),
)


def as_addition(config: LabConfig) -> LabConfig:
    """The config with the dataset and the network that grokking has."""
    name = f"{DATASET}-{config.grokking.modulus}"
    return replace(config, dataset=name, network=NETWORK, labels=[0], fold=None)


class AdditionSetup(CompanionSetup):
    """The setup of runs on sums instead of images."""

    def __post_init__(self) -> None:
        """There is no choice of network, and nothing is logged to trackers."""

    @property
    def grokking(self) -> GrokkingConfig:
        """The experiment's options."""
        return options_of(self.config)

    @cached_property
    def digest(self) -> str:
        """Of all sums with their answers."""
        pairs, answers = all_sums(self.grokking.modulus)
        return hashlib.sha256(torch.cat([pairs, answers[:, None]], dim=1).numpy().tobytes()).hexdigest()

    def labelled(self, config: SupervisedConfig) -> list[int]:
        """Positions of a run's training sums.

        Raises:
            UserError: the share leaves nothing to train on or nothing to test on.
        """
        options = options_of(config)
        sums = options.modulus**2
        train = train_positions(options.modulus, options.train_share, config.seeds[0])
        if not 0 < len(train) < sums:
            raise UserError(
                f"Expected --grokking.train-share to leave training and test sums out of {sums}, "
                f"got {options.train_share}; use 0.5, say."
            )
        return train


def options_of(config: SupervisedConfig) -> GrokkingConfig:
    """Grokking's options in a lab's config."""
    assert isinstance(config, LabConfig)
    return config.grokking


def train_grokking(setup: CompanionSetup, run: CompanionRun) -> Record:
    """Train one run, resuming where it was stopped, and leave curves and record.

    Several processes all compute the same, since a batch is the whole training set.
    """
    config, accelerator = run.config, setup.accelerator
    options, train = options_of(config), setup.labelled(config)
    checkpointing = Checkpointing(
        run.folder() / CHECKPOINT, f"{run.digest()}-{setup.digest}", config.checkpoint_every, config.resume
    )
    started = time.perf_counter()
    set_seed(config.seeds[0])
    network = AdditionTransformer(options.modulus, options.width, options.heads, options.hidden)
    network = network.to(accelerator.device)
    history = fit_addition(network, options, train, setup, checkpointing)
    last = history[-1]
    record = Record(
        run=run.digest(),
        protocol=run.protocol,
        config=asdict(config),
        dataset={
            "name": config.dataset,
            "origin": "all sums of two numbers",
            "split": setup.digest,
            "classes": options.modulus,
            "train_sums": len(train),
            "test_sums": options.modulus**2 - len(train),
        },
        backbone={"name": NETWORK, "parameters": sum(p.numel() for p in network.parameters())},
        figures={name: value for name, value in last.items() if name != "epoch"},
        per_class={},
        training={
            "setting": "inductive",
            "steps": options.epochs,
            "seconds_since_last_start": round(time.perf_counter() - started, 3),
            "device": str(accelerator.device.type),
        },
        versions=versions(),
    )
    leave_curves(setup, run, history, record)
    return record


def fit_addition(
    network: AdditionTransformer,
    options: GrokkingConfig,
    train: list[int],
    setup: CompanionSetup,
    checkpointing: Checkpointing,
) -> list[dict[str, float]]:
    """Train the network in place with AdamW, all training sums in every step.

    Args:
        network: on the accelerator's device.
        options: of the experiment.
        train: positions of the training sums.
        setup: for its accelerator.
        checkpointing: where the run is saved and resumed from; `every` 0 saves at evaluations.

    Returns:
        One entry an evaluation, see `evaluate_addition`.

    Raises:
        NonFiniteLossError: the loss is no longer a number.
        UserError: the checkpoint is another run's.
    """
    accelerator, every = setup.accelerator, checkpointing.every
    pairs, answers = (part.to(accelerator.device) for part in all_sums(options.modulus))
    trained = torch.zeros(len(answers), dtype=torch.bool, device=accelerator.device)
    trained[train] = True
    inputs, targets = pairs[trained], answers[trained]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.lr, betas=BETAS, weight_decay=options.weight_decay
    )
    at = Position()
    if checkpointing.resume:
        at = load_checkpoint(checkpointing.path, checkpointing.run, network, optimizer, accelerator)
    with progress(options.epochs, at.step, "grokking", accelerator) as bar:
        for number in range(at.step, options.epochs):
            loss = addition_loss(network(inputs).logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            at.step = number + 1
            bar.update()
            evaluated = is_evaluated(at.step, options)
            saved = (every and at.step % every == 0) or (evaluated and not every) or at.step == options.epochs
            if evaluated or saved:
                stop_if_not_finite(loss.item(), f"epoch {number} (from 0)")
            if evaluated:
                at.history.append(evaluate_addition(network, pairs, answers, trained, at.step))
            if saved:
                save_checkpoint(checkpointing.path, checkpointing.run, network, optimizer, at, accelerator)
    return at.history


def is_evaluated(epoch: int, options: GrokkingConfig) -> bool:
    """Whether there is an evaluation after so many epochs: early ones lie closer, for a logarithmic axis."""
    early = epoch < options.eval_every and epoch in EARLY
    return early or epoch % options.eval_every == 0 or epoch == options.epochs


@torch.no_grad()
def evaluate_addition(
    network: AdditionTransformer, pairs: Tensor, answers: Tensor, trained: Tensor, epoch: int
) -> dict[str, float]:
    """Loss, accuracy in percent, entropies, MIR and HDR of training and test sums.

    The representation is the last position's residual, against the unembedding columns of the answers.

    Args:
        network: any.
        pairs, answers: all sums.
        trained: which of them are trained on, ``[p²]``, bool.
        epoch: how many there have been.
    """
    figures: dict[str, float] = {"epoch": float(epoch)}
    output = network(pairs)
    for name, rows in (("train", trained), ("test", ~trained)):
        logits, features, labels = output.logits[rows], output.features[rows], answers[rows]
        found: dict[str, Any] = {
            "loss": addition_loss(logits, labels).item(),
            "accuracy": accuracy(logits.argmax(dim=1), labels),
        }
        collapse = collapse_figures(CollapseMonitor(), network, Output(logits, features.cpu()), labels.cpu())
        found |= {key: collapse[key] for key in MEASURED if key in collapse}
        figures |= {f"{name}_{key}": value for key, value in found.items()}
    return figures
