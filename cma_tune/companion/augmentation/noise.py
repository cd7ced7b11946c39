"""Random numbers as a function of where they are used: no generator, no state, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from cma_tune.data.images import generator_seed

_STRIDE = 0x9E3779B97F4A7C15 - 2**64  # odd, near 2⁶⁴/φ: multiples of it are spread evenly
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bit of the input changes half of all."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def uniforms(seed: int, step: int, slots: Tensor, stream: int, count: int) -> Tensor:
    """`count` uniform numbers for every slot.

    Args:
        seed: of the run.
        step: of the training.
        slots: places in the global batch, ``[B]``, int64.
        stream: which use of a slot it is for; different streams are independent.
        count: numbers a slot.

    Returns:
        ``[B, count]``, float64, in [0, 1); rows depend on (seed, step, slot, stream) alone.
    """
    key = generator_seed("noise", seed, step, stream)
    rows = _mix(slots * _STRIDE + key)
    draws = torch.arange(1, count + 1, device=slots.device) * _STRIDE
    return _shift(_mix(rows[:, None] + draws), 11).double() * 2.0**-53
