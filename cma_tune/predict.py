"""Labels for images from a learned prompt, and the words its tokens stand near."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cma_tune.data.batches import encode_items
from cma_tune.data.labels import read_class_names
from cma_tune.data.sources import FileImages
from cma_tune.data.splits import Item
from cma_tune.errors import UserError
from cma_tune.learners.saving import from_pretrained, nearest_words, read_card


def class_probabilities(
    images: Sequence[str], prompt: str | Path, class_names: Sequence[str] | None = None, batch_size: int = 100
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Class names and probabilities ``[N, C]`` for image files.

    Args:
        images: image files.
        prompt: folder of a learned prompt.
        class_names: names instead of those the prompt was learned on.

    Raises:
        UserError: the prompt or an image can't be read, or the context belongs to its own classes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for image in images:
        if not Path(image).is_file():
            raise UserError(f"Expected an image at {image}, but there is no such file.")
    read_card(prompt)
    learner = from_pretrained(prompt, device=device)
    chosen = learner if class_names is None else learner.for_classes(class_names)
    items = [Item(str(Path(image).resolve()), 0) for image in images]
    backbone = learner.backbone
    with torch.no_grad():
        features = encode_items(
            items, FileImages(Path("/")), backbone.transform, backbone.encode_image, device, batch_size
        )
        text = None if chosen.conditioned_on_image else chosen.text_features()
        logits = [chosen(part.to(device), text).logits.cpu() for part in features.split(batch_size)]
    return chosen.class_names, torch.cat(logits).softmax(dim=1)


def predict(images: Sequence[str], prompt: str, classes: str | None = None, top: int = 5) -> None:
    """Print the most probable labels of every image.

    Raises:
        UserError: see `class_probabilities`; or the file of class names is missing or empty.
    """
    if not images:
        raise UserError("Expected at least one image, got none.")
    if top < 1:
        raise UserError(f"Expected --top of at least 1, got {top}.")
    names, probabilities = class_probabilities(
        images, prompt, read_class_names(Path(classes)) if classes else None
    )
    for image, row in zip(images, probabilities, strict=True):
        best = row.topk(min(top, len(names)))
        labels = "  ".join(
            f"{names[int(i)]} {float(p):.4f}" for p, i in zip(best.values, best.indices, strict=True)
        )
        print(f"{image}\t{labels}")


def words(prompt: str, count: int = 5) -> None:
    """Print the nearest words of every learned token with their distances."""
    for line in _word_lines(prompt, count):
        print(line)


def _word_lines(prompt: str, count: int) -> Iterator[str]:
    if count < 1:
        raise UserError(f"Expected --count of at least 1, got {count}.")
    for number, nearest in enumerate(nearest_words(from_pretrained(prompt), count), start=1):
        yield f"{number:3}  " + "  ".join(f"{word} {distance:.4f}" for word, distance in nearest)
