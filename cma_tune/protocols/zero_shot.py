"""Zero-shot: the backbone with the dataset's templates, nothing learned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from cma_tune.build import Setup
from cma_tune.checks import check
from cma_tune.config import ZeroShotConfig
from cma_tune.data.splits import base_novel_labels
from cma_tune.learners import ZeroShot
from cma_tune.metrics import harmonic_mean
from cma_tune.protocols.runs import (
    INDUCTIVE,
    class_half,
    finished,
    generalised,
    leave,
    make_record,
    per_class,
)
from cma_tune.records import Record
from cma_tune.run import Run
from cma_tune.train import Evaluation, evaluate


def zero_shot(config: ZeroShotConfig, setup: Setup | None = None) -> Record:
    """Evaluate the backbone on the test list.

    Raises:
        UserError: see `check`, `Setup` and `finished`.
    """
    check(config)
    setup = setup or Setup(config)
    run = zero_shot_run(replace(config, mixed_precision=setup.precision), setup.dataset.templates)
    record = finished(run, setup)
    if record is not None:
        setup.say(f"{run.folder()}: finished before, skipped")
        return record
    started, class_names = time.perf_counter(), setup.dataset.split.class_names
    learner = setup.zero_shot(class_names)
    result = evaluate(learner, *setup.test_features(), setup.accelerator, config.eval_batch_size)
    figures = {
        "accuracy": result.accuracy,
        "class_similarity": result.class_similarity,
        "modal_similarity": result.modal_similarity,
        "ece": result.ece,
    }
    halves = _halves(setup, learner, config.eval_batch_size)
    if halves:
        base, novel = (half.accuracy for half in halves.values())
        mean = harmonic_mean(base, novel)
        figures |= {"base_accuracy": base, "novel_accuracy": novel, "harmonic_mean": mean}
        figures |= generalised(result)
    by_class = {"test": per_class(result, class_names)}
    record = make_record(setup, run, figures, by_class, started, {"setting": INDUCTIVE})
    leave(setup, run, record, tested={"test": result, **halves})
    setup.say(f"{run.folder()}: {record.headline()}")
    return record


def zero_shot_run(config: ZeroShotConfig, templates: Sequence[str]) -> Run:
    """The run of a config with the templates that are used: a dataset's own may be others another time."""
    return Run("zero-shot", replace(config, templates=list(templates)))


def _halves(setup: Setup, learner: ZeroShot, batch_size: int) -> dict[str, Evaluation]:
    """What learned prompts are measured against base-to-novel: each half among its own names alone.

    Nothing where a half has no test images, or there is but one class.
    """
    names = setup.dataset.split.class_names
    features, labels = setup.test_features()
    if len(names) < 2:
        return {}
    tested: dict[str, Evaluation] = {}
    for name, half in zip(("base", "novel"), base_novel_labels(len(names)), strict=True):
        images, relabelled = class_half(features, labels, half)
        if not len(relabelled):
            return {}
        chosen = learner.for_classes([names[label] for label in half])
        tested[name] = evaluate(chosen, images, relabelled, setup.accelerator, batch_size)
    return tested
