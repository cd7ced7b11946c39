"""VPT: learned prompts among the tokens of the image tower alone (Jia et al. 2022, ECCV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.prompted_image_tower import PromptedImageTower
from cma_tune.learners.deep_prompts import VisualPrompts
from cma_tune.learners.starts import normal_start
from cma_tune.learners.zero_shot import ZeroShot


class Vpt(VisualPrompts):
    """Prompts before each of the image tower's first `depth` blocks (VPT-deep, sec. 3.2; 1: VPT-shallow).

    The text side stays that of the hand-written prompts, as MaPLe's authors have it for CLIP.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        templates: hand-written prompts with one ``{}`` each.
        tokens: prompts P before a block.
        depth: number of blocks, by default all.
        seed: of the random start, N(0, 0.02²).
        prompts: to share instead of a start of their own.

    Attributes:
        prompts: ``[depth, P, W]``.

    Raises:
        UserError: the image tower can't take prompts, or has not so many blocks.
    """

    name = "vpt"
    embeddings: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        templates: Sequence[str],
        tokens: int = 8,
        depth: int | None = None,
        seed: int = 0,
        prompts: nn.Parameter | None = None,
    ) -> None:
        super().__init__(backbone, class_names)
        self.image_tower = PromptedImageTower(backbone)
        self.depth = self.checked_depth(depth, self.image_tower.layers, backbone.name)
        zero_shot = ZeroShot(backbone, class_names, templates)
        self.templates = zero_shot.templates
        self.register_buffer("embeddings", zero_shot.embeddings, persistent=False)
        if prompts is None:
            start = normal_start((self.depth, tokens, self.image_tower.width), seed)
            prompts = nn.Parameter(start.to(backbone.device))
        self.prompts = prompts

    def image_prompts(self) -> Sequence[Tensor]:
        """See `VisualPrompts`."""
        return self.prompts.unbind()

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """The hand-written prompts' features ``[C, D]``."""
        return self.embeddings

    def for_classes(self, class_names: Sequence[str]) -> Vpt:
        """The same visual prompts before other names in the same templates; they are shared, not copied."""
        return Vpt(self.backbone, class_names, self.templates, depth=self.depth, prompts=self.prompts)

    def describe(self) -> dict[str, Any]:
        """Number and depth of the prompts, and the templates."""
        tokens = self.prompts.shape[1]
        return {"options": {"tokens": tokens, "depth": self.depth, "templates": list(self.templates)}}

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> Vpt:
        """See `Learner.from_card`."""
        options = card["options"]
        numbers = (int(options["tokens"]), int(options["depth"]))
        return cls(backbone, class_names, list(options["templates"]), *numbers)
