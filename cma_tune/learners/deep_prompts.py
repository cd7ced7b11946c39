"""What methods with prompts before many blocks share: visual prompts, and deep contexts in the text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.prompted_image_tower import PromptedImageTower
from cma_tune.clip.text_tower import NativeTextTower
from cma_tune.errors import UserError
from cma_tune.learners.base import Learner
from cma_tune.learners.coop import ContextOptions, PlainContextLearner
from cma_tune.learners.starts import normal_start


class VisualPrompts(Learner):
    """Base of methods that put prompts among the tokens of the image tower.

    Attributes:
        image_tower: takes the prompts.
        depth: number of first blocks, of each tower with prompts, that get prompts of their own.
        share: of a tower's blocks that `depth` is by default.
    """

    trains_images = True
    image_tower: PromptedImageTower
    depth: int
    share: ClassVar[float] = 1.0

    def image_prompts(self) -> Sequence[Tensor]:
        """Prompts ``[P, W]`` of each of the first `depth` blocks."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def encode_images(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features ``[B, D]`` of unit length under the learned prompts."""
        return self.backbone.unit_length(self.image_tower(images, self.image_prompts()))

    @classmethod
    def checked_depth(cls, depth: int | None, blocks: int, where: str) -> int:
        """`depth`, or the default one, if there are so many of the `blocks` that take prompts.

        Raises:
            UserError: there are not; `where` names the backbone.
        """
        chosen = max(1, int(cls.share * blocks)) if depth is None else depth
        if not 1 <= chosen <= blocks:
            raise UserError(
                f"Expected --{cls.name}.depth from 1 to {blocks}, the blocks that take prompts in '{where}', "
                f"got {chosen}; choose a smaller depth or another backbone."
            )
        return chosen


class DeepPrompts(VisualPrompts, PlainContextLearner):
    """Prompts before the first blocks of both towers; base of methods that differ in the visual ones.

    The context stands before the first block of the text tower; before each further one, up to `depth`, its
    places get vectors of their own (deep prompts).

    Args:
        backbone, class_names, options, seed, context: see `ContextLearner`.
        depth: number of blocks; by default `share` of those that both towers have.

    Attributes:
        deep: contexts ``[depth − 1, M, W]`` of the second block and those after it, None for a depth of 1.

    Raises:
        UserError: the image tower can't take prompts, there are not so many blocks that can, or `options` ask
            for class-specific contexts.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        depth: int | None = None,
    ) -> None:
        if options is not None and options.per_class:
            raise UserError(f"Expected a shared context for {self.name}, got class-specific ones.")
        super().__init__(backbone, class_names, options, seed, context)
        self.image_tower = PromptedImageTower(backbone)
        # Other text towers take a context at their beginning alone.
        blocks = backbone.tower.layers if isinstance(backbone.tower, NativeTextTower) else 1
        self.depth = self.checked_depth(depth, min(blocks, self.image_tower.layers), backbone.name)
        deep = None
        if self.depth > 1:
            start = normal_start((self.depth - 1, *self.context.shape), seed, "deep contexts")
            deep = nn.Parameter(start.to(backbone.device))
        self.deep = deep

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings ``[C, D]`` under the learned contexts."""
        deep = [] if self.deep is None else [context[None] for context in self.deep]
        return self.prompts.encode(self.context[None], deep, same_on_every_process=True)[0]

    def for_classes(self, class_names: Sequence[str]) -> DeepPrompts:
        """The learned prompts of both towers over other names; the parameters are shared, not copied."""
        other = super().for_classes(class_names)
        assert isinstance(other, DeepPrompts)
        for name, parameter in self._parameters.items():
            other.register_parameter(name, parameter)
        for name, module in self._modules.items():
            other.register_module(name, module)
        return other

    def describe(self) -> dict[str, Any]:
        """The context's form and shape, and the depth."""
        return {**super().describe(), "options": {"depth": self.depth}}
