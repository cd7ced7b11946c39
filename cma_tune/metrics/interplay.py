"""How two representations of the same rows relate: matrix mutual information and entropy difference.

Source: Song, Tan, Zou, Ma and Huang, "Unveiling the Dynamics of Information Interplay in Supervised Learning"
(2024). MIR and HDR there compare class-wise features with the classifier's weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cma_tune.metrics.entropy import at_least_float32, autocast_off, check_gram, matrix_entropy


def mutual_information(k1: Tensor, k2: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Matrix mutual information :math:`I(K_1; K_2) = H(K_1) + H(K_2) - H(K_1 \circ K_2)`.

    :math:`\circ` is the entrywise product. For ``alpha=1`` it lies between 0 and min(H(K1), H(K2)); for other
    orders it can be slightly negative.

    Args:
        k1: Gram matrix with unit diagonal, ``[..., N, N]``.
        k2: Gram matrix of other features of the same rows, same shape.
        alpha: order of Rényi's entropy, finite and above 0.

    Returns:
        Nats, ``[...]``.

    Raises:
        ValueError: a matrix is not square or not floating point, or the shapes differ.

    Example:
        >>> round(mutual_information(torch.eye(3), torch.eye(3)).item(), 4)  # ln 3
        1.0986
        >>> round(mutual_information(torch.eye(3), torch.ones(3, 3)).item(), 4)
        0.0
    """
    h1, h2, joint = _entropies(k1, k2, alpha)
    return h1 + h2 - joint


def mutual_information_ratio(k1: Tensor, k2: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Matrix mutual information ratio, MIR :math:`= I(K_1; K_2) / \min(H(K_1), H(K_2))`.

    Small batches bias it upward: report N beside it.

    Args:
        k1: Gram matrix with unit diagonal, ``[..., N, N]``.
        k2: Gram matrix of other features of the same rows, same shape.
        alpha: order of Rényi's entropy, finite and above 0.

    Returns:
        ``[...]``, between 0 and 1 for ``alpha=1``; nan (0/0) where the smaller entropy is 0, as for a single
        row or identical ones.

    Raises:
        ValueError: as :func:`mutual_information`.

    Example:
        >>> round(mutual_information_ratio(torch.eye(3), torch.eye(3)).item(), 4)
        1.0
    """
    h1, h2, joint = _entropies(k1, k2, alpha)
    return entropy_ratio(h1 + h2 - joint, torch.minimum(h1, h2))


def entropy_difference_ratio(k1: Tensor, k2: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Matrix entropy difference ratio, HDR :math:`= |H(K_1) - H(K_2)| / \max(H(K_1), H(K_2))`.

    Its gradient at equal entropies is taken as 0 (a subgradient).

    Args:
        k1: Gram matrix with unit diagonal, ``[..., N, N]``.
        k2: Gram matrix with unit diagonal, ``[..., M, M]`` with the same leading dimensions; it need not
            describe the same rows.
        alpha: order of Rényi's entropy, finite and above 0.

    Returns:
        ``[...]``, between 0 and 1; nan (0/0) where both entropies are 0.

    Raises:
        ValueError: a matrix is not square or not floating point, or the leading dimensions differ.

    Example:
        >>> round(entropy_difference_ratio(torch.eye(4), torch.eye(2)).item(), 4)  # (ln 4 − ln 2) / ln 4
        0.5
    """
    check_gram(k1, "k1")
    check_gram(k2, "k2")
    if k1.shape[:-2] != k2.shape[:-2]:
        raise ValueError(
            "Expected `k1` and `k2` to have the same leading dimensions, "
            f"got shapes {list(k1.shape)} and {list(k2.shape)}."
        )
    h1, h2 = matrix_entropy(k1, alpha), matrix_entropy(k2, alpha)
    return entropy_ratio((h1 - h2).abs(), torch.maximum(h1, h2))


def _entropies(k1: Tensor, k2: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    check_gram(k1, "k1")
    check_gram(k2, "k2")
    if k1.shape != k2.shape:
        raise ValueError(
            f"Expected `k1` and `k2` of the same shape, got {list(k1.shape)} and {list(k2.shape)}."
        )
    with autocast_off(k1):
        # In half precision the product itself would already be rounded.
        joint = at_least_float32(k1) * at_least_float32(k2)
    return matrix_entropy(k1, alpha), matrix_entropy(k2, alpha), matrix_entropy(joint, alpha)


def entropy_ratio(numerator: Tensor, entropy: Tensor) -> Tensor:
    """Of entropies, nan where the lower one is 0. Shared by the metrics, and not a public name."""
    # Identical rows give an entropy of rounding noise, not an exact 0; its ratio would look like a result.
    noise = 64 * torch.finfo(entropy.dtype).eps
    undefined = entropy <= noise
    return (numerator / entropy.masked_fill(undefined, 1.0)).masked_fill(undefined, math.nan)
