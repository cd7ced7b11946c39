"""What a run is: plain dataclasses that YAML files and flags fill. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

from cma_tune.method_facts import BLOCKS, TRAINS_IMAGES, default_optimizer, unused_blocks
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
    resolved_loss,
)
from cma_tune.recipes import recipe_epochs, recipe_weight

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
        compile: run image tower and packed text tower under torch.compile.
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


WHERE = ("output", "features_dir", "data_root")
HOW = (
    *("workers", "eval_batch_size", "compile", "image_memory", "text_chunk", "text_memory"),
    *("checkpoint_every", "resume", "tracker"),
)
"""With WHERE, the entries of a config that don't decide a run's result."""


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


ONLY: dict[str, Any] = {"optimizer": "sgd", "schedule": "cosine", "steps_per_shot": None}
"""Entries of the optimiser that came later, with what there was before."""


def flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested entries with their paths, as ``("optim.lr", 0.002)``."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def identity_digest(identity: dict[str, Any]) -> str:
    """SHA-256 of what decides a run's result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One run of a protocol: its config with the sweep axes fixed.

    Attributes:
        protocol: zero-shot, few-shot or base-to-novel.
        config: the config; its lists hold one value each, and λ is a number.
    """

    protocol: str
    config: Union[ZeroShotConfig, FewShotConfig]  # noqa: UP007

    def identity(self) -> dict[str, Any]:
        """What decides the result: the config without where and how it is computed."""
        content = {name: value for name, value in entries(self.config).items() if name not in WHERE + HOW}
        if "optim" in content:
            # What once was the only way goes without saying: runs of that time are still the same.
            optim = content["optim"].items()
            content["optim"] = {name: value for name, value in optim if ONLY.get(name, ...) != value}
        return {"protocol": self.protocol, **content}

    def digest(self) -> str:
        """SHA-256 of the identity."""
        return identity_digest(self.identity())

    def prompt_folder(self) -> Path:
        """Where the run leaves its learned prompt."""
        return self.folder() / "prompt"

    def folder(self) -> Path:
        """Where the run leaves its record."""
        config = self.config
        place = Path(config.output) / self.protocol / slug(config.dataset) / slug(_backbone_name(config))
        if not isinstance(config, FewShotConfig):
            return place / "zero_shot"
        if config.select_weight:
            method = f"{config.learner}+cma-selected"
        else:
            weight = config.weights[0]
            method = config.learner if weight == 0 else f"{config.learner}+cma-{weight:g}"
        return place / method / f"shots{config.shots[0]}" / f"seed{config.seeds[0]}"


def _backbone_name(config: ZeroShotConfig) -> str:
    folder = backbone_folder(config.backbone)
    if folder is not None:
        return Path(folder).resolve().name
    return f"{config.backbone}-{Path(config.pretrained).stem}" if config.pretrained else config.backbone


def backbone_folder(name: str) -> str | None:
    """The folder in a backbone's name, if it is one."""
    kind, colon, folder = name.partition(":")
    return folder if colon and kind in ("local-dir", "transformers-dir") else None


def slug(text: str) -> str:
    """`text` as a folder name."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text).strip("_") or "_"


def resolved_optim(config: FewShotConfig, shots: int) -> OptimConfig:
    """The optimiser with the method's own values where the config has none; epochs or steps per shot."""
    own = {"epochs": recipe_epochs(config.dataset, shots), **default_optimizer(config.learner)}
    given = {name: value for name, value in asdict(config.optim).items() if value is not None}
    if "epochs" in given:
        given["steps_per_shot"] = None
    elif "steps_per_shot" in given:
        given["epochs"] = None
    return OptimConfig(**{**own, **given})


def expand(protocol: str, config: FewShotConfig, own_weights: Mapping[int, float] | None = None) -> list[Run]:
    """The runs of a config: one for every combination of shots, seeds and λ, "recipe" resolved.

    Args:
        protocol: of the runs.
        config: with the axes.
        own_weights: what "recipe" is by shots (0: whatever the shots) on a dataset of the user's catalogue.

    Raises:
        UserError: the release has no λ for the dataset, and neither has the user's catalogue.
    """
    runs: dict[str, Run] = {}
    loss = resolved_loss(config.loss, of_release="recipe" in config.weights)
    for shots in config.shots:
        for weight in config.weights:
            is_recipe = isinstance(weight, str)
            number = recipe_weight(config.dataset, shots, own_weights) if is_recipe else float(weight)
            for seed in config.seeds:
                one = replace(
                    config,
                    shots=[shots],
                    seeds=[seed],
                    weights=[number],
                    select_weight=False,
                    loss=loss,
                    optim=resolved_optim(config, shots),
                )
                run = Run(protocol, one)
                runs[run.digest()] = run  # a number and "recipe" may mean the same λ
    return list(runs.values())
