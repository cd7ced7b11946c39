"""What entropies and their ratios become at neural collapse.

At collapse the features of a class coincide and the class means, like the rows of the classifier, form a
simplex equiangular tight frame (ETF): C unit vectors with cosine −1/(C−1) between any two.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class CollapseValues(NamedTuple):
    """Values of a simplex ETF of C class directions, or of any class-balanced batch on it."""

    entropy: float
    """H(K) = ln(C−1), in nats; of features and of classifier alike."""
    hadamard_entropy: float
    """H(K∘K), in nats."""
    mutual_information: float
    """MI = 2 H(K) − H(K∘K), in nats."""
    mutual_information_ratio: float
    """MIR = MI / H(K); nan for two classes, where it is 0/0."""
    entropy_difference_ratio: float
    """HDR = 0; nan for two classes, where it is 0/0."""
    effective_rank: float
    """exp H(K) = C−1."""


def collapse_values(num_classes: int) -> CollapseValues:
    r"""Entropy, MI, MIR, HDR and effective rank of a simplex ETF of ``num_classes`` directions.

    The spectrum of K is C/(C−1), C−1 times, and 0. That of K∘K is C/(C−1) once (the constant direction) and
    :math:`1 - (C-1)^{-2}`, C−1 times. With natural logarithms

    .. math::
        H(K) = \ln(C-1), \quad
        H(K \circ K) = \tfrac{(2C-3)\ln(C-1) - (C-2)\ln(C-2)}{C-1}, \quad
        \mathrm{MIR} = \tfrac{1}{C-1} + \tfrac{(C-2)\ln(C-2)}{(C-1)\ln(C-1)}

    Collapse is not the maximum of MI: orthogonal class directions give MI = ln C and MIR = 1.

    Args:
        num_classes: C, at least 2. For C = 2 both entropies are 0, and MIR and HDR are 0/0: they are nan.

    Returns:
        The values, as Python floats.

    Raises:
        ValueError: ``num_classes`` is below 2; one class has no simplex.

    Source: Song et al., "Unveiling the Dynamics of Information Interplay in Supervised Learning" (2024).

    Example:
        >>> values = collapse_values(10)
        >>> round(values.entropy, 7), round(values.mutual_information, 7)
        (2.1972246, 2.0925285)
        >>> round(values.mutual_information_ratio, 10)
        0.9523507825
        >>> collapse_values(2).mutual_information_ratio
        nan
    """
    if num_classes < 2:
        raise ValueError(f"Expected `num_classes` to be at least 2, got {num_classes}.")
    if num_classes == 2:
        return CollapseValues(0.0, 0.0, 0.0, math.nan, math.nan, 1.0)
    c = num_classes
    entropy = math.log(c - 1)
    hadamard = ((2 * c - 3) * math.log(c - 1) - (c - 2) * math.log(c - 2)) / (c - 1)
    ratio = 1 / (c - 1) + (c - 2) * math.log(c - 2) / ((c - 1) * math.log(c - 1))
    return CollapseValues(entropy, hadamard, 2 * entropy - hadamard, ratio, 0.0, float(c - 1))
