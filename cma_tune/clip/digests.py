"""What tells one model from another: digests of weights, and of what an image tower is made of."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_NO_PART_OF_IT = ("training", "name_or_path", "_is_hf_initialized")
"""Attributes of modules that say nothing of what they compute: the mode, and where transformers got them."""


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, int | float | str)


def image_digest(visual: nn.Module, weights: str) -> str:
    """SHA-256 over the weights' digest and the modules of the image tower.

    Weights alone don't tell QuickGELU from GELU, or the number of heads.
    """
    content = hashlib.sha256(weights.encode())
    for name, module in visual.named_modules():
        plain = {
            attribute: value
            for attribute, value in sorted(vars(module).items())
            if attribute not in _NO_PART_OF_IT and _is_plain(value)
        }
        content.update(f"{name} {type(module).__qualname__} {plain}".encode())
    return content.hexdigest()
