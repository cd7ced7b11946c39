"""What a run is: plain dataclasses that YAML files and flags fill. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Optional, Union

from cma_tune.method_facts import BLOCKS, TRAINS_IMAGES, unused_blocks
from cma_tune.method_options import (
    ClipAdapterConfig,
    ContextConfig,
    IvlpConfig,
    KgCoOpConfig,
    LearnerName,
    LoraConfig,
    LossConfig,
    MapleConfig,
    OptimConfig,
    ProGradConfig,
    PromptSrcConfig,
    TcpConfig,
    TipConfig,
    VptConfig,
)

# Optional[…] and Union[…] below: the command line reads these annotations at run time, on Python 3.10 too.

Weight = Union[float, Literal["recipe"]]  # noqa: UP007
"""λ, or "recipe": the release's λ for this dataset and these shots."""

Precision = Literal["no", "fp16", "bf16"]
"""What is computed in; "no" is float32."""


@dataclass
class AugmentConfig:
    """Training crops.

    Attributes:
        scale_min: smallest share of the image's area that is cut out.
        flip: probability of a horizontal flip.
    """

    scale_min: float = 0.08
    flip: float = 0.5


@dataclass
class SourceConfig:
    """Columns and parts of folder:, csv: and hub: datasets.

    Attributes:
        image_column: holds the image (hub) or its path (csv; "path" by default).
        label_column: holds the class.
        split_column: csv column that says train, val or test.
        train_split: name of the training part.
        val_split: name of the validation part.
        test_split: name of the test part.
        class_names: file with one class name a line, in label order.
    """

    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    class_names: Optional[str] = None  # noqa: UP045


@dataclass
class ZeroShotConfig:
    """Zero-shot accuracy of a backbone with a dataset's templates.

    Attributes:
        dataset: digits, shapes, a catalogue name, folder:PATH, csv:FILE or hub:REPO.
        data_root: folder that holds the datasets' folders.
        source: columns and parts of general sources.
        templates: prompts with one {} each, averaged; by default the dataset's.
        backbone: embedded, an open_clip model, hf-hub:ORG/REPO or local-dir:FOLDER in open_clip's form, or
            transformers:ORG/REPO or transformers-dir:FOLDER in transformers'.
        pretrained: tag or checkpoint file for an open_clip model.
        model_config: JSON file of an own open_clip architecture.
        output: folder of the results.
        features_dir: folder of stored image features; by default inside the output folder.
        workers: processes that decode images.
        mixed_precision: by default accelerate's setting.
        eval_batch_size: images per step in evaluation and encoding.
        compile: image tower and packed text tower under torch.compile; compiling takes minutes at first,
            which only long runs make up for.
    """

    dataset: str = "digits"
    data_root: str = "data"
    source: SourceConfig = field(default_factory=SourceConfig)
    templates: list[str] = field(default_factory=list)
    backbone: str = "embedded"
    pretrained: Optional[str] = None  # noqa: UP045
    model_config: Optional[str] = None  # noqa: UP045
    output: str = "runs"
    features_dir: Optional[str] = None  # noqa: UP045
    workers: int = 0
    mixed_precision: Optional[Precision] = None  # noqa: UP045
    eval_batch_size: int = 100
    compile: bool = False


@dataclass
class FewShotConfig(ZeroShotConfig):
    """Few-shot adaptation: every combination of shots, seeds and λ is one run.

    Attributes:
        learner: the method, such as coop; the README has a table of them.
        context: the learned context.
        kgcoop: options of KgCoOp.
        prograd: options of ProGrad.
        tcp: options of TCP.
        tip: options of Tip-Adapter.
        clip_adapter: options of CLIP-Adapter.
        vpt: options of VPT.
        ivlp: options of IVLP.
        maple: options of MaPLe.
        promptsrc: options of PromptSRC.
        lora: options of LoRA.
        shots: training images per class.
        seeds: of picks, start and noise.
        weights: λ of (1−λ)·CE + λ·CMA, or "recipe".
        select_weight: choose among the λ on the few-shot validation images.
        allow_fewer_shots: take all images of classes with fewer than the shots.
        loss: form of the CMA loss; by default the release's where a λ is "recipe", else the paper's.
        optim: optimiser and schedule.
        augment: training crops.
        train_features: live encodes fresh crops in every epoch, stored encodes `views` crops once.
        views: crops per image for stored training features; 0 is the test transform.
        image_memory: GiB for decoded images of live features, and of tests of learned image towers.
        text_chunk: prompts that go through the text tower at once, the others being recomputed in the
            backward pass; 0 is as many as fit text_memory.
        text_memory: GiB for the text tower's activations, roughly.
        checkpoint_every: also save every so many steps; 0 saves at epoch boundaries.
        resume: go on from checkpoints and skip finished runs.
        tracker: accelerate tracker, such as tensorboard.
    """

    learner: LearnerName = "coop"
    context: ContextConfig = field(default_factory=ContextConfig)
    kgcoop: KgCoOpConfig = field(default_factory=KgCoOpConfig)
    prograd: ProGradConfig = field(default_factory=ProGradConfig)
    tcp: TcpConfig = field(default_factory=TcpConfig)
    tip: TipConfig = field(default_factory=TipConfig)
    clip_adapter: ClipAdapterConfig = field(default_factory=ClipAdapterConfig)
    vpt: VptConfig = field(default_factory=VptConfig)
    ivlp: IvlpConfig = field(default_factory=IvlpConfig)
    maple: MapleConfig = field(default_factory=MapleConfig)
    promptsrc: PromptSrcConfig = field(default_factory=PromptSrcConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    shots: list[int] = field(default_factory=lambda: [16])
    seeds: list[int] = field(default_factory=lambda: [1])
    weights: list[Weight] = field(default_factory=lambda: [0.0])
    select_weight: bool = False
    allow_fewer_shots: bool = False
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train_features: Literal["live", "stored"] = "live"
    views: int = 0
    image_memory: float = 2.0
    text_chunk: int = 0
    text_memory: float = 4.0
    checkpoint_every: int = 0
    resume: bool = True
    tracker: Optional[str] = None  # noqa: UP045


@dataclass
class BaseToNovelConfig(FewShotConfig):
    """Learn on the base half of the classes, test on both halves. Fields as in few-shot."""


def shared_entries(kind: type, config: object) -> dict[str, Any]:
    """Those entries of `config` that the dataclass `kind` has too, by name."""
    return {entry.name: getattr(config, entry.name) for entry in fields(kind) if hasattr(config, entry.name)}


def searched(config: FewShotConfig) -> str | None:
    """The flag that has a method's own option chosen on the validation images, None where none has."""
    return "--tip.search" if config.tip.search and "tip" in BLOCKS[config.learner] else None


def trains_images(config: FewShotConfig) -> bool:
    """Whether the image side changes as the method learns, so that its features can't be stored."""
    frozen = config.learner == "lora" and config.lora.towers == "text"
    return config.learner in TRAINS_IMAGES and not frozen


def entries(config: object) -> dict[str, Any]:
    """A config as JSON, without the options of other methods than its own."""
    content: dict[str, Any] = asdict(config)  # type: ignore[call-overload]
    if isinstance(config, FewShotConfig):
        unused = unused_blocks(config.learner)
        content = {name: value for name, value in content.items() if name not in unused}
    return content


def flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested entries with their paths, as ``("optim.lr", 0.002)``."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
