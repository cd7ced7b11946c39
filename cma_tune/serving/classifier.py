"""A plain zero-shot classifier: a matrix in safetensors, which any program can multiply with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cma_tune.errors import UserError
from cma_tune.files import write_json
from cma_tune.learners.base import Learner
from cma_tune.serving.description import FILE, KEY, Description, describe, parse_description

MATRIX = "classifier.safetensors"
TENSOR = "classifier"


def check_linear(kind: type[Learner]) -> None:
    """Raise a `UserError` if a method can't be a matrix beside the backbone, as far as its kind tells."""
    if kind.conditioned_on_image:
        raise UserError(
            f"Expected a method whose text is the same for every image, got '{kind.name}', whose text is "
            "conditioned on the image; use the prompt itself with cma-tune predict."
        )


def check_frozen_images(kind: type[Learner], trains_images: bool) -> None:
    """Raise a `UserError` if a method changes the image features, which a matrix would stand beside."""
    if trains_images:
        other = "model or onnx" if kind.merges else "onnx"
        raise UserError(
            f"Expected a method that leaves the image tower as it is, got '{kind.name}'; a matrix would go "
            f"beside other image features, so export it with --to {other}."
        )


def check_mergeable(kind: type[Learner], trains_images: bool) -> None:
    """Raise a `UserError` if what a method learns on the image side can't be put into weights."""
    if trains_images and not kind.merges:
        raise UserError(
            f"Expected a method whose image tower is a standard one, got '{kind.name}', which has prompts "
            "among the tower's tokens; export it with --to onnx."
        )


@torch.no_grad()
def linear_rows(learner: Learner) -> Tensor:
    """The matrix W ``[C, D]``, float32, on the CPU, that makes the learner's logits s·f·Wᵀ of its features f.

    Raises:
        UserError: its logits are no such product.
    """
    check_linear(type(learner))
    rows = learner.classifier_rows()
    if rows is None or not _makes_logits(learner, rows):
        raise UserError(
            f"Expected a method whose logits are products of image features and a matrix, got "
            f"'{learner.name}', whose are not; export it with --to onnx."
        )
    return rows.detach().float().cpu().contiguous()


def _makes_logits(learner: Learner, rows: Tensor) -> bool:
    """Whether it does on directions drawn at random: a method may have forgotten to say that it does not."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(8, rows.shape[1], generator=generator).to(rows)
    features = nn.functional.normalize(drawn, dim=-1)
    expected = learner(features, learner.text_features()).logits
    return torch.allclose(learner.backbone.scale * features @ rows.T, expected, rtol=1e-3, atol=1e-3)


def write_classifier(learner: Learner, folder: Path, learned: Mapping[str, Any]) -> Description:
    """Write ``classifier.safetensors`` and ``classifier.json``.

    The matrix ``[C, D]`` is called "classifier"; logits are scale · f · Wᵀ for image features f of unit
    length. Scale, class names and preprocessing are in the file's metadata (one JSON text under "cma_tune")
    and in the JSON file.

    Raises:
        UserError: see `linear_rows`.
    """
    check_frozen_images(type(learner), learner.trains_images)
    description = describe(learner, "classifier", learned)
    content = save({TENSOR: linear_rows(learner)}, {KEY: description.text()})
    (folder / MATRIX).write_bytes(content)
    write_json(folder / FILE, description.content())
    return description


def read_classifier(path: Path) -> tuple[Tensor, Description]:
    """The matrix ``[C, D]`` and its description.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata, names = opened.metadata() or {}, list(opened.keys())
            matrix = opened.get_tensor(TENSOR) if TENSOR in names else None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"Expected an exported classifier at {path}, but it can't be read ({error}); export it again."
        ) from None
    description = parse_description(metadata.get(KEY, ""), path)
    if matrix is None or matrix.dim() != 2 or len(matrix) != len(description.class_names):
        raise UserError(
            f"Expected a matrix with a row for each of the {len(description.class_names)} classes in {path}, "
            "got something else; export it again."
        )
    return matrix, description
