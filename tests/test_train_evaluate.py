"""`evaluate` against a plain loop and the metrics; mixed precision; features made live or stored."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_runs import backbone, coop, cpu, few_shot_config, random_features
from torch import Tensor

from cma_tune.build import Setup
from cma_tune.clip.context_prompts import ContextPrompts
from cma_tune.config import FewShotConfig
from cma_tune.data.batches import StoredBatches
from cma_tune.learners import CoCoOp, CoOp, ZeroShot
from cma_tune.learners.base import Learner
from cma_tune.learners.coop import ContextOptions
from cma_tune.metrics import class_similarity, modal_similarity
from cma_tune.protocols.runs import recipe
from cma_tune.run import Run, expand
from cma_tune.train import Recipe, evaluate, fit

NAMES = ("cat", "red dog", "ship", "aeroplane")
ABSENT = 3


def learners() -> dict[str, Learner]:
    return {
        "coop": coop(NAMES),
        "cocoop": CoCoOp(backbone(), NAMES, ContextOptions(tokens=3), seed=1),
        "zero_shot": ZeroShot(backbone(), NAMES, ["a photo of a {}."]),
    }


def data(count: int = 31) -> tuple[Tensor, Tensor]:
    features, labels = random_features(count, ABSENT, seed=4)  # the last class has no image
    return features[0], labels


@pytest.mark.parametrize("kind", ["coop", "cocoop", "zero_shot"])
def test_the_figures_are_those_of_a_plain_loop(kind: str) -> None:
    learner = learners()[kind]
    features, labels = data()
    found = evaluate(learner, features, labels, cpu(), batch_size=7)
    right, own, any_class, sure = [], [], [], []
    for image, label in zip(features, labels.tolist(), strict=True):
        with torch.no_grad():
            text = learner.text_features(image[None])
        cosines = ((text[0] if text.dim() == 3 else text) @ image).tolist()
        right.append(cosines.index(max(cosines)) == label)
        own.append(cosines[label])
        any_class.append(sum(cosines) / len(cosines))
        powers = [math.exp(float(learner.backbone.scale) * cosine) for cosine in cosines]
        sure.append(max(powers) / sum(powers))
    assert found.images == len(labels)
    assert found.accuracy == pytest.approx(100 * sum(right) / len(right), abs=1e-9)
    assert 0 < found.accuracy < 100
    assert found.class_similarity == pytest.approx(sum(own) / len(own), abs=1e-6)
    assert found.modal_similarity == pytest.approx(sum(any_class) / len(any_class), abs=1e-6)
    ece = 0.0
    for number in range(15):
        members = [i for i, value in enumerate(sure) if number < 15 * value <= number + 1]
        ece += abs(sum(right[i] - sure[i] for i in members)) / len(right)
    assert found.ece == pytest.approx(100 * ece, abs=1e-3) and found.ece > 1
    for label, percent in enumerate(found.per_class):
        mine = [hit for hit, other in zip(right, labels.tolist(), strict=True) if other == label]
        assert percent == (None if label == ABSENT else pytest.approx(100 * sum(mine) / len(mine)))


@pytest.mark.parametrize("kind", ["coop", "cocoop"])
def test_the_similarities_are_those_of_the_metrics(kind: str) -> None:
    learner = learners()[kind]
    features, labels = data()
    with torch.no_grad():
        text = learner.text_features(features)
    found = evaluate(learner, features, labels, cpu())
    assert found.class_similarity == pytest.approx(float(class_similarity(features, text, labels)), abs=1e-6)
    assert found.modal_similarity == pytest.approx(float(modal_similarity(features, text)), abs=1e-6)
    assert abs(found.class_similarity - found.modal_similarity) > 1e-4


@pytest.mark.parametrize("kind", ["coop", "cocoop", "zero_shot"])
def test_the_batch_size_does_not_matter(kind: str) -> None:
    learner = learners()[kind]
    expected = evaluate(learner, *data(), cpu(), batch_size=100)
    for batch_size in (1, 4, 31):
        found = evaluate(learner, *data(), cpu(), batch_size)
        assert (found.accuracy, found.per_class) == (expected.accuracy, expected.per_class)
        assert found.ece == pytest.approx(expected.ece, abs=1e-3)
        assert found.class_similarity == pytest.approx(expected.class_similarity, abs=1e-6)
        assert found.modal_similarity == pytest.approx(expected.modal_similarity, abs=1e-6)


def test_text_is_encoded_once_unless_it_depends_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = ContextPrompts.encode

    def counted(self: ContextPrompts, *arguments: Any, **named: Any) -> Tensor:
        calls.append(arguments)
        return encode(self, *arguments, **named)

    monkeypatch.setattr(ContextPrompts, "encode", counted)
    evaluate(coop(NAMES), *data(), cpu(), batch_size=4)
    assert len(calls) == 1


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Expected features \[N, D\] and labels \[N\], N > 0, got 0 and 0"):
        evaluate(coop(NAMES), torch.zeros(0, 12), torch.zeros(0, dtype=torch.long), cpu())
    with pytest.raises(ValueError, match="got 2 and 3"):
        evaluate(coop(NAMES), torch.zeros(2, 12), torch.zeros(3, dtype=torch.long), cpu())


def test_bfloat16_on_the_cpu(fresh_accelerate: None) -> None:
    features, labels = random_features(17, len(NAMES))
    batches = StoredBatches(features, labels, 5, seed=1)
    settings = Recipe(3, lr=0.1, cma_weight=0.3)
    exact, half = coop(NAMES), coop(NAMES)
    fit(exact, batches, settings, cpu())
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    report = fit(half, batches, settings, accelerator)
    assert half.context.dtype == torch.float32 and torch.isfinite(half.context).all()
    moved = (half.context - coop(NAMES).context).abs().max()
    apart = (half.context - exact.context).abs().max()
    assert 1e-5 < apart < 0.3 * moved  # half the digits, the same way
    assert report.losses["loss"] > 0
    # Nothing of the precision stays on the learner; evaluation has its own.
    assert "forward" not in vars(half) and "_original_forward" not in vars(half)
    assert half(features[0]).text_features.dtype == torch.float32
    found = evaluate(half, features[0], labels, accelerator)
    assert found.class_similarity == pytest.approx(
        evaluate(half, features[0], labels, cpu()).class_similarity, abs=0.02
    )


def run_of(config: FewShotConfig) -> FewShotConfig:
    """The one run of a config."""
    run: Run = expand("few-shot", config)[0]
    assert isinstance(run.config, FewShotConfig)
    return run.config


@pytest.mark.parametrize("workers", [0, 2])
def test_live_features_give_what_as_many_stored_views_as_epochs_give(tmp_path: Path, workers: int) -> None:
    contexts = []
    for kind, views in [("live", 0), ("stored", 3), ("stored", 2)]:
        config = run_of(few_shot_config(tmp_path, train_features=kind, views=views, weights=[0.3]))
        setup = Setup(replace(config, workers=workers), backbone=backbone())
        picked = setup.picks(config)
        learner = setup.learner(config, picked.class_names, picked.train)
        assert isinstance(learner, CoOp)
        start = learner.context.detach().clone()
        data = setup.train_batches(picked.train, config)
        fit(learner, data, recipe(config, data.steps_per_epoch()), setup.accelerator)
        contexts.append(learner.context.detach())
    assert (contexts[0] - start).abs().max() > 1e-2
    torch.testing.assert_close(contexts[0], contexts[1], atol=1e-6, rtol=0)
    assert (contexts[0] - contexts[2]).abs().max() > 1e-5  # two views for three epochs: another run
