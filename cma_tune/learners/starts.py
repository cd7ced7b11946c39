"""Random starts that depend on the seed alone, on neither the device nor what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Modules made inside get torch's default start on the CPU, drawn from `seed`.

    The global generator is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def normal_start(shape: tuple[int, ...], seed: int, what: str = "") -> Tensor:
    """Prompt vectors from N(0, 0.02²), the usual start, float32 on the CPU.

    Args:
        shape: of all vectors.
        seed: of the draw.
        what: names that are not the same draw other numbers from one seed.
    """
    if what:
        seed = int.from_bytes(hashlib.sha256(f"{what} {seed}".encode()).digest()[:4], "big")
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
