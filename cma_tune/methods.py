"""From a config to an untrained learner, one function a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from cma_tune.clip.backbone import Backbone
from cma_tune.config import FewShotConfig
from cma_tune.learners import (
    ClipAdapter,
    CoCoOp,
    CoOp,
    CrossModalProbe,
    Ivlp,
    KgCoOp,
    Learner,
    LinearProbe,
    Lora,
    LpPlusPlus,
    MaPLe,
    ProGrad,
    PromptSrc,
    Support,
    Tcp,
    TextLinearProbe,
    TipAdapter,
    TipAdapterF,
    Vpt,
    ZeroShot,
)
from cma_tune.learners.adapted import LoraOptions
from cma_tune.learners.coop import ContextOptions
from cma_tune.learners.promptsrc import diverse_templates
from cma_tune.learners.zero_shot import template_features
from cma_tune.method_options import IvlpConfig, MapleConfig, PromptSrcConfig, lora_layers


@dataclass(frozen=True)
class Given:
    """What learners are made from.

    Attributes:
        backbone: the frozen model.
        class_names: the classes.
        templates: hand-written prompts with one ``{}`` each.
        seed: of random starts.
        load_support: gives the training images' features; called by methods that are made from them.
    """

    backbone: Backbone
    class_names: Sequence[str]
    templates: Sequence[str]
    seed: int
    load_support: Callable[[], Support]

    @cached_property
    def hand_prompts(self) -> Tensor:
        """Text features ``[C, D]`` of the hand-written prompts."""
        return ZeroShot(self.backbone, self.class_names, self.templates).embeddings


def make_learner(config: FewShotConfig, given: Given) -> Learner:
    """An untrained learner of the config's method."""
    return MAKERS[config.learner](config, given)


def context_options(config: FewShotConfig) -> ContextOptions:
    """The form of a config's context."""
    context = config.context
    return ContextOptions(context.tokens, context.position, context.per_class, context.words)


def _coop(config: FewShotConfig, given: Given) -> Learner:
    return CoOp(given.backbone, given.class_names, context_options(config), given.seed)


def _cocoop(config: FewShotConfig, given: Given) -> Learner:
    return CoCoOp(given.backbone, given.class_names, context_options(config), given.seed)


def _kgcoop(config: FewShotConfig, given: Given) -> Learner:
    return KgCoOp(
        given.backbone,
        given.class_names,
        context_options(config),
        given.seed,
        weight=config.kgcoop.weight,
        anchors=given.hand_prompts,
    )


def _prograd(config: FewShotConfig, given: Given) -> Learner:
    return ProGrad(
        given.backbone,
        given.class_names,
        context_options(config),
        given.seed,
        weight=config.prograd.weight,
        temperature=config.prograd.temperature,
        anchors=given.hand_prompts,
    )


def _tcp(config: FewShotConfig, given: Given) -> Learner:
    return Tcp(
        given.backbone,
        given.class_names,
        given.templates,
        context_options(config),
        given.seed,
        layer=config.tcp.layer,
        weight=config.tcp.weight,
    )


def _vpt(config: FewShotConfig, given: Given) -> Learner:
    vpt = config.vpt
    return Vpt(given.backbone, given.class_names, given.templates, vpt.tokens, vpt.depth, given.seed)


def _beginning(options: IvlpConfig | MapleConfig | PromptSrcConfig) -> ContextOptions:
    """The context of prompts whose first words are learned."""
    learned = None if options.words is None else options.tokens
    return ContextOptions(options.tokens, words=options.words, learned=learned)


def _ivlp(config: FewShotConfig, given: Given) -> Learner:
    ivlp = config.ivlp
    return Ivlp(
        given.backbone,
        given.class_names,
        _beginning(ivlp),
        given.seed,
        depth=ivlp.depth,
        image_tokens=ivlp.image_tokens,
    )


def _maple(config: FewShotConfig, given: Given) -> Learner:
    maple = config.maple
    return MaPLe(given.backbone, given.class_names, _beginning(maple), given.seed, depth=maple.depth)


def _promptsrc(config: FewShotConfig, given: Given) -> Learner:
    options = config.promptsrc
    return PromptSrc(
        given.backbone,
        given.class_names,
        _beginning(options),
        given.seed,
        depth=options.depth,
        image_tokens=options.image_tokens,
        text_weight=options.text_weight,
        image_weight=options.image_weight,
        mean=options.mean,
        std=options.std,
        anchors=ZeroShot(given.backbone, given.class_names, diverse_templates()).embeddings,
    )


def _linear_probe(config: FewShotConfig, given: Given) -> Learner:
    return LinearProbe(given.backbone, given.class_names)


def _linear_probe_text(config: FewShotConfig, given: Given) -> Learner:
    return TextLinearProbe(given.backbone, given.class_names, given.hand_prompts)


def _cross_modal_probe(config: FewShotConfig, given: Given) -> Learner:
    samples = template_features(given.backbone, given.class_names, given.templates)
    return CrossModalProbe(given.backbone, given.class_names, given.hand_prompts, samples)


def _tip_adapter(config: FewShotConfig, given: Given, kind: type[TipAdapter] = TipAdapter) -> Learner:
    tip = config.tip
    support = given.load_support()
    ratios = (tip.alpha, tip.beta, tip.search)
    return kind(given.backbone, given.class_names, given.hand_prompts, support, *ratios)


def _clip_adapter(config: FewShotConfig, given: Given) -> Learner:
    ratio = config.clip_adapter.ratio
    return ClipAdapter(given.backbone, given.class_names, given.templates, ratio, given.seed)


def _lp_plus_plus(config: FewShotConfig, given: Given) -> Learner:
    return LpPlusPlus(given.backbone, given.class_names, given.hand_prompts, given.load_support())


def _lora(config: FewShotConfig, given: Given) -> Learner:
    lora = config.lora
    options = LoraOptions(
        rank=lora.rank,
        alpha=lora.alpha,
        rslora=lora.rslora,
        dropout=lora.dropout,
        towers=lora.towers,
        matrices=tuple(lora.matrices),
        layers=lora_layers(lora.layers),
    )
    return Lora(given.backbone, given.class_names, given.templates, options, given.seed)


MAKERS: dict[str, Callable[[FewShotConfig, Given], Learner]] = {
    "coop": _coop,
    "cocoop": _cocoop,
    "kgcoop": _kgcoop,
    "prograd": _prograd,
    "tcp": _tcp,
    "linear_probe": _linear_probe,
    "linear_probe_text": _linear_probe_text,
    "cross_modal_probe": _cross_modal_probe,
    "tip_adapter": _tip_adapter,
    "tip_adapter_f": partial(_tip_adapter, kind=TipAdapterF),
    "clip_adapter": _clip_adapter,
    "lp_plus_plus": _lp_plus_plus,
    "vpt": _vpt,
    "ivlp": _ivlp,
    "maple": _maple,
    "promptsrc": _promptsrc,
    "lora": _lora,
}
