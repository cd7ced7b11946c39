"""Base-to-novel: learn on the first half of the classes, test on both halves (CoCoOp, sec. 4.1).

Each half is classified among its own names alone; the harmonic mean weighs both. In the generalised form
(Xian et al. 2017, "Zero-shot learning: the good, the bad and the ugly") each half stands among all names.
"""

from __future__ import annotations

import time

from cma_tune.build import Setup
from cma_tune.checks import check, check_transfer
from cma_tune.config import BaseToNovelConfig, FewShotConfig
from cma_tune.data.splits import base_novel_labels
from cma_tune.errors import UserError
from cma_tune.metrics import harmonic_mean
from cma_tune.protocols.runs import (
    class_half,
    each_run,
    generalised,
    leave,
    make_record,
    per_class,
    train_one,
    validate,
)
from cma_tune.records import Record
from cma_tune.run import Run
from cma_tune.train import evaluate

PROTOCOL = "base-to-novel"


def base_to_novel(config: BaseToNovelConfig, setup: Setup | None = None) -> list[Record]:
    """Run every combination of shots, seeds and λ.

    Raises:
        UserError: what is learned belongs to its classes, which novel ones can't take; or a half of the
            classes has no test images; see also `check`, `Setup`, `each_run`.
    """
    check(config)
    check_transfer(config, PROTOCOL)
    setup = setup or Setup(config)
    check_halves(setup)
    return each_run(PROTOCOL, config, setup, _one)


def check_halves(setup: Setup) -> None:
    split = setup.dataset.split
    tested = {item.label for item in split.test}
    for name, half in zip(("base", "novel"), base_novel_labels(len(split.class_names)), strict=True):
        if tested.isdisjoint(half):
            raise UserError(
                f"Expected test images of the {len(half)} {name} classes of '{setup.dataset.name}', "
                "got none; use few-shot, or another split."
            )


def _one(setup: Setup, run: Run) -> Record:
    config, started = run.config, time.perf_counter()
    assert isinstance(config, FewShotConfig)
    picked = setup.picks(config)
    base, novel = base_novel_labels(len(picked.class_names))
    # Picks are drawn over all classes first, as the reference does: base images are the few-shot run's own.
    base_split = picked.restricted_to(base)
    learner, training = train_one(setup, run, base_split)
    figures = validate(setup, learner, base_split)
    features, labels = setup.test_features(learner)
    novel_names = [picked.class_names[label] for label in novel]
    on_base = evaluate(
        learner, *class_half(features, labels, base), setup.accelerator, config.eval_batch_size
    )
    on_novel = evaluate(
        learner.for_classes(novel_names),
        *class_half(features, labels, novel),
        setup.accelerator,
        config.eval_batch_size,
    )
    figures |= {
        "base_accuracy": on_base.accuracy,
        "novel_accuracy": on_novel.accuracy,
        "harmonic_mean": harmonic_mean(on_base.accuracy, on_novel.accuracy),
        "class_similarity": on_base.class_similarity,
        "modal_similarity": on_base.modal_similarity,
        "novel_class_similarity": on_novel.class_similarity,
        "novel_modal_similarity": on_novel.modal_similarity,
        "ece": on_base.ece,
        "novel_ece": on_novel.ece,
    }
    among_all = learner.for_classes(picked.class_names)
    on_all = evaluate(among_all, features, labels, setup.accelerator, config.eval_batch_size)
    figures |= generalised(on_all)
    by_class = {"base": per_class(on_base, base_split.class_names), "novel": per_class(on_novel, novel_names)}
    record = make_record(setup, run, figures, by_class, started, training, base_split)
    return leave(setup, run, record, learner, {"base": on_base, "novel": on_novel, "all": on_all})
