"""Labels for images from a learned prompt, and the words its tokens stand near."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cma_tune.data.batches import encode_items
from cma_tune.data.labels import read_class_names
from cma_tune.data.sources import FileImages
from cma_tune.data.splits import Item
from cma_tune.errors import UserError
from cma_tune.learners.base import OwnClasses
from cma_tune.learners.saving import LEARNERS, check_context, from_pretrained, nearest_words, read_card


def class_probabilities(
    images: Sequence[str], prompt: str | Path, class_names: Sequence[str] | None = None, batch_size: int = 100
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Class names and probabilities ``[N, C]`` for image files.

    The prompt's card, the class names and the files are looked at, in this order, before any weights load.

    Args:
        images: image files.
        prompt: folder of a learned prompt.
        class_names: names instead of those the prompt was learned on.
        batch_size: images per step.

    Raises:
        UserError: the prompt or an image can't be read, there is no image, a class name is given twice, or
            what was learned belongs to its own classes.
    """
    card = read_card(prompt)
    if class_names is not None:
        _check_distinct(class_names)
        kind = LEARNERS[card["learner"]]
        if issubclass(kind, OwnClasses):
            kind.check_classes(class_names, card["class_names"])
    if not images:
        raise UserError("Expected at least one image, got none.")
    for image in images:
        if not Path(image).is_file():
            raise UserError(f"Expected an image at {image}, but there is no such file.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = from_pretrained(prompt, device=device)
    chosen = learner if class_names is None else learner.for_classes(class_names)
    items = [Item(str(Path(image).resolve()), 0) for image in images]
    files = FileImages(Path("/"), otherwise="leave it out")
    transform = learner.backbone.transform
    with torch.no_grad():
        features = encode_items(items, files, transform, learner.encode_images, device, batch_size)
        text = None if chosen.conditioned_on_image else chosen.text_features()
        logits = [chosen(part.to(device), text).logits.cpu() for part in features.split(batch_size)]
    return chosen.class_names, torch.cat(logits).softmax(dim=1)


def _check_distinct(class_names: Sequence[str]) -> None:
    """Equal names would share the probability of what is one class."""
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise UserError(
            f"Expected every class name once, got {', '.join(map(repr, twice))} more than once; "
            "remove the repetitions."
        )


def predict(images: Sequence[str], prompt: str, classes: str | None = None, top: int = 5) -> None:
    """Print the most probable labels of every image.

    Args:
        images: image files.
        prompt: folder of a learned prompt.
        classes: file of class names, one a line; by default the names the prompt was learned on.
        top: labels per image, at most.

    Raises:
        UserError: see `class_probabilities`; or the file of class names is missing or empty.
    """
    if top < 1:
        raise UserError(f"Expected --top of at least 1, got {top}.")
    read_card(prompt)  # a wrong folder is told before a wrong file of names
    class_names = read_class_names(Path(classes)) if classes else None
    names, probabilities = class_probabilities(images, prompt, class_names)
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
    check_context(read_card(prompt))
    for number, nearest in enumerate(nearest_words(from_pretrained(prompt), count), start=1):
        yield f"{number:3}  " + "  ".join(f"{word} {distance:.4f}" for word, distance in nearest)
