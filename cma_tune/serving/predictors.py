"""What predicts: a learned prompt or any exported form, found by what lies in its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cma_tune.clip.backbone import Preprocessing
from cma_tune.clip.sources import failure_reason
from cma_tune.data.images import Transform
from cma_tune.errors import UserError
from cma_tune.hub import local_folder
from cma_tune.learners.cards import CARD, SHARED, read_card
from cma_tune.learners.saving import backbone_for, from_pretrained
from cma_tune.serving import description as described
from cma_tune.serving import lookup_transformers
from cma_tune.serving.classifier import MATRIX, read_classifier
from cma_tune.serving.description import Description, Form, read_description
from cma_tune.serving.lookup_model import CONFIG, WEIGHTS, model_logits
from cma_tune.serving.names import check_names
from cma_tune.serving.onnx_file import MODEL, open_onnx, run_onnx

log = logging.getLogger(__name__)

FILES = (*SHARED, described.FILE, MATRIX, CONFIG, WEIGHTS, MODEL, f"{MODEL}.data", *lookup_transformers.FILES)
"""All that is read of a repository on the Hub."""

WHOLE_MODELS = (WEIGHTS, "model.safetensors")
"""Weights that say nothing without the files beside them."""


@dataclass(frozen=True)
class Predictor:
    """Images to logits.

    Attributes:
        class_names: what the logits stand for.
        transform: from an image to ``[3, H, W]``.
        logits: images ``[B, 3, H, W]`` → logits ``[B, C]``, both on the CPU.
    """

    class_names: tuple[str, ...]
    transform: Transform
    logits: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """What there is to predict with; no weights are loaded yet.

    Attributes:
        form: prompt, or one of the exported ones.
        path: its folder, or a file.
        card: a prompt's.
        description: what an export's folder says of itself.
    """

    form: Literal["prompt"] | Form
    path: Path
    card: dict[str, Any] | None = None
    description: Description | None = None


def find(source: str | Path) -> Found:
    """What `source` is.

    Args:
        source: folder of a learned prompt or of an export, an exported ``.onnx`` or ``.safetensors`` file, or
            a repository ``ORG/NAME`` on the Hub with such files in it.

    Raises:
        UserError: it is none of these.
    """
    path = local_folder(source, FILES, "a learned prompt or an exported classifier")
    of_a_prompt = path.name in SHARED and (path.parent / CARD).is_file()
    if path.is_file() and not of_a_prompt:
        if path.suffix not in (".onnx", ".safetensors"):
            raise UserError(
                f"Expected a folder, an .onnx or a .safetensors file to predict with, got the file {path}."
            )
        if path.name in WHOLE_MODELS and (path.parent / described.FILE).is_file():
            raise UserError(
                f"Expected the folder of an exported model, got the file {path}; name {path.parent}."
            )
        return Found("onnx" if path.suffix == ".onnx" else "classifier", path)
    if (path / described.FILE).is_file() and not (path / CARD).is_file():
        description = read_description(path / described.FILE)
        return Found(description.form, path, description=description)
    return Found("prompt", path, read_card(path))


def check_found(found: Found, class_names: Sequence[str] | None) -> None:
    """Check class names that are asked for before weights load.

    Raises:
        UserError: what is found has classes of its own, or a name is given twice.
    """
    if class_names is None:
        return
    if found.card is None:
        raise UserError(
            f"Expected no class names of your own with an exported {found.form}, whose classes are fixed; "
            "export the prompt again with --classes."
        )
    check_names(class_names, found.card)


def load(
    found: Found, class_names: Sequence[str] | None, device: torch.device, backbone: str | None = None
) -> Predictor:
    """Load the weights.

    Args:
        found: what there is.
        class_names: names instead of a prompt's own.
        device: where it is loaded to; ONNX stays on the CPU.
        backbone: where the backbone lies now; see `from_pretrained`.

    Raises:
        UserError: they are missing, damaged, or not those of the description beside them; or a backbone is
            named for a form that brings its own.
    """
    if found.form == "prompt":
        return _prompt(found.path, class_names, device, backbone)
    if found.form == "classifier":
        return _classifier(found, device, backbone)
    if backbone is not None:
        raise UserError(
            f"Expected no --backbone with an exported {found.form}, which brings its own; leave it out."
        )
    return _onnx(found) if found.form == "onnx" else _model(found, device)


def _prompt(
    folder: Path, class_names: Sequence[str] | None, device: torch.device, place: str | None
) -> Predictor:
    learner = from_pretrained(folder, place, device)
    chosen = learner if class_names is None else learner.for_classes(class_names)
    text = None if chosen.conditioned_on_image else chosen.text_features()
    if class_names is not None and text is not None:
        _warn_of_equal(text, class_names)

    def logits(images: Tensor) -> Tensor:
        return chosen(images.to(device), text).logits.cpu()

    return Predictor(chosen.class_names, learner.backbone.transform, logits)


def _warn_of_equal(text: Tensor, class_names: Sequence[str]) -> None:
    """Names that the backbone can't tell apart share their images evenly, which looks like doubt."""
    rows = torch.nn.functional.normalize(text.double(), dim=-1)
    firsts = (rows @ rows.T > 1 - 1e-10).int().argmax(dim=1).tolist()  # but for rounding
    for first in sorted(set(firsts)):
        names = [name for name, same in zip(class_names, firsts, strict=True) if same == first]
        if len(names) > 1:
            log.warning("the backbone knows no difference between the class names %s", ", ".join(names))


def _classifier(found: Found, device: torch.device, place: str | None) -> Predictor:
    matrix, description = read_classifier(_file(found, MATRIX))
    _check_same(found, description)
    backbone = backbone_for(description.backbone, found.path, place, device)
    rows = description.scale * matrix.to(device)

    def logits(images: Tensor) -> Tensor:
        return (backbone.encode_image(images.to(device)) @ rows.T).cpu()

    return Predictor(description.class_names, backbone.transform, logits)


def _model(found: Found, device: torch.device) -> Predictor:
    folder, description = found.path, found.description
    assert description is not None  # a model is always a folder
    try:
        logits = model_logits(folder, len(description.class_names), device)
    except Exception as error:  # the libraries raise anything here
        raise UserError(
            f"Expected a model of open_clip or transformers in {folder}, but it can't be loaded: "
            f"{failure_reason(error)}."
        ) from None
    return Predictor(description.class_names, _transform(description.preprocessing), logits)


def _onnx(found: Found) -> Predictor:
    session, description = open_onnx(_file(found, MODEL))
    _check_same(found, description)
    transform = _transform(description.preprocessing)
    return Predictor(description.class_names, transform, lambda images: run_onnx(session, images))


def _file(found: Found, name: str) -> Path:
    """The weights, which may have been named without their folder."""
    return found.path if found.description is None else found.path / name


def _check_same(found: Found, description: Description) -> None:
    """A folder's file beside the weights says what they say of themselves: nobody edits it in vain."""
    if found.description not in (None, description):
        raise UserError(
            f"Expected {found.path / described.FILE} as it was exported, which the weights hold too, "
            "got other entries; export again, with --classes for other class names."
        )


def _transform(preprocessing: Preprocessing) -> Transform:
    """open_clip's own, as the backbone's is."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(
        size=preprocessing.size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        resize_mode=preprocessing.resize_mode,
    )
    transform: Transform = image_transform_v2(config, is_train=False)
    return transform
