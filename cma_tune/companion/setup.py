"""From a companion's config to objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from cma_tune.accelerators import make_accelerator
from cma_tune.companion.algorithms import ALGORITHMS, Algorithm, algorithm
from cma_tune.companion.augmentation import normalize
from cma_tune.companion.batch_norm import synchronise_batch_norm
from cma_tune.companion.image_sets import ImageSet, load_image_set
from cma_tune.companion.loop import Schedule
from cma_tune.companion.networks import Network, check_network_name, network
from cma_tune.companion.objective import Objective
from cma_tune.companion.sampling import balanced_labels, fold_labels
from cma_tune.companion.steps import Steps
from cma_tune.companion_options import MATCHING, LabConfig, SemiSupervisedConfig, SupervisedConfig
from cma_tune.config import Precision
from cma_tune.data.batches import Share
from cma_tune.errors import UserError
from cma_tune.losses import InterplayLoss
from cma_tune.trackers import check_tracker


@dataclass
class CompanionSetup:
    """What the runs of one config share; everything is made on first use.

    Attributes:
        config: of the command.

    Raises:
        UserError: the tracker or the network can't be had.
    """

    config: SupervisedConfig

    def __post_init__(self) -> None:
        check_tracker(self.config.tracker)
        if self.config.network is not None:
            check_network_name(self.config.network)

    @cached_property
    def accelerator(self) -> Accelerator:
        """Processes, device, precision, trackers."""
        return make_accelerator(self.config.mixed_precision, self.config.tracker, self.config.output)

    @property
    def precision(self) -> Precision:
        """What is computed in, by the config or else by accelerate's setting."""
        return cast(Precision, self.accelerator.mixed_precision)

    @cached_property
    def images(self) -> ImageSet:
        """All images in memory."""
        return load_image_set(self.config)

    @cached_property
    def digest(self) -> str:
        """Of all images and labels."""
        return self.images.digest()

    @property
    def share(self) -> Share:
        """Which rows of a batch are this process's."""
        return Share(self.accelerator.process_index, self.accelerator.num_processes)

    def say(self, text: str) -> None:
        """Print one line, once."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def labelled(self, config: SupervisedConfig) -> list[int]:
        """Positions of a run's labelled images among the train images; the same for any number of processes.

        Raises:
            UserError: the dataset has no such fold, or too few images for the labels.
        """
        if config.fold is None:
            train = self.images.train.labels
            return balanced_labels(train, len(self.images.class_names), config.labels[0], config.seeds[0])
        chosen = fold_labels(self.images.folds, config.fold, config.dataset)
        if config.labels[0] != len(chosen):
            raise UserError(
                f"Expected --labels {len(chosen)} with --fold, the size of the published folds, "
                f"got {config.labels[0]}."
            )
        return chosen

    def network(self, config: SupervisedConfig) -> Network:
        """A run's network at its start, on the device."""
        set_seed(config.seeds[0])
        made = network(str(config.network), len(self.images.class_names))
        if self.accelerator.num_processes > 1:
            made = synchronise_batch_norm(made)
        if config.channels_last:
            made = made.to(memory_format=torch.channels_last)
        made = made.to(self.accelerator.device)
        if config.compile:
            made.compile()
        return made

    def algorithm(self, config: SupervisedConfig, pool: int) -> Algorithm:
        """A run's algorithm at its start, on the device.

        Args:
            config: of the run.
            pool: number of unlabelled images.
        """
        classes = len(self.images.class_names)
        if not isinstance(config, SemiSupervisedConfig):
            return algorithm("supervised", classes, pool).to(self.accelerator.device)
        made = algorithm(config.algorithm, classes, pool, **algorithm_options(config))
        return made.to(self.accelerator.device)

    def steps(self, config: SupervisedConfig, labelled: list[int], seed: int | None = None) -> Steps:
        """A run's data.

        Args:
            config: of the run.
            labelled: positions of the labelled images.
            seed: of order and noise; by default the run's.
        """
        unlabelled = strong = False
        if isinstance(config, SemiSupervisedConfig):
            kind = ALGORITHMS[config.algorithm]
            unlabelled, strong = kind.uses_unlabelled, kind.uses_strong
        batch = config.schedule.batch_size
        return Steps(
            self.images,
            labelled,
            batch,
            batch * config.schedule.ratio if unlabelled else 0,
            strong,
            config.seeds[0] if seed is None else seed,
            float(config.flip or 0.0),
            self.share,
            self.accelerator.device,
        )

    def prepare(self, config: SupervisedConfig) -> Callable[[Tensor], Tensor]:
        """From uint8 images to what the network takes."""
        images, layout = self.images, config.channels_last

        def normalized(pixels: Tensor) -> Tensor:
            made = normalize(pixels, images.mean, images.std)
            return made.to(memory_format=torch.channels_last) if layout else made

        return normalized


def algorithm_options(config: SemiSupervisedConfig) -> dict[str, object]:
    """Those options of `matching` that the config's algorithm has."""
    options = {name: getattr(config.matching, name) for name in MATCHING[config.algorithm]}
    return {name: value for name, value in options.items() if value is not None}


def schedule_of(config: SupervisedConfig) -> Schedule:
    """A run's schedule; `expand_companion` has filled its defaults in."""
    schedule = config.schedule
    assert not isinstance(schedule.weight_decay, str)
    assert schedule.steps is not None and schedule.ema is not None
    return Schedule(
        schedule.steps,
        schedule.lr,
        schedule.momentum,
        schedule.weight_decay,
        schedule.ema,
        config.eval_every,
        # How entropies begin is what this experiment shows.
        isinstance(config, LabConfig) and config.experiment == "dynamics",
    )


def objective_of(config: SupervisedConfig, made: Algorithm, temperature: float = 1.0) -> Objective:
    """A run's objective around its algorithm."""
    details = config.interplay
    interplay = None
    if config.max_mi or config.min_hd:
        interplay = InterplayLoss(
            config.max_mi,
            config.min_hd,
            alpha=float(details.order),
            detach_classifier=details.detach_classifier,
            center=details.center,
        )
    return Objective(made, interplay, details.view, details.labelled, temperature)
