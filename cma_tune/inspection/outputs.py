"""A finished run's test images under zero-shot prompts and under what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from cma_tune.build import Setup
from cma_tune.config import SourceConfig, ZeroShotConfig
from cma_tune.data.splits import Item, base_novel_labels
from cma_tune.errors import UserError
from cma_tune.learners import Learner, from_pretrained
from cma_tune.learners.base import cosines
from cma_tune.options import InspectConfig
from cma_tune.records import FILE, Record, load_record

ACCURACY = {"test": "accuracy", "base": "base_accuracy", "novel": "novel_accuracy"}
"""Parts that a run is tested on, and the figure of its record for each."""


@dataclass(frozen=True)
class Outputs:
    """What one learner gives for N images among C classes.

    Attributes:
        logits: ``[N, C]``, float32.
        labels: ``[N]``.
        class_cosines: cosines between the classes' text features, ``[C, C]``; their mean over images where
            text is conditioned on the image.
        image_cosines: mean cosine between the images of a class (row) and the text features of a class
            (column), ``[C, C]``; nan in the row of a class without images.
    """

    logits: Tensor
    labels: Tensor
    class_cosines: Tensor
    image_cosines: Tensor

    @cached_property
    def probabilities(self) -> Tensor:
        """``[N, C]``, float64."""
        return self.logits.double().softmax(dim=1)

    @cached_property
    def predicted(self) -> Tensor:
        """Predicted classes ``[N]``."""
        return self.logits.argmax(dim=1)

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of each predicted class, ``[N]``."""
        return self.probabilities.gather(1, self.predicted[:, None])[:, 0]

    @cached_property
    def correct(self) -> Tensor:
        """Whether each prediction is right, ``[N]``."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Part:
    """Some test images among some classes, before and after learning.

    Attributes:
        name: a key of `ACCURACY`.
        class_names: C names.
        items: N images with their labels among these classes.
        before: zero-shot.
        after: what was learned.
    """

    name: str
    class_names: tuple[str, ...]
    items: tuple[Item, ...]
    before: Outputs
    after: Outputs


def load_run(config: InspectConfig) -> tuple[Record, Setup]:
    """The record of a run, and what it was made with as it is found now.

    Raises:
        UserError: it is no run with a learned prompt, or its dataset is missing or another one.
    """
    folder = Path(config.folder)
    if not (folder / FILE).is_file() and (folder.parent / FILE).is_file():  # the prompt's, or its card
        raise UserError(f"Expected the folder of a run (with {FILE}), got {folder}; name {folder.parent}.")
    record = load_record(folder / FILE)
    if record.protocol not in ("few-shot", "base-to-novel"):
        raise UserError(
            f"Expected a run of few-shot or base-to-novel in {folder}, got one of {record.protocol}; "
            "choose the run in which the prompt was learned."
        )
    setup = Setup(_as_it_was(record, config))
    if setup.split_digest != record.dataset["split"]:
        raise UserError(
            f"Expected the split of {record.config['dataset']} that the record in {folder} was made with "
            f"({record.dataset['split'][:12]}), got {setup.split_digest[:12]}; give its --data-root."
        )
    return record, setup


def _as_it_was(record: Record, config: InspectConfig) -> ZeroShotConfig:
    names = {entry.name for entry in fields(ZeroShotConfig)}
    content: dict[str, Any] = {name: value for name, value in record.config.items() if name in names}
    known = {entry.name for entry in fields(SourceConfig)}
    source = {name: value for name, value in content.get("source", {}).items() if name in known}
    content |= {
        "source": SourceConfig(**source),
        "templates": record.dataset.get("templates", []),
        "features_dir": config.features_dir or _features_dir(record, Path(config.folder).resolve()),
        "mixed_precision": record.training.get("mixed_precision"),
        "workers": config.workers,
        "compile": False,  # takes longer than all there is to do
    }
    if config.data_root:
        content["data_root"] = config.data_root
    if config.backbone:  # brings its weights along
        content |= {"backbone": config.backbone, "pretrained": None, "model_config": None}
    return ZeroShotConfig(**content)


def _features_dir(record: Record, folder: Path) -> str:
    """Where the run's features were, or where they are now if its whole output was moved."""
    if record.config.get("features_dir"):
        return str(record.config["features_dir"])
    # A run lies in PROTOCOL/DATASET/BACKBONE/METHOD/SHOTS/SEED below its output.
    above = folder.parents[5] if len(folder.parents) > 5 else Path(record.config["output"])
    return str(above / "features")


def load_parts(folder: Path, record: Record, setup: Setup) -> list[Part]:
    """Every part that the run was tested on, each among its own class names.

    Raises:
        UserError: the prompt is missing or does not fit the backbone, or what it gives now is not what the
            record says.
    """
    learner = from_pretrained(folder / "prompt", setup.backbone)
    names, items = setup.dataset.split.class_names, setup.dataset.split.test
    plain, seen = setup.test_features()[0], setup.test_features(learner)[0]
    chosen = {"test": list(range(len(names)))}
    if record.protocol == "base-to-novel":
        chosen = dict(zip(("base", "novel"), base_novel_labels(len(names)), strict=True))
    parts = []
    for name, labels in chosen.items():
        kept = [index for index, item in enumerate(items) if item.label in set(labels)]
        relabelled = tuple(Item(items[index].key, items[index].label - labels[0]) for index in kept)
        among = tuple(names[label] for label in labels)
        learned = learner if among == learner.class_names else learner.for_classes(among)
        before, after = (
            outputs(one, features[kept], relabelled, setup.accelerator, setup.config.eval_batch_size)
            for one, features in ((setup.zero_shot(among), plain), (learned, seen))
        )
        parts.append(Part(name, among, relabelled, before, after))
        _check(parts[-1], record, folder)
    return parts


def _check(part: Part, record: Record, folder: Path) -> None:
    """Another machine may round a tie the other way; more than that is another model or other images."""
    right, total = int(part.after.correct.sum()), len(part.items)
    recorded = record.figures[ACCURACY[part.name]]
    if abs(right - recorded * total / 100) > max(1, total // 100) + 0.5:
        raise UserError(
            f"Expected the {part.name} accuracy of the record in {folder} ({recorded:.2f} %), "
            f"got {100 * right / total:.2f} %; its images, their features or its prompt have changed since."
        )


@torch.no_grad()
def outputs(
    learner: Learner, features: Tensor, items: Sequence[Item], accelerator: Accelerator, batch_size: int = 100
) -> Outputs:
    """What `learner` gives for image features ``[N, D]`` of these items, N > 0."""
    labels = torch.tensor([item.label for item in items], dtype=torch.long)
    learner.eval()
    logits, similar = [], []
    between = torch.zeros(len(learner.class_names), len(learner.class_names), dtype=torch.double)
    with accelerator.autocast():
        text = None if learner.conditioned_on_image else learner.text_features()
        for chunk in features.split(batch_size):
            output = learner(chunk.to(accelerator.device), text)
            logits.append(output.logits.float().cpu())
            similar.append(cosines(output.image_features, output.text_features).double().cpu())
            rows = output.text_features.double().cpu()
            grams = rows @ rows.mT
            between += grams.sum(dim=0) if grams.dim() == 3 else grams * len(chunk)
    sums = torch.zeros_like(between).index_add_(0, labels, torch.cat(similar))
    images = torch.bincount(labels, minlength=len(between))
    return Outputs(torch.cat(logits), labels, between / len(labels), sums / images[:, None])
