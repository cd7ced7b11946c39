"""What the companion's commands take: plain dataclasses that YAML files and flags fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional, Union

from cma_tune.config import Precision, SourceConfig

AlgorithmName = Literal[
    "pseudo-label", "fixmatch", "flexmatch", "freematch", "softmatch", "otmatch", "supervised"
]

WeightDecay = Union[float, Literal["reference", "paper"]]  # noqa: UP007
"""A number, the references' for the dataset (1e-3 on CIFAR-100, else 5e-4), or the paper's (5e-4)."""

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
