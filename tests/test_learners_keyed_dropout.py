"""Keyed dropout against SplitMix64 in Python's integers, and as noise."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from cma_tune.learners.keyed_dropout import KeyedDropout, Noise, mixed

GOLDEN = 0x9E3779B97F4A7C15
ONES = 2**64 - 1


def output(state: int) -> int:
    """SplitMix64's output function on unsigned numbers."""
    state &= ONES
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ONES
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & ONES
    return state ^ (state >> 31)


def test_the_generator_is_splitmix64() -> None:
    # The first numbers from seed 0, as published with the generator's Java and C versions.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [output(GOLDEN * (n + 1)) for n in range(3)] == published
    states = [*(GOLDEN * (n + 1) & ONES for n in range(50)), 0, 1, ONES, 2**63]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [number & ONES for number in mixed(signed).tolist()] == [output(s) for s in states]


def mask(noise: Noise, layer: int, places: Tensor, width: int, probability: float = 0.25) -> Tensor:
    with noise.at(lambda tokens: places):
        return noise.kept(torch.zeros(*places.shape, width), layer, probability)


def test_every_entry_is_that_of_the_formula() -> None:
    noise = Noise(5, torch.device("cpu"))
    noise.start(9)
    key = int.from_bytes(hashlib.sha256(b"dropout 5 9").digest()[:8], "big")
    places = torch.tensor([[0, 3, 2**40], [7, 1, 2]])
    kept = mask(noise, 4, places, 6)
    for row, column in [(0, 0), (0, 2), (1, 1)]:
        stream = output(int(places[row, column]) * GOLDEN + output(key + 4 * GOLDEN))
        for feature in range(6):
            number = output(stream + (feature + 1) * GOLDEN) / 2**64
            assert bool(kept[row, column, feature]) == (number >= 0.25)


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.7])
def test_entries_drop_independently_of_each_other(probability: float) -> None:
    noise = Noise(0, torch.device("cpu"))
    places = torch.arange(40 * 50).view(40, 50)
    kept = mask(noise, 0, places, 64, probability).double() - (1 - probability)
    spread = (probability * (1 - probability)) ** 0.5
    count = kept.numel()
    # Five standard deviations of a mean of so many independent entries.
    assert abs(kept.mean()) < 5 * spread / count**0.5
    noise.start(1)
    others = [
        *(kept.roll(1, dims=axis) for axis in range(3)),
        mask(noise, 0, places, 64, probability).double() - (1 - probability),
        mask(Noise(0, torch.device("cpu")), 1, places, 64, probability).double() - (1 - probability),
        mask(Noise(1, torch.device("cpu")), 0, places, 64, probability).double() - (1 - probability),
    ]
    for other in others:
        assert abs((kept * other).mean()) < 5 * spread**2 / count**0.5


def test_the_layer_scales_what_is_left_and_is_off_at_first() -> None:
    noise = Noise(0, torch.device("cpu"))
    layer = KeyedDropout(0.5, noise, 0)
    x = torch.ones(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert layer(x) is x
    layer.train()
    with pytest.raises(RuntimeError, match="inside `Noise"):
        layer(x)
    with noise.at(lambda tokens: torch.arange(2 * tokens).view(2, tokens)):
        dropped = layer(x)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0} and dropped.dtype == x.dtype
    dropped.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, dropped.detach())
