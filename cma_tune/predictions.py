"""Predicted and true class of every test image, beside a run's record: what paired tests are made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cma_tune.errors import UserError
from cma_tune.files import write_atomically

FILE = "predictions.safetensors"
_LARGEST = torch.iinfo(torch.int16).max


def save_predictions(folder: Path, parts: Mapping[str, Tensor]) -> None:
    """Write ``predictions.safetensors`` into `folder`, atomically.

    Args:
        folder: the record's; made if it is missing.
        parts: predicted and true class of every image, in the order of the list, ``[N, 2]``, by the name of
            the list, such as "test"; two bytes a class where they suffice.
    """
    small = {name: pairs.to(_smallest(pairs)).contiguous() for name, pairs in parts.items()}
    write_atomically(folder / FILE, lambda temporary: save_file(small, temporary))


def _smallest(pairs: Tensor) -> torch.dtype:
    return torch.int16 if not len(pairs) or int(pairs.max()) <= _LARGEST else torch.int32


def load_predictions(folder: Path) -> dict[str, Tensor] | None:
    """Predicted and true classes ``[N, 2]``, int64, by the name of the list; None where none were stored.

    Raises:
        UserError: the file is damaged, or something else.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        parts = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"Expected predictions at {path}, but they can't be read ({error}); remove the file."
        ) from None
    if any(pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point() for pairs in parts.values()):
        raise UserError(
            f"Expected predicted and true classes [N, 2] at {path}, got something else; remove the file."
        )
    return {name: pairs.long() for name, pairs in parts.items()}
