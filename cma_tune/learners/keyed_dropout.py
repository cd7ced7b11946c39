"""Dropout whose noise depends on seed, step and place alone.

torch draws a mask from one stream of random numbers, so that its entries depend on how a batch is shared
between processes, cut into chunks or packed. Here every entry has a random number of its own, from SplitMix64
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): a stream for every layer and
token, in which the feature says the position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Places = Callable[[int], Tensor]
"""Number of tokens → which they are, as int64 numbers that broadcast to ``[N, tokens]``."""


def _signed(number: int) -> int:
    """The lowest 64 bits of a number as torch's int64 holds them."""
    return (number + 2**63) % 2**64 - 2**63


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (numbers >> bits) & (2 ** (64 - bits) - 1)


def mixed(states: Tensor) -> Tensor:
    """The random 64-bit numbers of int64 states: SplitMix64's output function."""
    states = (states ^ _shifted(states, 30)) * _FIRST
    states = (states ^ _shifted(states, 27)) * _SECOND
    return states ^ _shifted(states, 31)


class Noise:
    """What the layers of one model share: the step, and which tokens go through now.

    Args:
        seed: of the run.
        device: of the model.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self._key = torch.zeros((), dtype=torch.long, device=device)
        self._places: Places | None = None
        self.start(0)

    def start(self, step: int) -> None:
        """From now on it is the noise of this step."""
        digest = hashlib.sha256(f"dropout {self.seed} {step}".encode()).digest()
        self._key.fill_(int.from_bytes(digest[:8], "big", signed=True))

    @contextmanager
    def at(self, places: Places) -> Iterator[None]:
        """Say which tokens go through the model."""
        before, self._places = self._places, places
        try:
            yield
        finally:
            self._places = before

    def kept(self, x: Tensor, layer: int, probability: float) -> Tensor:
        """Which entries of ``x`` ``[N, tokens, W]`` stay, as a mask of its shape.

        Raises:
            RuntimeError: nobody has said which tokens they are.
        """
        if self._places is None:
            raise RuntimeError("Expected dropout inside `Noise.at`, which says the places, got it outside.")
        # A state for every layer and token, then one for every feature.
        streams = mixed(self._places(x.shape[1]) * _STEP + mixed(self._key + _signed(layer * _STEP)))
        features = torch.arange(1, x.shape[2] + 1, device=x.device) * _STEP
        numbers = _shifted(mixed(streams[..., None] + features), 11)  # of 53 bits
        return (numbers >= int(probability * 2**53)).expand_as(x)


class KeyedDropout(nn.Module):
    """Dropout of ``[N, tokens, W]`` with the noise of `Noise`; it starts in eval mode.

    Args:
        probability: of an entry to become 0; the others are divided by what is left.
        noise: shared by all layers.
        layer: a number of its own.
    """

    def __init__(self, probability: float, noise: Noise, layer: int) -> None:
        super().__init__()
        self.probability, self.noise, self.layer = probability, noise, layer
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if not self.training:
            return x
        return x * self.noise.kept(x, self.layer, self.probability) / (1 - self.probability)
