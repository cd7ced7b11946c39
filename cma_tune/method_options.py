"""What the methods take beside the common options.

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

# Optional[…] below: the command line reads these annotations at run time, on Python 3.10 too.

LearnerName = Literal[
    "coop",
    "cocoop",
    "kgcoop",
    "prograd",
    "tcp",
    "linear_probe",
    "linear_probe_text",
    "cross_modal_probe",
    "tip_adapter",
    "tip_adapter_f",
    "clip_adapter",
    "lp_plus_plus",
    "vpt",
    "ivlp",
    "maple",
    "promptsrc",
    "lora",
]
"""The methods, each the `name` of a learner."""

Optimizer = Literal["sgd", "adam", "adamw"]


@dataclass
class ContextConfig:
    """The learned context.

    Attributes:
        tokens: number of context tokens.
        position: place of the class name.
        per_class: one context per class.
        words: start from these words instead of at random; their number of tokens replaces `tokens`.
    """

    tokens: int = 16
    position: Literal["end", "middle", "front"] = "end"
    per_class: bool = False
    words: Optional[str] = None  # noqa: UP045


@dataclass
class KgCoOpConfig:
    """KgCoOp.

    Attributes:
        weight: of the squared distance between learned and hand-written prompts' text features. The authors'
            code takes one less the cosine, half of it: their 8 there is 4 here.
    """

    weight: float = 8.0


@dataclass
class ProGradConfig:
    """ProGrad.

    Attributes:
        weight: how much of the opposing part of a step is taken out: 1 is all of it.
        temperature: that both distributions are softened by before they are compared.
    """

    weight: float = 1.0
    temperature: float = 1.0


@dataclass
class TcpConfig:
    """TCP.

    Attributes:
        layer: block of the text tower, from 0, before which the class-aware tokens come in; by default two
            thirds of the way up, the paper's 8 of 12.
        weight: of one less the mean cosine of learned and hand-written prompts' text features.
    """

    layer: Optional[int] = None  # noqa: UP045
    weight: float = 8.0


@dataclass
class TipConfig:
    """Tip-Adapter and Tip-Adapter-F; the defaults are those of the paper's ablations.

    Attributes:
        alpha: the cache's share in the logits.
        beta: how sharply the cache weighs near images.
        search: choose both on the few-shot validation images after training; the record says so.
    """

    alpha: float = 1.0
    beta: float = 5.5
    search: bool = False


@dataclass
class ClipAdapterConfig:
    """CLIP-Adapter.

    Attributes:
        ratio: share of the adapted features in the image features.
    """

    ratio: float = 0.2


@dataclass
class VptConfig:
    """VPT.

    Attributes:
        tokens: prompts before a block of the image tower.
        depth: number of first blocks with own prompts, by default all; 1 is VPT-shallow.
    """

    tokens: int = 8
    depth: Optional[int] = None  # noqa: UP045


@dataclass
class IvlpConfig:
    """IVLP.

    Attributes:
        tokens: learned context tokens before a block of the text tower.
        image_tokens: prompts before a block of the image tower.
        depth: number of first blocks of both towers with own prompts, by default all.
        words: the prompt's beginning; its first tokens are learned, the others stay. null: a random start.
    """

    tokens: int = 2
    image_tokens: int = 2
    depth: Optional[int] = None  # noqa: UP045
    words: Optional[str] = "a photo of a"  # noqa: UP045


@dataclass
class MapleConfig:
    """MaPLe.

    Attributes:
        tokens: learned context tokens before a block, and so many projections of them in the image tower.
        depth: number of first blocks with own prompts, by default three quarters, the paper's 9 of 12.
        words: the prompt's beginning; its first tokens are learned, the others stay. null: a random start.
    """

    tokens: int = 2
    depth: Optional[int] = None  # noqa: UP045
    words: Optional[str] = "a photo of a"  # noqa: UP045


@dataclass
class PromptSrcConfig:
    """PromptSRC.

    Attributes:
        tokens: learned context tokens before a block of the text tower.
        image_tokens: prompts before a block of the image tower.
        depth: number of first blocks with own prompts, by default three quarters, the paper's 9 of 12.
        words: the prompt's beginning; its first tokens are learned, the others stay. null: a random start.
        text_weight: of the distance to the frozen text features.
        image_weight: of the distance to the frozen image features.
        mean: epoch, from 1, that weighs most in the mean of the prompts; by default three quarters of the
            epochs, the paper's 15 of 20.
        std: standard deviation of these weights, in epochs.
    """

    tokens: int = 4
    image_tokens: int = 4
    depth: Optional[int] = None  # noqa: UP045
    words: Optional[str] = "a photo of a"  # noqa: UP045
    text_weight: float = 25.0
    image_weight: float = 10.0
    mean: Optional[float] = None  # noqa: UP045
    std: float = 1.0


@dataclass
class LoraConfig:
    """LoRA; the defaults are CLIP-LoRA's.

    Attributes:
        rank: r of the low-rank matrices.
        alpha: what they make counts alpha/√rank times.
        rslora: that; without it alpha/rank times, as in LoRA's paper.
        dropout: of what goes into them, in training.
        towers: which towers are adapted; with text alone image features may be stored.
        matrices: which of every block: q, k, v, o (attention's output), fc1, fc2 (the MLP).
        layers: which blocks: all, last:N, or numbers from 0 with commas between.
    """

    rank: int = 2
    alpha: float = 1.0
    rslora: bool = True
    dropout: float = 0.25
    towers: Literal["both", "text", "image"] = "both"
    matrices: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    layers: str = "all"


LORA_MATRICES = ("q", "k", "v", "o", "fc1", "fc2")


def lora_layers(text: str) -> int | tuple[int, ...] | None:
    """The blocks that `text` means: None for all, a number for so many last ones, or which.

    Raises:
        ValueError: it is none of these.
    """
    if text == "all":
        return None
    if text.startswith("last:"):
        return int(text.removeprefix("last:"))
    return tuple(int(number) for number in text.split(","))


@dataclass
class LossConfig:
    """Form of the CMA loss: the paper's is sum without normalisation, the release's mean with it.

    Attributes:
        reduction: over the classes present in a batch.
        normalize: divide a group's entropy by the logarithm of its size.
    """

    reduction: Optional[Literal["sum", "mean"]] = None  # noqa: UP045
    normalize: Optional[bool] = None  # noqa: UP045


PAPER_FORM, RELEASE_FORM = LossConfig("sum", False), LossConfig("mean", True)


def resolved_loss(loss: LossConfig, of_release: bool) -> LossConfig:
    """The form with the release's entries, or else the paper's, where it has none."""
    default = RELEASE_FORM if of_release else PAPER_FORM
    return LossConfig(
        default.reduction if loss.reduction is None else loss.reduction,
        default.normalize if loss.normalize is None else loss.normalize,
    )


@dataclass
class OptimConfig:
    """Optimiser and schedule; what is left out is the method's own.

    Attributes:
        optimizer: sgd, adam or adamw.
        epochs: passes over the few-shot images; CoOp's number depends on the shots.
        batch_size: global, over all processes.
        lr: peak learning rate.
        warmup_lr: learning rate of the first epoch.
        schedule: a cosine after the warm-up, or lr at every epoch.
        momentum: of SGD.
        weight_decay: of the optimiser.
        steps_per_shot: in place of epochs: as many as it takes to make this number of steps times the shots.
    """

    optimizer: Optional[Optimizer] = None  # noqa: UP045
    epochs: Optional[int] = None  # noqa: UP045
    batch_size: Optional[int] = None  # noqa: UP045
    lr: Optional[float] = None  # noqa: UP045
    warmup_lr: Optional[float] = None  # noqa: UP045
    schedule: Optional[Literal["cosine", "constant"]] = None  # noqa: UP045
    momentum: float = 0.9
    weight_decay: Optional[float] = None  # noqa: UP045
    steps_per_shot: Optional[int] = None  # noqa: UP045
