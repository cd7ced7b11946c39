"""From a learned prompt to forms that other programs take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from cma_tune.data.labels import read_class_names
from cma_tune.errors import UserError
from cma_tune.files import new_folder
from cma_tune.learners.base import Learner
from cma_tune.learners.cards import LEARNERS, read_card
from cma_tune.learners.saving import from_pretrained
from cma_tune.serving.classifier import check_frozen_images, check_linear, check_mergeable, write_classifier
from cma_tune.serving.description import Description, Form
from cma_tune.serving.lookup_model import write_model
from cma_tune.serving.names import check_names
from cma_tune.serving.onnx_file import check_for_onnx, write_onnx
from cma_tune.value_checks import check_writable

_WRITE: dict[Form, Callable[[Learner, Path, Mapping[str, Any]], Description]] = {
    "classifier": write_classifier,
    "model": write_model,
    "onnx": write_onnx,
}
_CHECK: dict[Form, Callable[[type[Learner]], None]] = {
    "classifier": check_linear,
    "model": check_linear,
    "onnx": check_for_onnx,
}
_CHECK_IMAGES: dict[Form, Callable[[type[Learner], bool], None]] = {
    "classifier": check_frozen_images,
    "model": check_mergeable,
}
PROVENANCE = ("dataset", "split", "picks", "run", "figures")
"""Entries of a prompt's card that an export carries on."""


def export(
    prompt: Path | str,
    to: Form,
    output: Path | str,
    classes: Path | str | None = None,
    backbone: str | None = None,
) -> Description:
    """Write a learned classifier as a matrix, a model of open_clip or transformers, or an ONNX file.

    Args:
        prompt: folder or Hub name of a learned prompt.
        to: the form.
        output: a new folder, which is there with all files or not at all.
        classes: file of class names, one a line; by default the names the prompt was learned on.
        backbone: where the backbone lies now, if not where it did; see `from_pretrained`.

    Raises:
        UserError: the prompt can't be read, the method has no such form, or the folder is not empty or can't
            be written.
    """
    card = read_card(prompt)
    kind = LEARNERS[card["learner"]]
    if to not in get_args(Form):
        raise UserError(f"Expected --to {', '.join(get_args(Form))}, got '{to}'.")
    _CHECK[to](kind)
    if to in _CHECK_IMAGES:
        _CHECK_IMAGES[to](kind, kind.card_trains_images(card))
    names = None if classes is None else read_class_names(Path(classes))
    if names is not None:
        check_names(names, card)
    check_writable("output", Path(output).expanduser().parent)
    with new_folder(Path(output).expanduser()) as folder:
        learner = from_pretrained(prompt, backbone)
        chosen = learner if names is None else learner.for_classes(names)
        own = chosen.class_names == tuple(card["class_names"])
        learned = {entry: card[entry] for entry in PROVENANCE if own and entry in card}
        return _WRITE[to](chosen, folder, learned)


def export_command(prompt: str, to: Form, output: str, classes: str | None, backbone: str | None) -> None:
    """The command: `export`, and a line that says what there is."""
    description = export(prompt, to, output, classes, backbone)
    files = ", ".join(sorted(path.name for path in Path(output).expanduser().iterdir()))
    print(f"{output}: {to} of {description.learner} with {len(description.class_names)} classes ({files})")
