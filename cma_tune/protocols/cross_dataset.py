"""Cross-dataset and domain generalisation: learn on one dataset, test the learned context on many.

CoCoOp, sec. 4.2 (other datasets) and 4.3 (ImageNet to its variants). The context is learned as in few-shot,
and that run is left as one: other targets can follow without training. Every target is classified among its
own class names; nothing is learned or chosen on it, not even from its unlabelled images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cma_tune.build import Setup
from cma_tune.checks import check, check_transfer
from cma_tune.data.catalog import ENTRIES, VARIANTS, check_dataset_name
from cma_tune.errors import UserError
from cma_tune.learners.cards import read_card
from cma_tune.learners.saving import from_pretrained
from cma_tune.options import CrossDatasetConfig, DomainGeneralizationConfig
from cma_tune.protocols.runs import WALL_SECONDS, leave, per_class
from cma_tune.protocols.transfers import (
    Learned,
    TransferRun,
    as_learned,
    check_against_prompt,
    few_shot_config,
    from_prompt,
    learn,
)
from cma_tune.records import Record, finished_record, versions
from cma_tune.train import Evaluation, evaluate

log = logging.getLogger(__name__)

Targets = Mapping[str, Setup]


def cross_dataset(
    config: CrossDatasetConfig, setup: Setup | None = None, targets: Targets | None = None
) -> list[Record]:
    """Learn on the dataset, or take a saved prompt, and test on every target, with zero-shot beside it.

    The source may stand among the targets; the mean leaves it out.

    Args:
        config: of few-shot, with targets.
        setup: of the source dataset; by default it is made.
        targets: by their names; by default they are made.

    Returns:
        One record for every learned prompt.

    Raises:
        UserError: there are no targets but the source, one is unknown, given twice or without test images;
            the context belongs to its own classes; see also `few_shot` and `from_pretrained`.
    """
    protocol = "domain-generalization" if isinstance(config, DomainGeneralizationConfig) else "cross-dataset"
    card = read_card(config.prompt) if config.prompt is not None else None
    if card is not None:
        check_against_prompt(config, card)
        config = as_learned(config, card)
    _check_context(config, card)
    check_targets(config)
    if protocol == "domain-generalization":
        others = [name for name in config.targets if name in ENTRIES and name not in VARIANTS]
        if config.dataset != "imagenet" or others:
            log.warning(
                "domain generalisation goes from ImageNet to its variants; this goes from '%s' to %s",
                config.dataset,
                ", ".join(config.targets),
            )
    # Targets first: a mistake in one is not waited for until the training has ended.
    targets = targets or {name: target_setup(config, name) for name in config.targets}
    if setup is None:
        setup = Setup(few_shot_config(config)) if card is None else next(iter(targets.values()))
    config = replace(config, mixed_precision=setup.precision)
    several = learn(protocol, config, setup) if card is None else [from_prompt(protocol, config, card)]
    records = []
    for learned in several:
        record = _finished(learned.run, targets)
        if record is None:
            record = _test(learned, targets, setup)
        else:
            setup.say(f"{learned.run.folder()}: finished before, skipped")
        setup.say(table(record))
        records.append(record)
    return records


def check_targets(config: CrossDatasetConfig) -> None:
    """Check the config as far as it needs no data.

    Raises:
        UserError: there are no targets but the source, one is unknown or given twice; see also `check`.
    """
    check(config)
    if not config.targets:
        raise UserError("Expected at least one dataset in --targets, got none.")
    for name in config.targets:
        check_dataset_name(name)
    if len(set(config.targets)) < len(config.targets):
        raise UserError(f"Expected every dataset of --targets once, got {', '.join(config.targets)}.")
    if config.targets == [config.dataset]:
        source = "the source" if config.prompt is None else f"the one that {config.prompt} was learned on"
        raise UserError(
            f"Expected another dataset in --targets than {source}, got '{config.dataset}' alone; add one."
        )


def _check_context(config: CrossDatasetConfig, card: Mapping[str, Any] | None) -> None:
    check_transfer(config, "other datasets")
    if card is not None and card.get("context", {}).get("per_class"):
        raise UserError(
            "Expected a shared context for other datasets, got class-specific ones, which other classes "
            "can't take; choose another prompt."
        )


def target_setup(config: CrossDatasetConfig, name: str) -> Setup:
    """One target.

    Raises:
        UserError: it has no test images; see also `Setup`.
    """
    # Ten targets would keep ten times the memory.
    target = Setup(replace(few_shot_config(config), dataset=name, tracker=None, image_memory=0.0))
    if not target.dataset.split.test:
        raise UserError(f"Expected test images of '{name}' in --targets, got none; take it out.")
    return target


def _finished(run: TransferRun, targets: Targets) -> Record | None:
    record = finished_record(run) if run.options().resume else None
    if record is not None:
        for name, target in targets.items():
            about = record.dataset["targets"][name]
            templates = list(target.dataset.templates)
            for what, before, now in (
                ("split", about["split"][:12], target.split_digest[:12]),
                ("templates", about["templates"], templates),
            ):
                if before != now:
                    raise UserError(
                        f"Expected the {what} of {name} that the record in {run.folder()} was made with "
                        f"({before}), got {now}; choose another --output."
                    )
    return record


def _test(learned: Learned, targets: Targets, setup: Setup) -> Record:
    config, started = learned.run.options(), time.perf_counter()
    learner = from_pretrained(learned.folder, setup.backbone)
    figures: dict[str, float] = {}
    tested: dict[str, Evaluation] = {}
    about: dict[str, Any] = {}
    for name, target in targets.items():
        target.backbone = setup.backbone  # one for all
        names, how = target.dataset.split.class_names, (setup.accelerator, config.eval_batch_size)
        result = evaluate(learner.for_classes(names), *target.test_features(learner), *how)
        beside = evaluate(target.zero_shot(names), *target.test_features(), *how)
        tested[name] = result
        figures |= {
            f"accuracy: {name}": result.accuracy,
            f"zero_shot_accuracy: {name}": beside.accuracy,
            f"class_similarity: {name}": result.class_similarity,
            f"modal_similarity: {name}": result.modal_similarity,
            f"ece: {name}": result.ece,
            f"zero_shot_ece: {name}": beside.ece,
        }
        about[name] = {
            "origin": target.dataset.origin,
            "split": target.split_digest,
            "classes": len(names),
            "test_images": result.images,
            "templates": list(target.dataset.templates),
        }
    others = [name for name in targets if name != config.dataset]
    for kind in ("accuracy", "zero_shot_accuracy"):
        total = sum(figures[f"{kind}: {name}"] for name in others)
        figures[kind.replace("accuracy", "mean_accuracy")] = total / len(others)
    if "accuracy" in learned.figures:
        figures["source_accuracy"] = learned.figures["accuracy"]
    record = Record(
        run=learned.run.digest(),
        protocol=learned.run.protocol,
        config={**learned.config, "targets": config.targets, "prompt": config.prompt},
        dataset={**learned.source, "targets": about},
        backbone=setup.backbone.describe(),
        figures=figures,
        per_class={
            name: per_class(result, targets[name].dataset.split.class_names)
            for name, result in tested.items()
        },
        training={
            "setting": "inductive",
            "prompt": str(learned.folder),
            WALL_SECONDS: round(time.perf_counter() - started, 3),
        },
        selection=learned.record.selection if learned.record is not None else None,
        versions=versions(),
    )
    return leave(setup, learned.run, record, tested=tested)


def table(record: Record) -> str:
    """Accuracy (%) of the learned context and of zero-shot, a target a line."""
    rows = [("target", record.learner, "zero-shot")]
    source = record.config["dataset"]
    for name in record.dataset["targets"]:
        learned, plain = (record.figures[f"{kind}: {name}"] for kind in ("accuracy", "zero_shot_accuracy"))
        rows.append((f"{name} (source)" if name == source else name, f"{learned:.2f}", f"{plain:.2f}"))
    mean, plain = record.figures["mean_accuracy"], record.figures["zero_shot_mean_accuracy"]
    among = source in record.dataset["targets"]
    rows.append(("mean without the source" if among else "mean", f"{mean:.2f}", f"{plain:.2f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows]
    if "source_accuracy" in record.figures and not among:
        lines.append(
            f"on {record.dataset['name']}, where it was learned: {record.figures['source_accuracy']:.2f}"
        )
    return "\n".join(lines)
