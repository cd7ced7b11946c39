"""Matrix entropy of a set of embeddings, and what follows from it.

Every entropy is in nats and comes from eigenvalues alone: eigenvectors of a Gram matrix are not unique where
eigenvalues repeat, so nothing here differentiates them, and features can be differentiated once, not twice.
Half-precision inputs are computed in float32 and float64 stays float64, whatever autocast says.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Eigenvalues come with rounding of about one unit in the last place of the largest; below this share of the
# trace they are noise around zero, whose logarithm would be noise in the gradient too.
_FLOOR = {torch.float32: 1e-7, torch.float64: 1e-14}


def gram_matrix(features: Tensor) -> Tensor:
    r"""Gram matrix of the rows scaled to unit norm: :math:`K_{ij} = \cos(f_i, f_j)`.

    A zero row has no direction: its row and column of the result are 0 (the diagonal too), and no gradient
    reaches it. Rows whose norm is below the square root of the smallest normal number count as zero.

    Args:
        features: rows to compare, ``[..., N, D]``, floating point.

    Returns:
        ``[..., N, N]``, in float32 at least.

    Raises:
        ValueError: ``features`` is not a floating-point tensor of two or more dimensions.

    Example:
        >>> gram_matrix(torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0]]))
        tensor([[1., 0., 1.],
                [0., 1., 0.],
                [1., 0., 1.]])
    """
    _check_matrix(features, "features", "[..., N, D]")
    with autocast_off(features):
        unit = unit_rows(features)
        return unit @ unit.mT


def matrix_entropy(gram: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Matrix entropy of a Gram matrix with unit diagonal.

    .. math::
        H_1(K) = -\sum_i \tfrac{\lambda_i}{N} \ln \tfrac{\lambda_i}{N}, \qquad
        H_\alpha(K) = \tfrac{1}{1-\alpha} \ln \sum_i \bigl(\tfrac{\lambda_i}{N}\bigr)^\alpha

    with :math:`\lambda_i` the eigenvalues of ``gram``. ``alpha=1`` is von Neumann's entropy (the limit),
    ``alpha=2`` needs no eigenvalues: :math:`2\ln N - \ln\lVert K\rVert_F^2`. It is 0 for identical rows and
    :math:`\ln N` for orthonormal ones. A matrix of zeros, or an empty one, has entropy 0. Where ``gram`` is
    singular, the gradient along its null space is 0; the gradient with respect to *features* is then exact,
    because features have no component there.

    Args:
        gram: positive semi-definite, ``[..., N, N]``, its diagonal 1 (of which only the symmetric part is
            read).
        alpha: order of Rényi's entropy, finite and above 0.

    Returns:
        Entropy in nats, ``[...]``, between 0 and ln N; nan where ``gram`` holds a non-finite value. Zero rows
        leave shares that sum to less than 1; then an order above 1 can exceed ln N.

    Raises:
        ValueError: ``gram`` is not square or not floating point, or ``alpha`` is not finite and positive.

    Source: Rényi's matrix entropy after Sánchez Giraldo, Rao and Príncipe, "Measures of entropy from data
    using infinitely divisible kernels" (2014).

    Example:
        >>> round(matrix_entropy(torch.eye(4)).item(), 4)  # ln 4
        1.3863
        >>> matrix_entropy(torch.ones(4, 4), alpha=2.0).item()
        0.0
    """
    check_gram(gram, "gram")
    check_alpha(alpha)
    with autocast_off(gram):
        gram = at_least_float32(gram)
        gram = (gram + gram.mT) / 2
        return entropy_of_rows(gram, gram.shape[-1], alpha)


def feature_entropy(features: Tensor, alpha: float = 1.0) -> Tensor:
    r"""``matrix_entropy(gram_matrix(features), alpha)`` from the smaller of the N×N and the D×D problem.

    :math:`FF^\top` and :math:`F^\top F` have the same non-zero eigenvalues, so more rows than dimensions cost
    only a D×D problem.

    Args:
        features: rows, ``[..., N, D]``, floating point; scaled to unit norm here.
        alpha: order of Rényi's entropy, finite and above 0.

    Returns:
        Entropy in nats, ``[...]``, between 0 and ln min(N, D).

    Raises:
        ValueError: ``features`` is not a floating-point tensor of two or more dimensions, or ``alpha`` is not
            finite and positive.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
        >>> round(feature_entropy(rows).item(), 4)  # ln 2
        0.6931
    """
    _check_matrix(features, "features", "[..., N, D]")
    check_alpha(alpha)
    with autocast_off(features):
        unit = unit_rows(features)
        rows, dims = unit.shape[-2:]
        small = unit @ unit.mT if rows <= dims else unit.mT @ unit
        return entropy_of_rows(small, rows, alpha)


