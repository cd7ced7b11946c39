"""Checkpoints within a process: what they hold, when they are written, which are refused."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import backbone, coop, cpu, random_features

from cma_tune.checkpoint import Position, load_checkpoint, save_checkpoint
from cma_tune.data.batches import Batch, StoredBatches
from cma_tune.errors import UserError
from cma_tune.learners import CoCoOp
from cma_tune.learners.coop import ContextLearner, ContextOptions
from cma_tune.train import Checkpointing, FitReport, NonFiniteLossError, Recipe, fit

NAMES = ("cat", "red dog", "ship")
EPOCHS, STEPS = 3, 4
RECIPE = Recipe(EPOCHS, lr=0.1, cma_weight=0.3, reduction="mean", normalize=True)


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate collects garbage after every fit, which takes longer than these fits."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class Stopped(Exception):
    """The plug was pulled."""


@dataclass
class Unplugged:
    """Batches that end in `Stopped` when asked for number `after` + 1; counts those it gave."""

    data: StoredBatches
    after: int = 10**9
    given: list[tuple[int, int]] = field(default_factory=list)

    def steps_per_epoch(self) -> int:
        return self.data.steps_per_epoch()

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self.data.batches(epoch, start), start=start):
            if len(self.given) == self.after:
                raise Stopped
            self.given.append((epoch, step))
            yield batch


def batches(views: int = 2) -> StoredBatches:
    features, labels = random_features(4 * STEPS + 1, len(NAMES), views=views)
    return StoredBatches(features, labels, 4, seed=1)


def new_learner(kind: str) -> ContextLearner:
    if kind == "coop":
        return coop(NAMES)
    return CoCoOp(backbone(), NAMES, ContextOptions(tokens=3), seed=1)


def run(
    learner: ContextLearner, folder: Path, data: Unplugged, every: int = 0, resume: bool = True
) -> FitReport:
    path = folder / "checkpoint.safetensors"
    return fit(learner, data, RECIPE, cpu(), Checkpointing(path, "this run", every, resume))


@pytest.mark.parametrize(("kind", "every"), [("coop", 0), ("coop", 1), ("coop", 3), ("cocoop", 1)])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_end(tmp_path: Path, kind: str, every: int) -> None:
    whole = new_learner(kind)
    expected = run(whole, tmp_path / "whole", Unplugged(batches()), every)
    order = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    for after in (0, 1, 4, 7, 11):  # the first and the last of the run, of an epoch, and one between
        folder = tmp_path / str(after)
        with pytest.raises(Stopped):
            run(new_learner(kind), folder, Unplugged(batches(), after), every)
        learner, data = new_learner(kind), Unplugged(batches())
        report = run(learner, folder, data, every)
        epoch, step = order[after]
        saved = (epoch, step - step % every if every else 0)
        assert data.given == order[order.index(saved) :]  # no step twice, none left out
        assert report == expected
        for name, value in learner.state_dict().items():
            assert torch.equal(value, whole.state_dict()[name]), name


def test_a_finished_fit_is_not_trained_further_and_keeps_its_losses(tmp_path: Path) -> None:
    learner = coop(NAMES)
    expected = run(learner, tmp_path, Unplugged(batches()))
    again, data = coop(NAMES), Unplugged(batches())
    assert run(again, tmp_path, data) == expected and data.given == []
    assert set(expected.losses) == {"loss", "cross_entropy", "cma"} and expected.steps == EPOCHS * STEPS
    assert torch.equal(again.context, learner.context)


def test_without_resume_the_checkpoint_is_not_read(tmp_path: Path) -> None:
    run(coop(NAMES), tmp_path, Unplugged(batches()))
    data = Unplugged(batches())
    run(coop(NAMES), tmp_path, data, resume=False)
    assert len(data.given) == EPOCHS * STEPS


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    run(coop(NAMES), tmp_path, Unplugged(batches()))
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(UserError, match=r"Expected a checkpoint of this run at .*, got one of another run"):
        fit(coop(NAMES), batches(), RECIPE, cpu(), Checkpointing(path, "another run"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"half"], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    run(coop(NAMES), tmp_path, Unplugged(batches()))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:3000] if content == b"half" else content)
    with pytest.raises(
        UserError, match=rf"Expected a checkpoint at {path}, but it can't be read .*delete it"
    ):
        run(coop(NAMES), tmp_path, Unplugged(batches()))


def test_other_files_of_the_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"context": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"can't be read .*delete it"):
        run(coop(NAMES), tmp_path, Unplugged(batches()))
    save_file({"context": torch.zeros(3)}, path, {"checkpoint": '{"format": 99}'})
    with pytest.raises(UserError, match=r"Expected a checkpoint of format 1 at .*, got 99; delete it"):
        run(coop(NAMES), tmp_path, Unplugged(batches()))


def test_a_checkpoint_holds_weights_optimiser_schedule_random_states_and_position(tmp_path: Path) -> None:
    learner, path = coop(NAMES), tmp_path / "checkpoint.safetensors"
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.3, momentum=0.9)
    learner.context.grad = torch.ones_like(learner.context)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1 + 0.2  # has no short decimal form
    torch.manual_seed(7)
    random.seed(7)
    position = Position(2, 5, {"loss": 1 / 3}, {"loss": 2 / 3})
    save_checkpoint(path, "run", learner, optimizer, position, cpu())
    drawn = torch.rand(3), random.random()

    other = coop(NAMES, seed=9)
    fresh = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.9)
    assert load_checkpoint(path, "run", other, fresh, cpu()) == position
    assert torch.equal(torch.rand(3), drawn[0]) and random.random() == drawn[1]
    assert torch.equal(other.context, learner.context)
    assert fresh.param_groups[0]["lr"] == 0.1 + 0.2
    momentum = fresh.state[other.context]["momentum_buffer"]
    assert torch.equal(momentum, torch.ones_like(momentum))
    # Nothing executable: plain tensors and JSON, which a safetensors file can't do otherwise.
    assert all(isinstance(value, torch.Tensor) for value in load_file(path).values())


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint.safetensors.123-abc.tmp"
    left.write_bytes(b"half")
    run(coop(NAMES), tmp_path, Unplugged(batches()))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(
    tmp_path: Path, epoch: int, value: float
) -> None:
    data = batches()
    bad_step = 2
    order = [(e, s) for e in range(EPOCHS) for s in range(STEPS)]
    damaged = Unplugged(data)
    original = StoredBatches.batches

    def spoilt(self: StoredBatches, number: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(original(self, number, start), start=start):
            wrong = batch.images * value if (number, step) == (epoch, bad_step) else batch.images
            yield Batch(wrong, batch.labels, batch.size)

    learner = coop(NAMES)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(
            NonFiniteLossError, match=rf"Expected a finite loss, got nan in step {bad_step} of epoch {epoch} "
        ) as caught,
    ):
        patch.setattr(StoredBatches, "batches", spoilt)
        run(learner, tmp_path, damaged, every=1)
    assert isinstance(caught.value, UserError)  # so the command line says it in one sentence
    assert damaged.given == order[: order.index((epoch, bad_step)) + 1]
    # The step was not taken, and what was saved before it is still there to go on from.
    healthy = coop(NAMES)
    with pytest.raises(Stopped):
        run(healthy, tmp_path / "healthy", Unplugged(data, order.index((epoch, bad_step))), every=1)
    assert torch.equal(learner.context, healthy.context)
    resumed = Unplugged(data)
    run(coop(NAMES), tmp_path, resumed, every=1)
    assert resumed.given[0] == (epoch, bad_step)
