"""What the record of a run adds to the model card of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cma_tune.data.hub_repositories import HUB
from cma_tune.hub import hub_name
from cma_tune.learners.model_card import Told
from cma_tune.records import Record
from cma_tune.sharing.measured import accuracy_results, figure_table, zero_shot_beside

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def told(card: Mapping[str, Any], record: Record | None, run: Path) -> Told:
    """What is known of a prompt beside its card.

    Args:
        card: the prompt's, as it is shared.
        record: of the run that learned it, if it is there still.
        run: the run's folder.
    """
    figures, dataset = card.get("figures", {}), card.get("dataset")
    zero_shot = zero_shot_beside(run, record) if record is not None and figures else None
    facts = [] if record is None else list(_record_facts(record))
    return Told(
        facts=[*facts, *([("dataset", str(dataset))] if dataset is not None else [])],
        datasets=_datasets(dataset),
        results=accuracy_results(figures, str(dataset or "unknown")),
        figures=figure_table(figures, zero_shot),
        notes=list(_notes(record, zero_shot)) if figures else [],
    )


def _datasets(dataset: str | None) -> list[str]:
    """The Hub's name of the dataset, where it has one."""
    name = dataset or ""
    if name in HUB:
        repository = HUB[name].repo
    else:
        repository = hub_name(name.removeprefix("hub:")) if name.startswith("hub:") else None
    return [repository] if repository is not None else []


def _record_facts(record: Record) -> Iterator[tuple[str, str]]:
    yield "λ of the CMA loss", f"{record.weight:g}{_form(record)}"
    yield "protocol", record.protocol
    yield "images per class (shots)", str(record.shots)
    yield "seed", str(record.seed)
    yield from _optimiser(record)


def _form(record: Record) -> str:
    """Which form of the loss λ weighs."""
    loss = record.config.get("loss")
    if record.weight == 0 or loss is None:
        return ""
    return f" ({loss['reduction']} over classes{', normalised' if loss['normalize'] else ''})"


def _optimiser(record: Record) -> Iterator[tuple[str, str]]:
    """Nothing where nothing was trained."""
    optim, steps = record.config.get("optim"), record.training.get("steps")
    if not optim or not steps:
        return
    name = optim.get("optimizer") or "sgd"  # what once was the only one goes without saying
    parts = [
        f"{OPTIMIZERS.get(name, name)}, learning rate {optim['lr']:g} ({optim.get('schedule') or 'cosine'})"
    ]
    size, images = optim["batch_size"], record.training.get("train_images")
    batches = "all images at once" if images is not None and size >= images else f"batches of {size}"
    parts += [batches, f"weight decay {optim['weight_decay']:g}"]
    if name == "sgd":
        parts.append(f"momentum {optim['momentum']:g}")
    yield "optimiser", ", ".join(parts)
    if optim.get("epochs") is not None:
        yield "epochs", str(optim["epochs"])
    yield "steps", str(steps)


def _notes(record: Record | None, zero_shot: Record | None) -> Iterator[str]:
    if zero_shot is not None:
        templates = zero_shot.dataset.get("templates", [])
        how = f"`{templates[0]}`" if len(templates) == 1 else f"{len(templates)} templates"
        yield f"Zero-shot is the same backbone on the same test images, with {how} for its prompts."
    if record is not None and record.selection is not None:
        yield "λ was chosen on the validation images, so that their accuracy says little by itself."
    yield "One run's figures; means over seeds with their intervals are what methods are compared by."