def effective_rank(gram: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Effective rank :math:`\exp H_\alpha(K)`: how many orthogonal directions would have this entropy.

    Args:
        gram: positive semi-definite with unit diagonal, ``[..., N, N]``.
        alpha: order of Rényi's entropy, finite and above 0.

    Returns:
        ``[...]``, between 1 and N.

    Raises:
        ValueError: as :func:`matrix_entropy`.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (2007).

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 4)
        4.0
    """
    return matrix_entropy(gram, alpha).exp()


# The rest is shared by the metrics and losses of this package and is not part of its public names.


def unit_rows(features: Tensor) -> Tensor:
    """Rows of ``[..., N, D]`` scaled to unit norm, in float32 at least; zero rows stay zero.

    Dividing by a clamped norm would give a zero row a gradient of about 1/clamp; here it gets none.
    """
    unit: Tensor = _UnitRows.apply(at_least_float32(features))
    return unit


def unit_scale(features: Tensor) -> Tensor:
    """1/‖row‖ of ``[..., N, D]``, as ``[..., N, 1]``; 0 for zero rows."""
    norm: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    # Below this the squares inside the norm underflow, and its value means nothing.
    return norm.reciprocal().masked_fill(norm < torch.finfo(norm.dtype).tiny ** 0.5, 0.0)


def spectrum(gram: Tensor) -> Tensor:
    """Eigenvalues of symmetric ``[..., N, N]``, as ``[..., N]``; nan where a matrix is not finite."""
    finite, gram = _finite(gram)
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.where(finite, math.nan)


def eigenpairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`spectrum` with eigenvectors as columns, ``[..., N, N]``; not to be differentiated."""
    finite, gram = _finite(gram)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    return eigenvalues.where(finite, math.nan), vectors


def nonzero_shares(shares: Tensor) -> Tensor:
    """Shares of a spectrum with those that are rounding noise put to 1: ln 1 = 0 stands in for 0 ln 0."""
    return shares.masked_fill(shares <= _FLOOR[shares.dtype], 1.0)  # this way round a nan passes


def shannon(shares: Tensor) -> Tensor:
    """−Σ p ln p over the last dimension, for shares above 0."""
    return 0.0 - (shares * shares.log()).sum(-1)  # and not −x, which would turn 0 into −0


def autocast_off(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Context in which autocast leaves the precision of ``tensor``'s device alone."""
    return torch.autocast(tensor.device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_gram(gram: Tensor, name: str) -> None:
    """Refuse what is not a floating-point tensor of square matrices."""
    _check_matrix(gram, name, "[..., N, N]")
    if gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"Expected `{name}` to be square, [..., N, N], got shape {list(gram.shape)}.")


class _UnitRows(torch.autograd.Function):
    """x/‖x‖ with its gradient (g − y⟨g, y⟩)/‖x‖: half the passes over ``[N, D]`` that autograd would make."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        scale = unit_scale(features)
        unit = features * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        unit, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(gradients[0], unit)[..., None]
        return torch.addcmul(gradients[0], unit, along, value=-1).mul_(scale)


def _finite(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are finite, ``[..., 1]``, and ``gram`` with the others put to 0.

    LAPACK refuses a whole batch for one non-finite entry; a training loop is better served by a nan it can
    name the step of.
    """
    finite = gram.isfinite().all(-1).all(-1)[..., None]
    return finite, gram.where(finite[..., None], 0.0)


def _check_matrix(tensor: Tensor, name: str, shape: str) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"Expected `{name}` to be floating point, got {tensor.dtype}.")
    if tensor.ndim < 2:
        raise ValueError(f"Expected `{name}` of shape {shape}, got shape {list(tensor.shape)}.")


def check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"Expected `alpha` to be finite and above 0, got {alpha}.")


def entropy_of_rows(gram: Tensor, rows: int, alpha: float) -> Tensor:
    """Entropy of ``gram / rows``; ``gram`` may also be the D×D matrix with the same non-zero spectrum."""
    if rows == 0:
        return gram.sum((-1, -2))  # nothing to sum: 0, on the graph
    if alpha == 2:
        # Not Σp² but the sum of squares of the entries of K/N, which is the same.
        return _log_of_sum((gram / rows).square().sum((-1, -2)), alpha)
    shares = spectrum(gram) / rows
    if alpha == 1:
        return shannon(nonzero_shares(shares))
    noise = shares <= _FLOOR[shares.dtype]
    return _log_of_sum((shares.masked_fill(noise, 1.0) ** alpha).masked_fill(noise, 0.0).sum(-1), alpha)


def _log_of_sum(total: Tensor, alpha: float) -> Tensor:
    # Only a matrix of zeros has no share above 0; it gets entropy 0 and no gradient, as for alpha = 1.
    entropy = total.masked_fill(total == 0, 1.0).log() / (1 - alpha) + 0.0  # −0 becomes 0
    return entropy.where(total.isfinite(), math.nan)
