"""Two gloo processes give the loss of one and, averaged as DistributedDataParallel does, its gradients."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from cma_tune import processes as processes_module
from cma_tune.losses import CMALoss, gather_rows

CLASSES, DIMS, SIZE = 4, 6, 8
SHARES = {"5 and 3": (5, 3), "8 and 0": (8, 0), "0 and 8": (0, 8), "4 and 4": (4, 4), "0 and 0": (0, 0)}
LOSSES: dict[str, Callable[[], CMALoss]] = {
    "paper": lambda: CMALoss(gather_across_processes=True),
    "release": lambda: CMALoss("mean", normalize=True, gather_across_processes=True),
}


class Towers(nn.Module):
    """Small towers for both forms of text; ``forward`` gives the loss, as DDP wants it."""

    def __init__(self, loss: CMALoss, conditioned: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        draw = torch.randn(3, DIMS, DIMS, generator=generator, dtype=torch.float64)
        self.image = nn.Parameter(draw[0])
        self.text = nn.Parameter(draw[1][:CLASSES])
        self.shift = nn.Parameter(draw[2]) if conditioned else None
        self.loss = loss

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        texts: Tensor = self.text
        if self.shift is not None:
            texts = texts + (inputs @ self.shift)[:, None]
        value: Tensor = self.loss(inputs @ self.image, texts, labels)
        return value


def data(size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(SIZE, DIMS, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 3, 0, 1, 3, 0])  # every class of the batch lies on both sides of 5 | 3
    return inputs[:size], labels[:size]


def loss_and_gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    value = model(inputs, labels)
    torch.autograd.backward(value)
    return [value.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for shares, (first, second) in SHARES.items():
        inputs, labels = data(first + second)
        mine = slice(0, first) if rank == 0 else slice(first, first + second)
        for name, make in LOSSES.items():
            for conditioned in (False, True):
                model = DistributedDataParallel(Towers(make(), conditioned))
                results[f"{shares}|{name}|{conditioned}"] = loss_and_gradients(
                    model, inputs[mine], labels[mine]
                )

    # An empty share that was made on the spot and needs no gradient, beside one that does.
    inputs, labels = data()
    images = inputs.clone().requires_grad_() if rank == 0 else torch.empty(0, DIMS, dtype=torch.float64)
    texts = inputs[:CLASSES].flip(0).clone().requires_grad_()
    mine = slice(0, 8) if rank == 0 else slice(8, 8)
    value = CMALoss(gather_across_processes=True)(images, texts, labels[mine])
    torch.autograd.backward(value)
    results["spot"] = [value.detach(), texts.grad, torch.zeros(0) if images.grad is None else images.grad]

    # Rows by themselves: order, dtypes, more dimensions than two, no gradient where nobody asks for one.
    rows = torch.arange(6, dtype=torch.int32).view(3, 2, 1)
    gathered = gather_rows(rows[:1] if rank == 0 else rows[1:])
    results["plain"] = [gathered, torch.tensor(gathered.requires_grad)]
    with torch.no_grad():
        results["no_grad"] = torch.tensor(gather_rows(nn.Parameter(torch.ones(rank, 2))).requires_grad)
    try:
        gather_rows(torch.ones(2, 3 + rank))
        results["refused"] = ""
    except ValueError as error:
        results["refused"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("conditioned", [False, True], ids=["C,D", "B,C,D"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_give_the_loss_and_the_gradient_of_one(
    two: list[dict[str, Any]], shares: str, name: str, conditioned: bool
) -> None:
    inputs, labels = data(sum(SHARES[shares]))
    one = loss_and_gradients(Towers(LOSSES[name](), conditioned), inputs, labels)
    if len(labels):
        assert one[0] > 0.1 and all(gradient.abs().max() > 1e-3 for gradient in one[1:])
    for process in two:
        found = process[f"{shares}|{name}|{conditioned}"]
        assert len(found) == len(one)
        for theirs, ours in zip(found, one, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-10, rtol=0)


def test_a_share_of_one_process_alone_would_give_another_loss() -> None:
    # Guards the tests above: were the groups not to span the processes, they would see it.
    inputs, labels = data()
    model = Towers(CMALoss(), conditioned=False)
    whole = model(inputs, labels)
    assert abs(whole - (model(inputs[:5], labels[:5]) + model(inputs[5:], labels[5:]))) > 0.1


def test_an_empty_share_without_gradient_does_not_hold_up_the_others(two: list[dict[str, Any]]) -> None:
    inputs, labels = data()
    images = inputs.clone().requires_grad_()
    texts = inputs[:CLASSES].flip(0).clone().requires_grad_()
    value = CMALoss()(images, texts, labels)
    for_images, for_texts = torch.autograd.grad(value, (images, texts))
    for process in two:
        torch.testing.assert_close(process["spot"][0], value.detach(), atol=1e-10, rtol=0)
        torch.testing.assert_close(process["spot"][1], for_texts, atol=1e-10, rtol=0)
    # The sum over both processes, to be averaged with the other one's (none).
    torch.testing.assert_close(two[0]["spot"][2], 2 * for_images, atol=1e-10, rtol=0)


def test_rows_come_in_rank_order_and_keep_their_type(two: list[dict[str, Any]]) -> None:
    for process in two:
        rows, needs_gradient = process["plain"]
        assert torch.equal(rows, torch.arange(6, dtype=torch.int32).view(3, 2, 1))
        assert not needs_gradient and not process["no_grad"]


def test_rows_of_different_sizes_are_refused_on_every_process(two: list[dict[str, Any]]) -> None:
    for process in two:
        assert process["refused"] == "Expected rows of one size on every process, got [3, 4] entries a row."


def test_without_a_process_group_nothing_happens() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    with pytest.raises(ValueError, match=r"Expected `rows` of shape \[B, \.\.\.\], got a scalar"):
        gather_rows(torch.tensor(1.0))
    inputs, labels = data()
    on, off = CMALoss(gather_across_processes=True), CMALoss()
    assert torch.equal(on(inputs, inputs[:CLASSES], labels), off(inputs, inputs[:CLASSES], labels))


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(processes_module)
    assert results.attempted > 0 and results.failed == 0
