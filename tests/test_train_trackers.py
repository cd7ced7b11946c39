"""Trackers are passed through: every run's scalars lie beside its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tiny_runs import backbone, few_shot_config

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig
from cma_tune.errors import UserError
from cma_tune.protocols.few_shot import few_shot
from cma_tune.train import Recipe, learning_rate


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By tag and step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_every_epoch_of_every_run(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, weights=[0.0, 0.3], tracker="tensorboard")
    few_shot(config, Setup(config, backbone=backbone()))
    records = sorted(tmp_path.rglob("record.json"))
    assert len(records) == 2
    for path in records:
        record = json.loads(path.read_text())
        found = scalars(path.parent / "cma_tune")
        penalized = record["config"]["weights"] != [0.0]
        assert set(found) == {"loss", "cross_entropy", "learning_rate"} | ({"cma"} if penalized else set())
        for tag, values in found.items():
            assert sorted(values) == [4, 8, 12], tag  # 3 epochs of 4 steps
        rates = [found["learning_rate"][step] for step in (4, 8, 12)]
        assert rates == pytest.approx([learning_rate(epoch, Recipe(3, lr=0.05)) for epoch in range(3)])
        for tag, value in record["training"]["losses"].items():
            assert found[tag][12] == pytest.approx(value, rel=1e-6)
    # Not one heap for all runs.
    assert {path.parent.parent for path in tmp_path.rglob("events.out.*")} >= {p.parent for p in records}


def test_an_unknown_or_missing_tracker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cma_tune.trackers.get_available_trackers", lambda: ["tensorboard"])
    # accelerate would leave out, in silence, one whose package is missing.
    with pytest.raises(
        UserError, match=r"Expected a tracker out of .*tensorboard.*, got 'tensorbord' \(did you"
    ):
        Setup(few_shot_config(tmp_path, tracker="tensorbord"))
    with pytest.raises(UserError, match=r"Expected the package of tracker 'aim', got none installed"):
        Setup(few_shot_config(tmp_path, tracker="aim"))


def test_accumulation_set_for_accelerate_does_not_divide_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    config = few_shot_config(tmp_path)
    assert Setup(config, backbone=backbone()).accelerator.gradient_accumulation_steps == 1


def test_half_precision_without_a_gpu_is_refused(tmp_path: Path) -> None:
    # accelerate would compute in float32 and say fp16.
    AcceleratorState._reset_state(reset_partial_state=True)
    config: FewShotConfig = few_shot_config(tmp_path, mixed_precision="fp16")
    try:
        with pytest.raises(UserError, match="Expected a GPU for precision fp16, got device 'cpu'"):
            few_shot(config, Setup(config, backbone=backbone()))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not list(tmp_path.iterdir())
