"""What the commands take that are no runs: plain dataclasses. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

from cma_tune.config import AugmentConfig, FewShotConfig, Precision, SourceConfig

# Optional[…] below: the command line reads these annotations at run time, on Python 3.10 too.


@dataclass
class FeaturesConfig:
    """Stored image features: build them ahead of runs, list, verify and prune them.

    Attributes:
        action: what to do.
        dataset: as in zero-shot.
        data_root: folder that holds the datasets' folders.
        source: columns and parts of general sources.
        backbone: as in zero-shot.
        pretrained: tag or checkpoint file for an open_clip model.
        model_config: JSON file of an own open_clip architecture.
        output: folder of the runs' results.
        features_dir: folder of stored image features; by default inside the output folder.
        workers: processes that decode images.
        mixed_precision: by default accelerate's setting.
        eval_batch_size: images per step of encoding.
        compile: the image tower under torch.compile; compiling takes a minute or more at first.
        parts: what to build, out of train, val and test.
        views: crops per training image, as in few-shot; 0 is the test transform.
        seeds: of the crops.
        augment: the crops.
        only: prune: id of the one set of features to remove.
        everything: prune: remove all.
    """

    action: Literal["build", "list", "verify", "prune"]
    dataset: str = "digits"
    data_root: str = "data"
    source: SourceConfig = field(default_factory=SourceConfig)
    backbone: str = "embedded"
    pretrained: Optional[str] = None  # noqa: UP045
    model_config: Optional[str] = None  # noqa: UP045
    output: str = "runs"
    features_dir: Optional[str] = None  # noqa: UP045
    workers: int = 0
    mixed_precision: Optional[Precision] = None  # noqa: UP045
    eval_batch_size: int = 100
    compile: bool = False
    parts: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    views: int = 0
    seeds: list[int] = field(default_factory=lambda: [1])
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    only: Optional[str] = None  # noqa: UP045
    everything: bool = False


@dataclass
class GridConfig(FewShotConfig):
    """A protocol over datasets, shots, seeds and λ; what was killed goes on when it is started again.

    Attributes:
        protocol: few-shot, base-to-novel, cross-dataset or domain-generalization; all options of it hold.
        dataset: one dataset in place of --datasets; by default digits, imagenet for domain-generalization.
        datasets: names as in --dataset, or all for the literature's eleven; they are learned on.
        targets: cross-dataset and domain-generalization: datasets to test on, as in --datasets.
        zero_shot: also run zero-shot on every dataset.
        workers: processes that share the runs, each on one device, or jobs of the cluster; 0 is this process.
        decode_workers: processes that decode images, in each of them.
        cluster: submit jobs through submitit: slurm, or local to try it out.
        partition: of slurm.
        time: minutes a job may take; what is not done by then goes on in another one.
        gpus: of a job.
        cpus: of a job.
        dry_run: list the runs, done and to do, and estimate the time.
    """

    protocol: Literal["few-shot", "base-to-novel", "cross-dataset", "domain-generalization"] = "few-shot"
    dataset: str = ""
    datasets: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    zero_shot: bool = False
    decode_workers: int = 0
    cluster: Optional[Literal["slurm", "local"]] = None  # noqa: UP045
    partition: Optional[str] = None  # noqa: UP045
    time: int = 240
    gpus: int = 1
    cpus: int = 4
    dry_run: bool = False


@dataclass
class CrossDatasetConfig(FewShotConfig):
    """Learn on one dataset as in few-shot, test the learned context on others, zero-shot beside it.

    Attributes:
        targets: datasets to test on, as in --dataset.
        prompt: folder of a saved prompt to test; nothing is learned then.
    """

    targets: list[str] = field(default_factory=list)
    prompt: Optional[str] = None  # noqa: UP045


@dataclass
class DomainGeneralizationConfig(CrossDatasetConfig):
    """Learn on ImageNet, test on its variants: cross-dataset with these as its defaults.

    Attributes:
        dataset: what is learned on.
        targets: what is tested on.
    """

    dataset: str = "imagenet"
    targets: list[str] = field(
        default_factory=lambda: ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    )


DATA_ACTIONS = {
    "list": ("[NAME]", "what there is; with NAME, where it comes from and where it belongs"),
    "status": ("", "what lies below --data-root, and what it lacks"),
    "check": ("NAME", "look through a dataset; exit code 1 if anything is wrong"),
    "fetch": ("NAME", "bring what is missing or damaged; exit code 1 if anything still is"),
    "miniature": ("NAME OUT", "drawn images in the dataset's form below the folder OUT, to try things out"),
}
"""What `cma-tune data` does, with the words each takes."""


@dataclass
class DataConfig:
    """Datasets: list [NAME] | status | check NAME | fetch NAME | miniature NAME OUT.

    Attributes:
        words: what to do, and with what.
        data_root: folder that holds the datasets' folders, or hub: for their Hub repositories.
        source: columns and parts of general sources.
        all: check: decode every image instead of a sample.
        form: fetch, miniature: the community's folder layout, or the Hub's form.
        per_class: miniature: images per class in train, val and test.
    """

    words: list[str] = field(default_factory=list)
    data_root: str = "data"
    source: SourceConfig = field(default_factory=SourceConfig)
    all: bool = False
    form: Literal["folder", "hub"] = "folder"
    per_class: list[int] = field(default_factory=lambda: [2, 1, 2])


@dataclass
class ReportConfig:
    """Tables and figures from the records below a folder.

    Attributes:
        folder: folder with records.
        format: of the table.
        figures: folder for the figures; by default the records' folder.
        against: the published figures beside ours.
        compare: paired tests between two methods, such as coop,cma or coop,coop+cma-0.3.
        html: also write one page with all tables and figures in it to this file.
    """

    folder: str
    format: Literal["text", "csv", "markdown", "latex"] = "text"
    figures: Optional[str] = None  # noqa: UP045
    against: Optional[Literal["paper"]] = None  # noqa: UP045
    compare: list[str] = field(default_factory=list)
    html: Optional[str] = None  # noqa: UP045


@dataclass
class PredictConfig:
    """Labels with probabilities for images, from a learned prompt or an export of it.

    Attributes:
        images: image files, folders with images anywhere below them, glob patterns in quotes, or - for
            standard input with one of these a line.
        prompt: folder or Hub name (ORG/NAME) of the learned prompt or of an export, or an exported file.
        classes: file with class names, one a line; by default the names it was learned on.
        top: labels per image.
        format: text, csv with one row per image and label, or json with one object a line.
        output: file to write instead of standard output, whole or not at all.
        batch_size: images per step.
        workers: processes that decode images.
        skip_unreadable: name images that can't be read and go on without them.
        backbone: where the backbone lies now, if not where it did: local-dir:FOLDER, transformers-dir:FOLDER,
            hf-hub:ORG/REPO or transformers:ORG/REPO, or a checkpoint file; its weights must be the same.
    """

    images: list[str]
    prompt: str
    classes: Optional[str] = None  # noqa: UP045
    top: int = 5
    format: Literal["text", "csv", "json"] = "text"
    output: Optional[str] = None  # noqa: UP045
    batch_size: int = 100
    workers: int = 0
    skip_unreadable: bool = False
    backbone: Optional[str] = None  # noqa: UP045


@dataclass
class ExportConfig:
    """A learned prompt as a classifier matrix, an open_clip model or an ONNX file: PROMPT --to FORM OUT.

    Attributes:
        prompt: folder or Hub name of the learned prompt.
        output: new folder for the files.
        to: classifier is a matrix for image features, model an open_clip folder that looks the classes up,
            onnx the image tower and the classifier.
        classes: file with class names, one a line; by default the names it was learned on.
        backbone: where the backbone lies now, if not where it did: local-dir:FOLDER, transformers-dir:FOLDER,
            hf-hub:ORG/REPO or transformers:ORG/REPO, or a checkpoint file; its weights must be the same.
    """

    prompt: str
    output: str
    to: Literal["classifier", "model", "onnx"]
    classes: Optional[str] = None  # noqa: UP045
    backbone: Optional[str] = None  # noqa: UP045


@dataclass
class PushConfig:
    """A learned prompt to the Hugging Face Hub, with a model card made from its record.

    Attributes:
        folder: the learned prompt's.
        repo: ORG/NAME; made if it is missing.
        private: make it for its owner alone.
        backbone: hf-hub:ORG/REPO or transformers:ORG/REPO that holds the backbone, where it was loaded from
            local files.
        dry_run: folder that gets the files instead of the Hub.
        license: the Hub's short name of one, such as mit or apache-2.0, for the model card; none without.
    """

    folder: str
    repo: str
    private: bool = False
    backbone: Optional[str] = None  # noqa: UP045
    dry_run: Optional[str] = None  # noqa: UP045
    license: Optional[str] = None  # noqa: UP045


@dataclass
class WordsConfig:
    """Nearest words of a prompt's learned tokens.

    Attributes:
        prompt: folder of the learned prompt.
        count: words per token.
        backbone: where the backbone lies now, if not where it did: local-dir:FOLDER, transformers-dir:FOLDER,
            hf-hub:ORG/REPO or transformers:ORG/REPO, or a checkpoint file; its weights must be the same.
    """

    prompt: str
    count: int = 5
    backbone: Optional[str] = None  # noqa: UP045


@dataclass
class InspectConfig:
    """What learning changed against zero-shot: similarities, gains, confusion, calibration.

    Attributes:
        folder: of a few-shot or base-to-novel run, with its record and its prompt.
        output: folder for the page and its pictures; by default inspect in the run's folder.
        data_root: where the datasets lie, if not where they did.
        features_dir: folder of stored image features; by default that of the folder the run lies in.
        backbone: where the backbone lies, if not where it did, as local-dir:FOLDER or hf-hub:ORG/REPO; its
            weights must be the same.
        workers: processes that decode images that are not stored yet.
        images: pictures of changed predictions, for gains and for losses.
        rows: entries of each list of classes.
    """

    folder: str
    output: Optional[str] = None  # noqa: UP045
    data_root: Optional[str] = None  # noqa: UP045
    features_dir: Optional[str] = None  # noqa: UP045
    backbone: Optional[str] = None  # noqa: UP045
    workers: int = 0
    images: int = 8
    rows: int = 10


@dataclass
class QuickstartConfig:
    """The whole line on embedded data in about a minute: runs, table, figures.

    Attributes:
        output: folder of the results.
    """

    output: str = "runs/quickstart"
