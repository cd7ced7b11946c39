"""Zero-shot: the backbone with the dataset's templates, nothing learned."""

from __future__ import annotations

from dataclasses import replace

from cma_tune.build import Setup
from cma_tune.checks import check
from cma_tune.config import Run, ZeroShotConfig
from cma_tune.protocols.runs import finished, leave, make_record, per_class
from cma_tune.records import Record
from cma_tune.train import evaluate


def zero_shot(config: ZeroShotConfig, setup: Setup | None = None) -> Record:
    """Evaluate the backbone on the test list.

    Raises:
        UserError: see `check`, `Setup` and `finished`.
    """
    check(config)
    setup = setup or Setup(config)
    run = Run("zero-shot", replace(config, mixed_precision=setup.precision))
    record = finished(run, setup)
    if record is not None:
        setup.say(f"{run.folder()}: finished before, skipped")
        return record
    class_names = setup.dataset.split.class_names
    learner = setup.zero_shot(class_names)
    result = evaluate(learner, *setup.test_features(), setup.accelerator, config.eval_batch_size)
    figures = {
        "accuracy": result.accuracy,
        "class_similarity": result.class_similarity,
        "modal_similarity": result.modal_similarity,
    }
    record = make_record(setup, run, figures, {"test": per_class(result, class_names)})
    leave(setup, run, record)
    setup.say(f"{run.folder()}: {record.headline()}")
    return record
