"""The companion's networks: sizes, structure, BatchNorm over several processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import batch_norm, conv2d, leaky_relu
from torch.nn.parallel import DistributedDataParallel

from cma_tune.companion.batch_norm import GlobalBatchNorm2d, synchronise_batch_norm
from cma_tune.companion.networks import Block, Network, Output, WideResNet, network
from cma_tune.errors import UserError
from cma_tune.processes import gather_rows


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "width"),
    [
        ("wrn-28-2", 10, 1_469_642, 128),
        ("wrn-28-8", 100, 23_409_092, 512),
        ("wrn-37-2", 10, 5_933_770, 256),
    ],
)
def test_parameter_counts_are_the_references(name: str, classes: int, parameters: int, width: int) -> None:
    made = network(name, classes)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert made.width == made.classifier.in_features == width and made.classifier.out_features == classes
    convolutions = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.bias is not None for m in convolutions)
    assert {(m.momentum, m.eps) for m in norms} == {(1e-3, 1e-3)}
    large = max(convolutions, key=lambda m: m.weight.numel())
    fan_out = large.out_channels * 9
    assert float(large.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("name", "side", "last"), [("wrn-28-2", 32, 8), ("wrn-37-2", 96, 6)])
def test_stages_halve_the_sides(name: str, side: int, last: int) -> None:
    made = network(name, 10).eval()
    assert isinstance(made, WideResNet)
    seen: list[torch.Size] = []
    made.bn.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    out = made(torch.randn(2, 3, side, side))
    assert seen[0][-1] == last
    assert torch.allclose(made.classifier(out.features), out.logits)


def test_blocks_are_the_written_out_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def act(norm: nn.BatchNorm2d, value: torch.Tensor) -> torch.Tensor:
        return leaky_relu(batch_norm(value, None, None, norm.weight, norm.bias, True, 0.0, 1e-3), 0.1)

    def conv(layer: nn.Conv2d, value: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        return conv2d(value, layer.weight, layer.bias, stride, padding)

    for width, stride, before in ((4, 1, False), (6, 2, False), (6, 1, True)):
        block = Block(4, width, stride, before).double()
        inner = act(block.bn1, x)
        skipped = x
        if block.shortcut is not None:
            inner = inner if before else x  # without the early activation both paths take the raw input
            skipped = conv(block.shortcut, inner, stride, 0)
        inner = conv(block.conv2, act(block.bn2, conv(block.conv1, inner, stride, 1)), 1, 1)
        assert torch.allclose(block(x), skipped + inner, atol=1e-12)


def test_norms_that_take_no_part_get_no_gradient() -> None:
    made = network("wrn-28-2", 10)
    made(torch.randn(4, 3, 16, 16)).logits.sum().backward()
    without = [name for name, p in made.named_parameters() if p.grad is None]
    assert without == [f"blocks.{block}.bn1.{what}" for block in (4, 8) for what in ("weight", "bias")]
    assert not any(dict(made.named_parameters())[name].requires_grad for name in without)


def test_timm_models_and_the_small_one_fit_in() -> None:
    # The second one's head widens the pooled features before the classifier.
    for name, width in (("timm:resnet18", 512), ("timm:mobilenetv3_small_050", 1024), ("small-cnn", 64)):
        made = network(name, 7).eval()
        out = made(torch.randn(2, 3, 32, 32))
        assert out.logits.shape == (2, 7) and out.features.shape == (2, width) and made.width == width
        assert torch.equal(made.classifier(out.features), out.logits)


def test_digits_of_eight_pixels_go_through() -> None:
    for name, most in (("small-cnn", 100_000), ("wrn-28-2", 1_500_000)):
        made = network(name, 10)
        made(torch.randn(4, 3, 8, 8)).logits.square().mean().backward()
        assert sum(p.numel() for p in made.parameters()) < most
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_unknown_networks_are_named() -> None:
    with pytest.raises(UserError, match=r"got 'wrn-28-3'.*wrn-28-"):
        network("wrn-28-3", 10)
    with pytest.raises(UserError, match="Expected a model of timm, got 'resnet19'"):
        network("timm:resnet19", 10)


def test_global_norms_keep_names_and_parameters() -> None:
    made = network("small-cnn", 10)
    before = dict(made.named_parameters())
    synced = synchronise_batch_norm(made)
    assert any(isinstance(m, GlobalBatchNorm2d) for m in synced.modules())
    after = dict(synced.named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(
        synced(x).logits, network_with(synced.state_dict())(x).logits
    )  # one process: torch's own


def network_with(state: dict[str, torch.Tensor]) -> nn.Module:
    made = network("small-cnn", 10)
    made.load_state_dict(state)
    return made


def test_norms_that_cannot_span_processes_are_named() -> None:
    with pytest.raises(UserError, match="got BatchNorm3d: train in one"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm3d(2)))


class Mixed(Network):
    """Norms over rows, over sequences, and without parameters, running statistics or momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.plain = nn.BatchNorm2d(3, affine=False, track_running_stats=False)
        self.mean = nn.BatchNorm1d(3, momentum=None)
        self.classifier = nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> Output:
        x = self.mean(self.plain(images)[:, :, :2, :2].flatten(2)).flatten(1)
        features = self.norm(x).sigmoid()
        return Output(self.classifier(features), features)


