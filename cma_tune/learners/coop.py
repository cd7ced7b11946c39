"""CoOp: learned context tokens before, around or after the class name (Zhou et al. 2022, IJCV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.context_prompts import ContextPrompts
from cma_tune.clip.prompts import Position, place_context
from cma_tune.errors import UserError
from cma_tune.learners.base import Learner
from cma_tune.learners.starts import normal_start


@dataclass(frozen=True)
class ContextOptions:
    """The learned context.

    Attributes:
        tokens: number of context tokens M (set by `words` where given).
        position: place of the class name.
        per_class: one context per class instead of a shared one.
        words: start from the embeddings of these words instead of N(0, 0.02²).
        learned: only so many of the words' first tokens are learned, the others stay before the class name.
    """

    tokens: int = 16
    position: Position = "end"
    per_class: bool = False
    words: str | None = None
    learned: int | None = None


def _word_ids(backbone: Backbone, options: ContextOptions) -> tuple[list[int], list[int]]:
    """Token ids of the words that start the context, and of those that stay; none without words."""
    if options.words is None:
        return [], []
    ids = backbone.tokenizer.words(options.words.replace("_", " "))
    if not ids:
        raise UserError(f"Expected words to start the context from, got '{options.words}'.")
    learned = len(ids) if options.learned is None else options.learned
    if not 0 < learned <= len(ids):
        raise UserError(
            f"Expected 1 to {len(ids)} learned tokens to start from the words '{options.words}', got "
            f"{learned}; give other words, or none for a random start."
        )
    return ids[:learned], ids[learned:]


def initial_context(backbone: Backbone, options: ContextOptions, classes: int, seed: int) -> Tensor:
    """Context vectors ``[M, W]``, or ``[C, M, W]`` per class, in float32.

    Raises:
        UserError: `words` holds none or fewer than are learned, or there are no context tokens.
    """
    ids, _ = _word_ids(backbone, options)
    if ids:
        with torch.no_grad():
            embeddings = backbone.tower.token_embeddings(torch.tensor([ids], device=backbone.device))
        context = embeddings[0].float().cpu()
        return context.expand(classes, -1, -1).clone() if options.per_class else context.clone()
    if options.tokens < 1:
        raise UserError(f"Expected at least 1 context token, got {options.tokens}; use zero-shot for none.")
    shape = (options.tokens, backbone.tower.width)
    return normal_start((classes, *shape) if options.per_class else shape, seed)


def _check_context(context: Tensor, options: ContextOptions, classes: int, width: int) -> None:
    leading = (classes,) if options.per_class else ()
    shape = tuple(context.shape)
    if len(shape) != len(leading) + 2 or shape[:-2] != leading or shape[-1] != width or shape[-2] < 1:
        wanted = ", ".join([*map(str, leading), "tokens", str(width)])
        raise UserError(f"Expected context vectors of shape [{wanted}], got {list(shape)}.")


class ContextLearner(Learner):
    """Prompts with room for a context; base of the methods that learn one.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        options: the context's form.
        seed: of the random start.
        context: context vectors to take instead of a start of their own.

    Attributes:
        context: the learned vectors, ``[M, W]`` or per class ``[C, M, W]``.
        options: with the number of tokens there really are.
        prompts: the classes' prompts, which encode contexts.

    Raises:
        UserError: a prompt is too long for the text tower, naming the class; or `context` does not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
    ) -> None:
        super().__init__(backbone, class_names)
        options = options or ContextOptions()
        if context is None:
            start = initial_context(backbone, options, len(class_names), seed).to(backbone.device)
            context = nn.Parameter(start)
        _check_context(context, options, len(class_names), backbone.tower.width)
        self.context = context
        self.options = options = replace(options, tokens=context.shape[-2])
        _, fixed = _word_ids(backbone, options)
        layout = place_context(backbone.tokenizer, class_names, options.tokens, options.position, fixed)
        self.prompts = ContextPrompts(backbone, layout, options.per_class)

    def _check_shared(self) -> None:
        if self.options.per_class:
            raise UserError(
                "Expected a shared context to put on other class names, got class-specific contexts, "
                "which belong to the classes they were learned on; learn with --context.per-class false."
            )

    def describe(self) -> dict[str, Any]:
        """The context's form and shape."""
        return {"context": {**asdict(self.options), "shape": list(self.context.shape)}}

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> ContextLearner:
        """See `Learner.from_card`."""
        options = dict(card["context"])
        shape = [int(length) for length in options.pop("shape")]
        found = list(weights["context"].shape) if "context" in weights else "none"
        if found != shape:
            raise UserError(f"Expected context vectors of shape {shape} beside the card, got {found}.")
        context = nn.Parameter(weights["context"].to(backbone.device))
        more = cls._more(card)
        return cls(backbone, class_names, options=ContextOptions(**options), context=context, **more)

    @classmethod
    def _more(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a subclass's constructor, from a card."""
        return {}


class PlainContextLearner(ContextLearner):
    """A context that is the same for every image; base of CoOp and of what differs from it in its loss."""

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings ``[C, D]`` under the learned context."""
        return self.prompts.encode(self.context[None], same_on_every_process=True)[0]

    def for_classes(self, class_names: Sequence[str]) -> PlainContextLearner:
        """The learned context over other names; the parameter is shared, not copied.

        Raises:
            UserError: the context is class-specific.
        """
        self._check_shared()
        more = self._more(self.describe())
        return type(self)(self.backbone, class_names, self.options, context=self.context, **more)


class AnchoredContextLearner(PlainContextLearner):
    """Base of what holds the learned prompts against the hand-written ones in training.

    Args:
        backbone, class_names, options, seed, context: see `ContextLearner`.
        anchors: text features ``[C, D]`` of the hand-written prompts; only training needs them.
    """

    anchors: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        anchors: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, class_names, options, seed, context)
        self.register_buffer("anchors", anchors, persistent=False)

    def needed_anchors(self) -> Tensor:
        """The anchors.

        Raises:
            ValueError: the learner was made without them.
        """
        if self.anchors is None:
            raise ValueError(
                f"Expected the hand-written prompts' features to train {type(self).__name__}, got none."
            )
        return self.anchors


class CoOp(PlainContextLearner):
    """One context, shared by all classes or one per class, learned through the frozen text tower."""

    name = "coop"
