"""Zero-shot CLIP: class embeddings from templates, nothing learned (Radford et al. 2021, sec. 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.data.splits import prompt_name
from cma_tune.errors import UserError
from cma_tune.learners.base import Learner


def template_texts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """The prompts of every class in each of T templates.

    Raises:
        UserError: a template has no place for the name, or there is none.
    """
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise UserError(
            "Expected templates with one {} each for the class name, "
            + (f"got '{wrong[0]}'." if wrong else "got none.")
        )
    names = [prompt_name(name) for name in class_names]
    # Not str.format: braces in a template or a name mean nothing more.
    return [[template.replace("{}", name) for name in names] for template in templates]


def template_features(backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Text features ``[T, C, D]`` of unit length of every class in each of T templates.

    Raises:
        UserError: see `ZeroShot`.
    """
    prompts = template_texts(class_names, templates)
    return torch.stack([backbone.encode_texts(texts, class_names=class_names) for texts in prompts])


class ZeroShot(Learner):
    """Class embeddings are the normalised mean over templates of the normalised text features.

    Args:
        backbone: the frozen model.
        class_names: the classes; underscores become spaces.
        templates: prompts with one ``{}`` each.

    Raises:
        UserError: a prompt is longer than the text tower takes, naming the class; or a template has no
            place for the name.
    """

    name = "zero_shot"
    embeddings: Tensor

    def __init__(self, backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(backbone, class_names)
        self.templates = tuple(templates)
        per_template = template_features(backbone, class_names, templates)
        mean = nn.functional.normalize(per_template.mean(dim=0), dim=-1)
        self.register_buffer("embeddings", mean, persistent=False)

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings ``[C, D]``."""
        return self.embeddings

    def for_classes(self, class_names: Sequence[str]) -> ZeroShot:
        """The same templates over other names."""
        return ZeroShot(self.backbone, class_names, self.templates)
