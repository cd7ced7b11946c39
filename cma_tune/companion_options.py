"""What the companion's commands take: plain dataclasses that YAML files and flags fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

from cma_tune.config import Precision, SourceConfig, identity_digest, slug

AlgorithmName = Literal[
    "pseudo-label", "fixmatch", "flexmatch", "freematch", "softmatch", "otmatch", "supervised"
]

WeightDecay = Union[float, Literal["reference", "paper"]]  # noqa: UP007
"""A number, the references' for the dataset (1e-3 on CIFAR-100, else 5e-4), or the paper's (5e-4)."""

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

MATCHING = {
    "supervised": (),
    "pseudo-label": ("unlabelled_weight", "threshold"),
    "fixmatch": ("unlabelled_weight", "threshold"),
    "flexmatch": ("unlabelled_weight", "threshold"),
    "freematch": ("unlabelled_weight", "momentum", "fairness_weight"),
    "softmatch": ("unlabelled_weight", "momentum", "alignment"),
    "otmatch": ("unlabelled_weight", "momentum", "fairness_weight", "transport_weight"),
}
"""Which details each algorithm has."""


@dataclass
class ScheduleConfig:
    """Batches, optimiser and schedule; the defaults are the references'.

    Attributes:
        steps: optimiser steps K, with learning rate lr·cos(7πk/16K) at step k; by default the references'
            2^20 on CIFAR and STL-10, and 1000 elsewhere.
        batch_size: labelled images in a step, over all processes.
        ratio: unlabelled images in a step for every labelled one.
        lr: learning rate of SGD at the start.
        momentum: of SGD, with Nesterov's correction.
        weight_decay: of SGD, not on biases and norms; a number, reference or paper.
        ema: decay of the averaged weights, which are the ones evaluated; 0 evaluates the weights themselves.
            By default the references' 0.999 on CIFAR and STL-10, and 0.98 elsewhere.
    """

    steps: Optional[int] = None  # noqa: UP045
    batch_size: int = 64
    ratio: int = 7
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: WeightDecay = "reference"
    ema: Optional[float] = None  # noqa: UP045


@dataclass
class InterplayConfig:
    """Details of the losses that --max_mi and --min_hd weigh; the paper leaves them open, so they are ours.

    Attributes:
        view: which outputs of unlabelled images take part, of their weak or strong view.
        labelled: labelled images take part beside the confident unlabelled ones.
        detach_classifier: no gradient to the classifier's rows.
        center: features and rows without their mean.
        order: 1 is the matrix entropy; 2 is Rényi's of order 2, another quantity that needs no eigenvalues.
    """

    view: Literal["strong", "weak"] = "strong"
    labelled: bool = True
    detach_classifier: bool = False
    center: bool = False
    order: Literal[1, 2] = 1


@dataclass
class MatchingConfig:
    """Details of the semi-supervised algorithms; by default each one's own.

    Attributes:
        unlabelled_weight: of the unlabelled loss.
        threshold: confidence from which on fixed thresholds let a pseudo-label count.
        momentum: of running averages.
        fairness_weight: of FreeMatch's fairness loss.
        alignment: SoftMatch's distribution alignment, as one of its references has it.
        transport_weight: of OTMatch's transport loss.
    """

    unlabelled_weight: float = 1.0
    threshold: float = 0.95
    momentum: float = 0.999
    fairness_weight: float = 0.01
    alignment: Literal["torchssl", "usb", "none"] = "torchssl"
    transport_weight: Optional[float] = None  # noqa: UP045


@dataclass
class SupervisedConfig:
    """Train a classifier on labels, with mutual information and entropy difference as losses if asked for.

    Attributes:
        dataset: digits, shapes, cifar10, cifar100, stl10, folder:PATH, csv:FILE or hub:REPO.
        data_root: folder that holds the datasets' files, or hub: for their Hub repositories.
        source: columns and parts of general sources.
        image_size: side of the square images in pixels; by default the dataset's own, 32 for general sources.
        labels: labelled training images in all, balanced over the classes; 0 is all of them.
        fold: of STL-10's ten, whose 1000 images are then the labelled ones.
        seeds: of picks, start, order and noise.
        network: wrn-28-2, wrn-28-8, wrn-37-2, small-cnn or timm:NAME; by default the dataset's.
        max_mi: λ of −MI between features and their classes' classifier rows.
        min_hd: λ of the entropy difference between them.
        interplay: details of these two losses.
        schedule: batches, optimiser, steps.
        flip: probability of a horizontal flip; by default 0.5, and 0 on digits.
        output: folder of the results.
        mixed_precision: by default accelerate's setting.
        eval_every: steps between evaluations; 0 evaluates 20 times.
        eval_batch_size: images per step in evaluation.
        checkpoint_every: steps between checkpoints; 0 saves at evaluations.
        resume: go on from checkpoints and skip finished runs.
        tracker: accelerate tracker, such as tensorboard.
        compile: run the network under torch.compile.
        channels_last: lay images and weights out by channels last.
    """

    dataset: str = "digits"
    data_root: str = "data"
    source: SourceConfig = field(default_factory=SourceConfig)
    image_size: Optional[int] = None  # noqa: UP045
    labels: list[int] = field(default_factory=lambda: [0])
    fold: Optional[int] = None  # noqa: UP045
    seeds: list[int] = field(default_factory=lambda: [1])
    network: Optional[str] = None  # noqa: UP045
    max_mi: float = 0.0
    min_hd: float = 0.0
    interplay: InterplayConfig = field(default_factory=InterplayConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    flip: Optional[float] = None  # noqa: UP045
    output: str = "runs"
    mixed_precision: Optional[Precision] = None  # noqa: UP045
    eval_every: int = 0
    eval_batch_size: int = 500
    checkpoint_every: int = 0
    resume: bool = True
    tracker: Optional[str] = None  # noqa: UP045
    compile: bool = False
    channels_last: bool = False


@dataclass
class SemiSupervisedConfig(SupervisedConfig):
    """Train a classifier on few labels and many images without one; fields as in supervised, and these.

    Attributes:
        algorithm: pseudo-label, fixmatch, flexmatch, freematch, softmatch or otmatch; supervised ignores the
            unlabelled images.
        matching: details of the algorithms.
    """

    labels: list[int] = field(default_factory=lambda: [40])
    algorithm: AlgorithmName = "freematch"
    matching: MatchingConfig = field(default_factory=MatchingConfig)


@dataclass
class GrokkingConfig:
    """Modular addition on a one-layer transformer; the full size is modulus 113 and train_share 0.3.

    Attributes:
        modulus: p of (a + b) mod p.
        train_share: of all p² sums.
        epochs: steps, each over all training sums.
        lr: of AdamW.
        weight_decay: of AdamW.
        width: of the residual stream.
        heads: of attention.
        hidden: of the MLP.
        eval_every: steps between evaluations.
    """

    modulus: int = 41
    train_share: float = 0.6
    epochs: int = 4200
    lr: float = 1e-3
    weight_decay: float = 1.0
    width: int = 128
    heads: int = 4
    hidden: int = 512
    eval_every: int = 20


@dataclass
class LabConfig(SupervisedConfig):
    """An experiment on neural collapse: dynamics, temperature, connectivity or grokking.

    Attributes:
        experiment: which one.
        schedule: as in supervised, but short by default.
        temperatures: temperature: T of CE(z/T).
        rates: connectivity: learning rates.
        points: connectivity: number of ω from 0 to 1, both included.
        grokking: the experiment's own options.
    """

    experiment: Literal["dynamics", "temperature", "connectivity", "grokking"] = "dynamics"
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(steps=1000, ema=0.0))
    temperatures: list[float] = field(default_factory=lambda: [float(t) for t in range(1, 11)])
    rates: list[float] = field(default_factory=lambda: [0.03, 0.003])
    points: int = 11
    grokking: GrokkingConfig = field(default_factory=GrokkingConfig)


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
        left_out = {*_NOT_THE_RESULT, *_unused(self.config)}
        content = {name: v for name, v in noticed(asdict(self.config)).items() if name not in left_out}
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
