"""Interplay losses over two gloo processes: those of one, and, averaged as DDP does, its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from cma_tune.losses import EntropyDifferenceLoss, InterplayLoss, MutualInformationLoss

CLASSES, DIMS, SIZE = 4, 6, 10
SHARES = {"6 and 4": (6, 4), "10 and 0": (10, 0), "0 and 10": (0, 10)}
MASKS = {
    "all": [True] * SIZE,
    "some here, more there": [False, True, False, False, True, False, True, True, True, False],
    "none there": [True, False, True, True, False, True, False, False, False, False],
    "two here, one there": [False, True, False, True, False, False, False, False, True, False],
    "one in all": [False, True, False, False, False, False, False, False, False, False],
    "none": [False] * SIZE,
}
LOSSES: dict[str, nn.Module] = {
    "both": InterplayLoss(0.7, 1.3, gather_across_processes=True),
    "information": MutualInformationLoss(gather_across_processes=True),
    "difference, centred": EntropyDifferenceLoss(center=True, gather_across_processes=True),
    "order 2, detached": InterplayLoss(1, 1, 2.0, detach_classifier=True, gather_across_processes=True),
}


class Network(nn.Module):
    """One linear layer before a classifier; ``forward`` gives the loss, as DDP wants it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        draw = torch.randn(2, DIMS, DIMS, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(draw[0])
        self.classifier = nn.Parameter(draw[1][:CLASSES])
        self.loss = loss

    def forward(self, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        found = self.loss(inputs @ self.weight, self.classifier, labels, mask)
        value: Tensor = found[0] if isinstance(found, tuple) else found
        return value + 0 * self.classifier.sum()  # DDP wants every parameter used, the detached one too


def data(mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(SIZE, DIMS, generator=generator, dtype=torch.float64)
    return inputs, torch.tensor([0, 1, 1, 3, 0, 1, 3, 0, 3, 0]), torch.tensor(mask)


def loss_and_gradients(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    value = model(*inputs)
    torch.autograd.backward(value)
    return [value.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for shares, (first, _) in SHARES.items():
        mine = slice(0, first) if rank == 0 else slice(first, SIZE)
        for mask_name, mask in MASKS.items():
            share = [tensor[mine] for tensor in data(mask)]
            for name, loss in LOSSES.items():
                model = DistributedDataParallel(Network(loss))
                results[f"{shares}|{mask_name}|{name}"] = loss_and_gradients(model, *share)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What each of two processes found."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_give_the_loss_and_the_gradient_of_one(
    two: list[dict[str, list[Tensor]]], shares: str, mask: str, name: str
) -> None:
    one = loss_and_gradients(Network(LOSSES[name]), *data(MASKS[mask]))
    if mask in ("one in all", "none"):
        assert all((found == 0).all() for found in one)
    else:
        assert abs(one[0]) > 1e-3 and one[1].abs().max() > 1e-4
    for process in two:
        for theirs, ours in zip(process[f"{shares}|{mask}|{name}"], one, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-10, rtol=0)


def test_the_mean_over_shares_would_be_another_loss() -> None:
    # Guards the test above: were the rows not to span the processes, it would see it.
    model = Network(InterplayLoss(0.7, 1.3))
    inputs = data(MASKS["all"])
    parts = [model(*(tensor[part] for tensor in inputs)) for part in (slice(0, 6), slice(6, SIZE))]
    assert abs(model(*inputs) - (parts[0] + parts[1]) / 2) > 0.01
