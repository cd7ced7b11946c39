"""Labels for images from what was learned, and the words its tokens stand near."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cma_tune.data.labels import read_class_names
from cma_tune.errors import UserError
from cma_tune.files import write_atomically
from cma_tune.learners.cards import read_card
from cma_tune.learners.deep_prompts import DeepPrompts
from cma_tune.learners.nearest_words import check_context, nearest_words
from cma_tune.learners.saving import from_pretrained
from cma_tune.serving.formats import Format, Labels, lines
from cma_tune.serving.image_files import check_exist, image_files, pixel_batches
from cma_tune.serving.predictors import Predictor, check_found, find, load
from cma_tune.value_checks import at_least, check_file_to_write

log = logging.getLogger(__name__)


def class_probabilities(
    images: Sequence[str], prompt: str | Path, class_names: Sequence[str] | None = None, batch_size: int = 100
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Class names and probabilities ``[N, C]`` for image files.

    What predicts, the class names and the files are looked at, in this order, before any weights load.

    Args:
        images: image files.
        prompt: see `cma_tune.serving.predictors.find`.
        class_names: names instead of those the prompt was learned on.
        batch_size: images per step.

    Raises:
        UserError: the prompt or an image can't be read, there is no image, a class name is given twice, or
            what was learned belongs to its own classes.
    """
    found = find(prompt)
    check_found(found, class_names)
    if not images:
        raise UserError("Expected at least one image, got none.")
    check_exist(images)
    predictor = load(found, class_names, _device())
    rows = [row for _, row in _each(images, predictor, batch_size)]
    return predictor.class_names, torch.stack(rows)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def _each(
    images: Sequence[str],
    predictor: Predictor,
    batch_size: int,
    workers: int = 0,
    skip_unreadable: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Path and probabilities ``[C]`` of every image, in order, as the batches come.

    Raises:
        UserError: an image can't be read and is not to be skipped, or none can.
    """
    start = left_out = 0
    otherwise = "do without its labels" if skip_unreadable else "leave it out (--skip-unreadable does)"
    for pixels, mistakes in pixel_batches(images, predictor.transform, batch_size, workers, otherwise):
        paths = images[start : start + len(mistakes)]
        start += len(mistakes)
        for mistake in filter(None, mistakes):
            if not skip_unreadable:
                raise mistake
            log.warning("left out: %s", mistake)
            left_out += 1
        if pixels is None:
            continue
        readable = [path for path, mistake in zip(paths, mistakes, strict=True) if mistake is None]
        yield from zip(readable, predictor.logits(pixels).softmax(dim=1), strict=True)
    if left_out == len(images):
        raise UserError(f"Expected at least one image that can be read, got none among {left_out}.")
    if left_out:
        log.warning("%d of %d images left out", left_out, len(images))


def predict(
    images: Sequence[str],
    prompt: str,
    classes: str | None = None,
    top: int = 5,
    form: Format = "text",
    output: str | None = None,
    batch_size: int = 100,
    workers: int = 0,
    skip_unreadable: bool = False,
    backbone: str | None = None,
) -> None:
    """Print or write the most probable labels of every image, each image once.

    Args:
        images: files, folders, glob patterns, or ``-`` for standard input.
        prompt: see `cma_tune.serving.predictors.find`.
        classes: file of class names, one a line; by default the names the prompt was learned on.
        top: labels per image, at most.
        form: see `cma_tune.serving.formats.lines`.
        output: file that gets the lines instead of standard output, whole or not at all.
        batch_size: images per step.
        workers: processes that decode images.
        skip_unreadable: name images that can't be read, and go on without them.
        backbone: where the backbone lies now, if not where it did; see `from_pretrained`.

    Raises:
        UserError: see `class_probabilities`; or the file of class names is missing or empty, or `output`
            can't be written.
    """
    target = None if output is None else Path(output).expanduser()
    if target is not None:
        check_file_to_write("output", target)
    for flag, value, least in (("top", top, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        at_least(flag, value, least)
    found = find(prompt)  # a wrong folder is told before a wrong file of names
    class_names = read_class_names(Path(classes)) if classes else None
    check_found(found, class_names)
    files = image_files(images)
    if not skip_unreadable:
        check_exist(files)
    predictor = load(found, class_names, _device(), backbone)
    each = _each(files, predictor, batch_size, workers, skip_unreadable)
    rows = ((path, _best(row, predictor.class_names, top)) for path, row in each)
    if target is None:
        for line in lines(rows, form):
            print(line)
    else:
        labelled = list(rows)
        write_atomically(target, lambda temporary: _write(temporary, lines(labelled, form)))
        print(f"{target}: labels of {len(labelled)} images")


def _best(row: torch.Tensor, class_names: Sequence[str], top: int) -> Labels:
    best = row.topk(min(top, len(class_names)))
    return [(class_names[int(i)], float(p)) for p, i in zip(best.values, best.indices, strict=True)]


def _write(path: Path, texts: Iterator[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as handle:
        handle.writelines(f"{text}\n" for text in texts)


def words(prompt: str, count: int = 5, backbone: str | None = None) -> None:
    """Print the nearest words of every learned token with their distances; `backbone` as in `predict`."""
    for line in _word_lines(prompt, count, backbone):
        print(line)


def _word_lines(prompt: str, count: int, backbone: str | None) -> Iterator[str]:
    if count < 1:
        raise UserError(f"Expected --count of at least 1, got {count}.")
    check_context(read_card(prompt))
    learner = from_pretrained(prompt, backbone)
    if isinstance(learner, DeepPrompts) and learner.depth > 1:
        yield f"Of {learner.depth} layers with learned tokens, the first alone: words enter there."
    for number, nearest in enumerate(nearest_words(learner, count), start=1):
        yield f"{number:3}  " + "  ".join(f"{word} {distance:.4f}" for word, distance in nearest)
