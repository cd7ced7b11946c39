"""Softmax temperature: the loss is CE(z/T), figures are scikit-learn's, the pictures have their points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_runs import curves_of, lab_config
from safetensors.torch import load_file
from sklearn.metrics import davies_bouldin_score, silhouette_score

from cma_tune.companion.algorithms import BatchOutputs, algorithm
from cma_tune.companion.lab import temperature
from cma_tune.companion.lab.command import lab
from cma_tune.companion.loop import outputs_of
from cma_tune.companion.networks import Output
from cma_tune.companion.objective import Objective
from cma_tune.companion.setup import CompanionSetup
from cma_tune.metrics import feature_entropy


def cooled_loss(logits: torch.Tensor, labels: torch.Tensor, t: float) -> float:
    """Mean of −z_y/T + ln Σ exp(z/T), row by row."""
    rows = zip(logits.double() / t, labels.tolist(), strict=True)
    losses = [float(row.exp().sum().log() - row[label]) for row, label in rows]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("t", [1.0, 2.5, 10.0])
def test_the_loss_is_cross_entropy_of_cooled_logits(t: float) -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(8, 5), torch.randint(5, (8,))
    objective = Objective(algorithm("supervised", 5, 8), temperature=t)
    rows = Output(logits, torch.randn(8, 4))
    losses = objective(BatchOutputs(rows, labels, None, None, torch.empty(0), torch.randn(5, 4)))
    assert losses["loss"].item() == pytest.approx(cooled_loss(logits, labels, t), rel=1e-6)


def test_every_temperature_reaches_the_training(tmp_path: Path) -> None:
    config = lab_config("temperature", tmp_path, network="small-cnn", flip=0.0)
    config = replace(config, schedule=replace(config.schedule, steps=1))
    (folder,) = lab(config)
    setup = CompanionSetup(config)
    step = setup.steps(config, setup.labelled(config)).step(0)
    logits = setup.network(config).train()(step.images).logits.detach()
    losses = {entry["temperature"]: entry["loss"] for entry in curves_of(folder)}
    assert losses == {
        t: pytest.approx(cooled_loss(logits, step.labels, t), rel=1e-5) for t in config.temperatures
    }
    assert losses[1.0] != pytest.approx(losses[4.0], rel=1e-3)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was trained, one after another."""
    made: list[Any] = []
    train = temperature.part_of_experiment

    def kept(*arguments: Any, **options: Any) -> Any:
        made.append(train(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(temperature, "part_of_experiment", kept)
    return made


def test_figures_and_pictures_are_of_the_test_features(tmp_path: Path, trainings: list[Any]) -> None:
    config = lab_config("temperature", tmp_path, temperatures=[4.0, 1.0, 2.0])
    (folder,) = lab(config)
    setup = CompanionSetup(config)
    test = setup.images.test
    entries = curves_of(folder)
    assert [entry["temperature"] for entry in entries] == [4.0, 1.0, 2.0]
    for entry, (trained, _) in zip(entries, trainings, strict=True):
        features = outputs_of(
            trained.network.eval(), test.images, setup.prepare(config), setup.accelerator, 100
        ).features.double()
        assert entry["feature_entropy"] == pytest.approx(feature_entropy(features).item(), abs=1e-6)
        assert entry["silhouette"] == pytest.approx(silhouette_score(features, test.labels), abs=1e-6)
        assert entry["davies_bouldin"] == pytest.approx(davies_bouldin_score(features, test.labels), abs=1e-6)
    points = load_file(folder / "points.safetensors")
    assert set(points) == {"1", "4", "labels"}
    assert torch.equal(points["labels"], test.labels)
    for name in ("1", "4"):
        assert points[name].shape == (len(test), 2) and bool(points[name].isfinite().all())
        assert float(points[name].std()) > 0
    assert not torch.equal(points["1"], points["4"])


def test_large_test_sets_are_thinned_out_evenly() -> None:
    rows = torch.arange(10_000)
    thin = temperature.picked(rows)
    assert len(thin) == temperature.MOST_POINTS and set(thin.diff().tolist()) == {5}
    assert torch.equal(temperature.picked(rows[:7]), rows[:7])
