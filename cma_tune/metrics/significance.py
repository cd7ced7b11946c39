"""Paired tests between two methods: over seeds or datasets, and over the images of one test list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TIE = 1e-12
"""Figures that differ by less, of their size, are the same."""


@dataclass(frozen=True)
class PairedT:
    """A paired t-test.

    Attributes:
        difference: mean of second − first, in the unit of the values.
        t: statistic; infinite where all differences are the same and not 0, nan where all are 0.
        p: two-sided; nan where t is.
        degrees: of freedom.
    """

    difference: float
    t: float
    p: float
    degrees: int


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> PairedT | None:
    """Student's paired t-test of the mean of second − first against 0.

    Args:
        first: one figure a seed (or a dataset).
        second: as many, of the same seeds in the same order.

    Returns:
        The test, or None for fewer than two pairs, which have no spread.

    Raises:
        ValueError: there are not as many of both.

    Example:
        >>> round(paired_t_test([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).p, 4)
        0.0742
    """
    differences = _differences(first, second)
    count = len(differences)
    if count < 2:
        return None
    mean = math.fsum(differences) / count
    variance = math.fsum((one - mean) ** 2 for one in differences) / (count - 1)
    if variance == 0 and mean == 0:  # 0/0: without any difference there is no spread to measure one by
        return PairedT(mean, math.nan, math.nan, count - 1)
    t = math.copysign(math.inf, mean) if variance == 0 else mean / math.sqrt(variance / count)
    return PairedT(mean, t, student_t_p(t, count - 1), count - 1)


def student_t_p(t: float, degrees: int) -> float:
    """Two-sided p of Student's t, from its finite series for whole degrees of freedom.

    With θ = arctan(t/√ν), the probability of a smaller |t| is a polynomial in sin θ and cos θ, plus 2θ/π
    where ν is odd (Abramowitz and Stegun, 26.7.3 and 26.7.4). Absolute error around 1e-15.

    Args:
        t: statistic.
        degrees: ν, at least 1.

    Raises:
        ValueError: ν is below 1.
    """
    if degrees < 1:
        raise ValueError(f"Expected at least 1 degree of freedom, got {degrees}.")
    theta = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (power - 1) / power
    within = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - within))


def sign_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of the exact sign test: how often second is above first, against a fair coin.

    Args:
        first: one figure a seed (or a dataset).
        second: as many, of the same seeds in the same order.

    Returns:
        p; 1 without any difference, since ties (to rounding) are dropped. With n pairs it is never below
        2^(1−n): 0.25 for three seeds.

    Raises:
        ValueError: there are not as many of both.
    """
    differences = _differences(first, second)
    return fair_coin_p(sum(one > 0 for one in differences), sum(one < 0 for one in differences))


def fair_coin_p(heads: int, tails: int) -> float:
    """Two-sided exact p of so many heads and tails: 2·P(X ≤ the fewer), X binomial with p = ½, at most 1.

    Example:
        >>> fair_coin_p(1, 5)
        0.21875
    """
    count, fewer = heads + tails, min(heads, tails)
    if heads == tails:
        return 1.0
    # Logarithms: for 50,000 images 2^−n is far below what a float holds. The last term is the largest.
    logs = [_log_choose(count, k) for k in range(fewer + 1)]
    tail = math.fsum(math.exp(one - logs[-1]) for one in logs)
    return min(1.0, math.exp(math.log(2) + logs[-1] - count * math.log(2)) * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True)
class ImageTest:
    """Two methods on the same images.

    Attributes:
        images: how many.
        first_only: images that the first alone gets right.
        second_only: images that the second alone gets right.
        difference: accuracy of second − first, in points.
        p: two-sided, of McNemar's exact test.
        low, high: 95 % bootstrap interval of the difference, in points.
    """

    images: int
    first_only: int
    second_only: int
    difference: float
    p: float
    low: float
    high: float


def image_test(first: Tensor, second: Tensor, samples: int = 10_000, seed: int = 0) -> ImageTest:
    """McNemar's exact test and a paired bootstrap over the images of a test list.

    Only images that one method gets right and the other does not tell anything: under the null hypothesis
    each of them is a fair coin (McNemar, 1947). The bootstrap draws as many images with replacement; the
    difference depends on the numbers of the two kinds alone, which are multinomial, so these are drawn.

    Args:
        first: whether the first method is right, ``[N]``, bool.
        second: of the same images in the same order, ``[N]``, bool.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: not two bool vectors of the same length, N above 0.
    """
    for tensor in (first, second):
        if tensor.dtype != torch.bool or tensor.shape != first.shape or tensor.ndim != 1 or not len(tensor):
            raise ValueError(
                "Expected two bool vectors [N] of the same length, N above 0, got "
                f"{first.dtype} {list(first.shape)} and {second.dtype} {list(second.shape)}."
            )
    images = len(first)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    generator = torch.Generator().manual_seed(seed)
    total = torch.full((samples,), float(images), dtype=torch.float64)
    wins = torch.binomial(total, torch.full_like(total, won / images), generator=generator)
    # Given the wins, each of the other draws is a loss with the share of losses among the rest.
    share = lost / (images - won) if images > won else 0.0
    losses = torch.binomial(total - wins, torch.full_like(total, share), generator=generator)
    differences = (100.0 / images) * (wins - losses)
    low, high = torch.quantile(differences, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return ImageTest(images, lost, won, 100.0 * (won - lost) / images, fair_coin_p(lost, won), low, high)


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    if len(first) != len(second):
        raise ValueError(f"Expected as many figures of both, got {len(first)} and {len(second)}.")
    pairs = list(zip(first, second, strict=True))
    # Means of the same figures in another order differ by their rounding, which is nobody's win.
    return [0.0 if math.isclose(*pair, rel_tol=_TIE) else pair[1] - pair[0] for pair in pairs]
