"""One run of a companion's command: its defaults, its name, what decides its result, its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cma_tune.companion_options import (
    MATCHING,
    LabConfig,
    ScheduleConfig,
    SemiSupervisedConfig,
    SupervisedConfig,
)
from cma_tune.config import flattened
from cma_tune.files import slug
from cma_tune.run import identity_digest

FULL_STEPS = 2**20
"""Training steps of the references."""

RECIPE_NETWORKS = {
    "cifar10": "wrn-28-2",
    "cifar100": "wrn-28-8",
    "stl10": "wrn-37-2",
    "digits": "small-cnn",
    "shapes": "small-cnn",
}
"""The network that belongs to a dataset; any other has to be asked for by name."""

OTHER_NETWORK = "wrn-28-2"
"""For datasets without a recipe."""

DECAY_OF_CIFAR100, DECAY = 1e-3, 5e-4

OF_THE_REFERENCES = ("cifar10", "cifar100", "stl10")
"""Datasets with the references' length of training; the others are small, and theirs is ours."""

SHORT_STEPS = 1000
EMA, SHORT_EMA = 0.999, 0.98
"""The references' average would still be a third of its start after 1000 steps."""

_NOT_THE_RESULT = (
    *("output", "data_root", "eval_batch_size", "checkpoint_every", "resume", "tracker"),
    *("compile", "channels_last"),
)
"""Entries of a config that don't decide a run's result."""


_OF_ONE_EXPERIMENT = {
    "temperature": ("temperatures",),
    "connectivity": ("rates", "points"),
    "grokking": ("grokking",),
}
"""Entries of a lab's config that its other experiments take no notice of."""


_OF_GROKKING = ("output", "resume", "checkpoint_every")
"""Of the entries that don't decide a result, those which grokking's own loop takes notice of."""


_OF_UNLABELLED = ("interplay.view", "interplay.labelled")
"""Entries that say which images the added losses take, where there are two kinds."""


def noticed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config's entries without those nested ones that its algorithm or its losses take no notice of.

    Args:
        content: all entries by name, as in a record.
    """
    algorithm = str(content.get("algorithm", "supervised"))
    kept = dict(content)
    if algorithm == "supervised":
        kept["schedule"] = {name: v for name, v in content["schedule"].items() if name != "ratio"}
    if not (content["max_mi"] or content["min_hd"]):
        # Centring also decides the figures of an evaluation.
        kept["interplay"] = {"center": content["interplay"]["center"]}
    if "matching" in content:
        kept["matching"] = {name: content["matching"][name] for name in MATCHING[algorithm]}
    return kept


def unread_entries(config: SupervisedConfig) -> list[str]:
    """Options with values of their own that nothing of the command reads, as ``schedule.ratio``."""
    read = dict(flattened(_read(config)))
    plain = dict(flattened(asdict(type(config)())))
    given = dict(flattened(asdict(config)))
    # The files of the datasets' recipes hold OTMatch's weight for all algorithms.
    anywhere = {*_NOT_THE_RESULT, "mixed_precision", "matching.transport_weight"}
    algorithm = given.get("algorithm", "supervised")
    if algorithm == "supervised":  # there are no images without a label
        read = {name: value for name, value in read.items() if name not in _OF_UNLABELLED}
    if algorithm == "pseudo-label":  # it has no other view than the weak one
        read.pop("interplay.view", None)
    if isinstance(config, LabConfig) and config.experiment == "grokking":
        anywhere = {"data_root", *_OF_GROKKING}
    return [name for name in given if name not in {*read, *anywhere} and given[name] != plain[name]]


def _read(config: SupervisedConfig) -> dict[str, Any]:
    """A config's entries that its command, algorithm, losses and experiment take notice of."""
    unused = _unused(config)
    return {name: value for name, value in noticed(asdict(config)).items() if name not in unused}


def _unused(config: SupervisedConfig) -> set[str]:
    """Entries that a config's experiment takes no notice of."""
    if not isinstance(config, LabConfig):
        return set()
    if config.experiment == "grokking":  # its data and network are its own
        return {entry.name for entry in fields(config)} - {"experiment", "grokking", "seeds"}
    return {name for of, names in _OF_ONE_EXPERIMENT.items() if of != config.experiment for name in names}


@dataclass(frozen=True)
class CompanionRun:
    """One run of a companion's command: its config with labels and seed fixed and all defaults filled in.

    Attributes:
        protocol: supervised, semi-supervised or lab.
        config: the config; `labels` and `seeds` hold one value each.
    """

    protocol: str
    config: SupervisedConfig

    def identity(self) -> dict[str, Any]:
        """What decides the result: the config without where and how it is computed."""
        content = {name: v for name, v in _read(self.config).items() if name not in _NOT_THE_RESULT}
        return {"protocol": self.protocol, **content}

    def digest(self) -> str:
        """SHA-256 of the identity."""
        return identity_digest(self.identity())

    def folder(self) -> Path:
        """Where the run leaves its record."""
        config = self.config
        labels = f"labels{config.labels[0]}" if config.labels[0] else "labels_all"
        place = Path(config.output) / self.protocol / slug(config.dataset) / slug(str(config.network))
        return place / slug_of_method(config) / labels / f"seed{config.seeds[0]}"


def method_name(config: SupervisedConfig) -> str:
    """Such as ``freematch+mi-0.1``."""
    if isinstance(config, LabConfig):
        return config.experiment
    name: str = config.algorithm if isinstance(config, SemiSupervisedConfig) else "supervised"
    name += f"+mi-{config.max_mi:g}" if config.max_mi else ""
    return name + (f"+hd-{config.min_hd:g}" if config.min_hd else "")


def slug_of_method(config: SupervisedConfig) -> str:
    """The method as a folder name; "+" stays."""
    return "+".join(slug(part) for part in method_name(config).split("+"))


def recipe_network(dataset: str) -> str:
    """The network that belongs to a dataset."""
    return RECIPE_NETWORKS.get(dataset, OTHER_NETWORK)


def _filled(schedule: ScheduleConfig, dataset: str) -> ScheduleConfig:
    """With the dataset's length of training and average where the config has none."""
    full = dataset in OF_THE_REFERENCES
    steps = (FULL_STEPS if full else SHORT_STEPS) if schedule.steps is None else schedule.steps
    ema = (EMA if full else SHORT_EMA) if schedule.ema is None else schedule.ema
    return replace(schedule, steps=steps, ema=ema)


def expand_companion(protocol: str, config: SupervisedConfig) -> list[CompanionRun]:
    """One run for every number of labels and seed, with defaults that hang on the dataset filled in."""
    schedule = _filled(config.schedule, config.dataset)
    assert schedule.steps is not None
    decay = schedule.weight_decay
    if isinstance(decay, str):
        decay = DECAY_OF_CIFAR100 if (decay, config.dataset) == ("reference", "cifar100") else DECAY
    flip = config.flip if config.flip is not None else (0.0 if config.dataset == "digits" else 0.5)
    return [
        CompanionRun(
            protocol,
            replace(
                config,
                labels=[labels],
                seeds=[seed],
                network=config.network or recipe_network(config.dataset),
                flip=flip,
                eval_every=config.eval_every or max(1, schedule.steps // 20),
                schedule=replace(schedule, weight_decay=decay),
            ),
        )
        for labels in config.labels
        for seed in config.seeds
    ]
