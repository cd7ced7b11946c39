"""What every exported form says of itself: one JSON text beside the weights or in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cma_tune.clip.backbone import Preprocessing
from cma_tune.errors import UserError
from cma_tune.files import read_json
from cma_tune.learners.base import Learner
from cma_tune.learners.cards import BACKBONE_ENTRIES, EXPORT

Form = Literal["classifier", "model", "onnx"]

FILE, FORMAT = EXPORT, 1

KEY = "cma_tune"
"""Entry of the metadata of safetensors and ONNX files that holds the text."""


@dataclass(frozen=True)
class Description:
    """An exported classifier.

    Attributes:
        form: which of the three.
        learner: the method.
        class_names: what the logits stand for, in order.
        scale: what products of unit image features and the rows are multiplied by.
        backbone: as in a prompt's card.
        preprocessing: what images go through first.
        learned: the prompt card's provenance, where the classes are those it was learned on.
    """

    form: Form
    learner: str
    class_names: tuple[str, ...]
    scale: float
    backbone: dict[str, Any]
    preprocessing: Preprocessing
    learned: dict[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, **asdict(self)}

    def text(self) -> str:
        """As a JSON text of one line."""
        return json.dumps(self.content(), ensure_ascii=False, allow_nan=False)


def describe(learner: Learner, form: Form, learned: Mapping[str, Any]) -> Description:
    """The description of a learner's classifier."""
    backbone = learner.backbone
    return Description(
        form=form,
        learner=learner.name,
        class_names=learner.class_names,
        scale=float(backbone.scale),
        backbone=backbone.describe(),
        preprocessing=backbone.preprocessing,
        learned=dict(learned),
    )


def read_description(path: Path) -> Description:
    """From the file beside the weights.

    Raises:
        UserError: it is missing, or something else.
    """
    return checked(read_json(path, "the description of an exported classifier"), path)


def parse_description(text: str, path: Path) -> Description:
    """From a JSON text in the metadata of `path`.

    Raises:
        UserError: it is something else.
    """
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        content = None
    return checked(content, path)


def checked(content: Any, path: Path) -> Description:
    """The description in some JSON of `path`.

    Raises:
        UserError: it is something else.
    """
    wrong = UserError(
        f"Expected the description of an exported classifier (format {FORMAT}) in {path}, got something "
        "else; export it again."
    )
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise wrong
    try:
        preprocessing: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.pop("preprocessing").items()
        }
        names = content.pop("class_names")
        description = Description(
            **content, class_names=tuple(names), preprocessing=Preprocessing(**preprocessing)
        )
    except (AttributeError, KeyError, TypeError):
        raise wrong from None
    fits = (
        description.form in get_args(Form)
        and isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) for name in names)
        and isinstance(description.scale, float)
        and isinstance(description.backbone, dict)
        and set(description.backbone) >= BACKBONE_ENTRIES
    )
    if not fits:
        raise wrong
    return description