NETWORKS: dict[str, Callable[[], Network]] = {
    "small-cnn": lambda: network("small-cnn", 5),
    "wrn": lambda: WideResNet(5, 1),
    "timm": lambda: network("timm:test_efficientnet", 5),  # its norms hold the activations
    "mixed": Mixed,
}
SHARES = {
    "small-cnn": ((3, 5), (0, 8), (8, 0)),
    "wrn": ((3, 5),),
    "timm": ((6, 2),),
    "mixed": ((4, 4), (1, 7)),
}


def two_steps(name: str, shares: tuple[int, int] | None, rank: int = 0) -> dict[str, torch.Tensor]:
    """Outputs, gradients and running statistics after two steps, over this process's rows or over all."""
    torch.manual_seed(0)
    made = NETWORKS[name]().double()
    images = torch.randn(2, 8, 3, 16, 16, dtype=torch.float64)
    mine = slice(None)
    forward: nn.Module = made
    if shares is not None:
        mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], 8)
        forward = DistributedDataParallel(synchronise_batch_norm(made))
    result = {}
    for step in range(2):
        output = forward(images[step, mine])
        logits, features = gather_rows(output.logits), gather_rows(output.features)
        loss = logits.square().mean() + logits[:, 0].exp().mean() + features.std()
        loss.backward()
        result[f"logits {step}"] = logits.detach()
    for key, parameter in made.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            result[key] = parameter.grad
    return result | {key: value.double() for key, value in made.named_buffers()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {
        f"{name} {shares}": two_steps(name, shares, rank) for name in NETWORKS for shares in SHARES[name]
    }
    dist.barrier()
    dist.destroy_process_group()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_normalise_as_one(two: list[dict[str, dict[str, torch.Tensor]]], name: str) -> None:
    expected = two_steps(name, None)
    largest = max(float(value.abs().max()) for key, value in expected.items() if "logits" not in key)
    assert largest > 1e-2
    for shares in SHARES[name]:
        for process in two:
            found = process[f"{name} {shares}"]
            assert list(found) == list(expected)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12, msg=f"{shares} {key}")


def test_norms_of_a_share_alone_would_be_others() -> None:
    # Guards the test above: were the statistics not to span the processes, it would see it.
    torch.manual_seed(0)
    made = NETWORKS["small-cnn"]().double()
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    apart = torch.cat([made(images[:3]).logits, made(images[3:]).logits])
    assert (made(images).logits - apart).abs().max() > 1e-2
