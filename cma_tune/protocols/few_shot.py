"""Few-shot: learn on k images of every class, test on the whole test list (CoOp, sec. 4.1)."""

from __future__ import annotations

import time

from cma_tune.build import Setup
from cma_tune.checks import check
from cma_tune.config import FewShotConfig
from cma_tune.protocols.runs import each_run, leave, make_record, per_class, train_one, validate
from cma_tune.records import Record
from cma_tune.run import Run
from cma_tune.train import evaluate

PROTOCOL = "few-shot"


def few_shot(config: FewShotConfig, setup: Setup | None = None) -> list[Record]:
    """Run every combination of shots, seeds and λ.

    Raises:
        UserError: see `check`, `Setup` and `each_run`.
    """
    check(config)
    return each_run(PROTOCOL, config, setup or Setup(config), _one)


def _one(setup: Setup, run: Run) -> Record:
    config, started = run.config, time.perf_counter()
    assert isinstance(config, FewShotConfig)
    split = setup.picks(config)
    learner, training = train_one(setup, run, split)
    figures = validate(setup, learner, split)
    result = evaluate(learner, *setup.test_features(learner), setup.accelerator, config.eval_batch_size)
    figures |= {
        "accuracy": result.accuracy,
        "class_similarity": result.class_similarity,
        "modal_similarity": result.modal_similarity,
        "ece": result.ece,
    }
    by_class = {"test": per_class(result, split.class_names)}
    record = make_record(setup, run, figures, by_class, started, training, split)
    return leave(setup, run, record, learner, {"test": result})
