"""Every method through the protocols: records, files, resume, what is refused before weights load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import backbone, base_to_novel_config, few_shot_config

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, OptimConfig, Run, expand
from cma_tune.learners import from_pretrained
from cma_tune.learners.saving import LEARNERS
from cma_tune.method_options import BLOCKS, OWN_CLASSES, UNTRAINED, LearnerName
from cma_tune.methods import MAKERS
from cma_tune.predictions import FILE
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.report.groups import LEARNERS as NAMES

OTHERS = [name for name in get_args(LearnerName) if name not in ("coop", "cocoop")]
"""CoOp and CoCoOp have tests of their own."""


def config(name: str, output: Path, **changes: Any) -> FewShotConfig:
    weights = [0.0] if name in UNTRAINED else [0.0, 0.5]
    optim = OptimConfig(epochs=2, batch_size=7, lr=0.01)
    return few_shot_config(output, learner=name, optim=optim, weights=weights, **changes)


def test_every_method_is_known_everywhere() -> None:
    names = set(get_args(LearnerName))
    assert names == set(LEARNERS) == set(MAKERS) == set(BLOCKS) == set(NAMES) - {"zero_shot"}
    assert set(OWN_CLASSES) | set(UNTRAINED) <= names


@pytest.mark.parametrize("name", OTHERS)
def test_few_shot_leaves_what_can_be_read_again(name: str, tmp_path: Path) -> None:
    setup = Setup(config(name, tmp_path), backbone())
    records = few_shot(config(name, tmp_path), setup)
    runs = expand("few-shot", replace(config(name, tmp_path), mixed_precision="no"))
    for run, record in zip(runs, records, strict=True):
        assert record.learner == name and record.run == run.digest()
        assert ("cma" in record.training["losses"]) == (record.weight > 0)
        learner = from_pretrained(run.prompt_folder(), backbone())
        features, _ = setup.test_features()
        predicted = load_file(run.folder() / FILE)["test"][:, 0]
        assert torch.equal(learner(features).logits.argmax(dim=1), predicted)
    again = few_shot(config(name, tmp_path), Setup(config(name, tmp_path), backbone()))
    assert again == records


@pytest.mark.parametrize("name", OTHERS)
def test_base_to_novel_takes_what_goes_to_other_classes(name: str, tmp_path: Path) -> None:
    one = base_to_novel_config(tmp_path, learner=name, optim=OptimConfig(epochs=1, batch_size=7))
    if name in OWN_CLASSES:
        with pytest.raises(ValueError, match=f"for base-to-novel, got {name}, which learns"):
            base_to_novel(one)
        assert not list(tmp_path.iterdir())
        return
    (record,) = base_to_novel(one, Setup(one, backbone()))
    assert {"base_accuracy", "novel_accuracy", "harmonic_mean"} <= record.figures.keys()


def test_options_of_other_methods_decide_nothing() -> None:
    plain = FewShotConfig()
    for name in OTHERS:
        assert not (set(BLOCKS[name]) - {"context"}) & Run("few-shot", plain).identity().keys()
        assert set(BLOCKS[name]) <= Run("few-shot", replace(plain, learner=name)).identity().keys()
