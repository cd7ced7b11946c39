"""The examples' data and model: drawn shapes and a small CLIP, both inside the package.

For your own, replace `load_shapes` by your loader and give `--model` and `--pretrained`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor
from torchvision.transforms import Compose

from cma_tune.data.builtin import SMALL_CLIP_DIR, load_builtin


class Shapes(NamedTuple):
    """Images ``[N, 3, H, W]``, their classes ``[N]``, and one prompt for each of the C classes."""

    images: Tensor
    labels: Tensor
    prompts: list[str]


def load_shapes(transform: Compose, per_class: int = 4, classes: int = 8, part: str = "train") -> Shapes:
    """Some drawn images of some classes."""
    data = load_builtin("shapes")
    kept = [
        [entry for entry in data.parts[part] if entry[1] == label][:per_class] for label in range(classes)
    ]
    entries = [entry for of_class in kept for entry in of_class]
    images = torch.stack([transform(data.load(key)) for key, _ in entries])
    labels = torch.tensor([label for _, label in entries])
    return Shapes(images, labels, [f"a photo of a {name}." for name in data.class_names[:classes]])


def load_clip(model: str, pretrained: str | None) -> tuple[Any, Compose, Any]:
    """Model, transform for its images, and tokenizer."""
    clip, _, transform = open_clip.create_model_and_transforms(model, pretrained=pretrained)
    return clip, transform, open_clip.get_tokenizer(model)


def options(arguments: Sequence[str] | None, description: str, weight: float = 0.5) -> argparse.Namespace:
    """What every example takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=f"local-dir:{SMALL_CLIP_DIR}", help="open_clip model")
    parser.add_argument("--pretrained", help="its weights, such as openai")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--weight", type=float, default=weight, help="λ of (1−λ)·loss + λ·CMA")
    return parser.parse_args(arguments)


def endless_batches(count: int, size: int, seed: int = 0) -> Any:
    """Shuffled indices ``[size]``, over and over."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)
