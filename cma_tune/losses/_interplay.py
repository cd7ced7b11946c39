"""The three entropies of features and the classifier rows of their labels, each from its smallest problem.

With unit feature rows F, n of them, unit classifier rows W of the C classes present, and class counts:

- H(G(f)): FFᵀ or FᵀF, whichever is smaller;
- H(G(V)): rows of one class are equal, so RWWᵀR/n with R = diag(√counts) has all non-zero eigenvalues;
- H(G(f)∘G(V)): n×n. (Its factors fᵢ⊗vᵢ have D·C columns, more than a batch has rows.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cma_tune.metrics.entropy import entropy_of_rows, nonzero_shares, shannon


def interplay_entropies(
    features: Tensor, rows: Tensor, classes: Tensor, counts: Tensor, alpha: float, joint: bool
) -> Tensor:
    """H(G(f)), H(G(V)) and, with ``joint``, H(G(f)∘G(V)).

    Args:
        features: unit rows, ``[N, D]``, float32 or float64, N at least 1.
        rows: unit classifier rows of the classes present, ``[C, D]``, of the same dtype.
        classes: class of each feature row, ``[N]``, an index into ``rows``.
        counts: feature rows of each class, ``[C]``, of the same dtype.
        alpha: order of Rényi's entropy.
        joint: whether the third is wanted; it costs more than the others together.

    Returns:
        Nats, ``[2]`` or ``[3]``.
    """
    if alpha == 1:
        entropies: Tensor = _Entropies.apply(features, rows, classes, counts, joint)
        return entropies
    n = len(features)
    roots = counts.sqrt()[:, None]
    gram, label_gram = features @ features.mT, rows @ rows.mT
    small = gram if n <= features.shape[1] else features.mT @ features
    problems = [small, roots * label_gram * roots.mT]
    if joint:
        problems.append(gram * _spread(label_gram, classes))
    return torch.stack([entropy_of_rows(problem, n, alpha) for problem in problems])


class _Entropies(torch.autograd.Function):
    r"""Von Neumann's entropies, from eigenvalues, with their gradient worked out.

    For S = K/n, dH/dK = −(ln S + I)/n, with the logarithm of a zero eigenvalue put to 0: rows have no
    component along its eigenvector. I contributes a multiple of each row to that row's own gradient, which
    scaling to unit norm, done outside, takes away, so it is left out. Eigenvectors are needed for ln S but
    not differentiated; ln S is the same for any choice of them where eigenvalues repeat.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rows: Tensor, classes: Tensor, counts: Tensor, joint: bool
    ) -> Tensor:
        n, dims = features.shape
        # LAPACK refuses what is not finite; a training loop is better served by a nan it can notice.
        poison = 0 * (features.sum() + rows.sum())
        features, rows = features.nan_to_num(), rows.nan_to_num()
        roots = counts.sqrt()[:, None]
        label_gram = rows @ rows.mT
        gram = features @ features.mT if joint or n <= dims else None
        small = gram if gram is not None and n <= dims else features.mT @ features
        problems = [small, roots * label_gram * roots.mT]
        spread = None
        if gram is not None and joint:
            spread = _spread(label_gram, classes)
            problems.append(gram * spread)
        if not any(ctx.needs_input_grad):
            shares = [nonzero_shares(torch.linalg.eigvalsh(problem) / n) for problem in problems]
            return torch.stack([shannon(one) for one in shares]) + poison

        ctx.joint = joint
        entropies, saved = [], [features, rows, classes, roots]
        for problem in problems:
            eigenvalues, vectors = torch.linalg.eigh(problem)
            shares_of_one = nonzero_shares(eigenvalues / n)
            entropies.append(shannon(shares_of_one))
            saved += [shares_of_one.log() + poison, vectors]
        if gram is not None and spread is not None:
            saved += [gram, spread]
        ctx.save_for_backward(*saved)
        return torch.stack(entropies) + poison

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        features, rows, classes, roots, *rest = ctx.saved_tensors
        n, dims = features.shape
        # ∂/∂F of a function of FFᵀ is twice its gradient times F, hence the 2; each weight rides along.
        slopes = [weight * logs for weight, logs in zip(-2 / n * weights[0], rest[:6:2], strict=False)]
        logs = [(vectors * slope) @ vectors.mT for slope, vectors in zip(slopes, rest[1:6:2], strict=False)]
        of_features, of_labels = logs[0], roots * logs[1] * roots.mT
        mixing = of_features if n <= dims else None
        if ctx.joint:
            of_joint, (gram, spread) = logs[2], rest[6:]
            of_labels = of_labels + _collapse(of_joint * gram, classes, len(rows))
            of_gram = of_joint * spread
            mixing = of_gram if mixing is None else of_gram.add_(mixing)
        for_features = for_rows = None
        if ctx.needs_input_grad[0]:
            for_features = torch.zeros_like(features) if mixing is None else mixing @ features
            if n > dims:
                for_features = for_features.addmm_(features, of_features)
        if ctx.needs_input_grad[1]:
            for_rows = of_labels @ rows
        return for_features, for_rows, None, None, None


def _spread(label_gram: Tensor, classes: Tensor) -> Tensor:
    """``[C, C]`` to ``[N, N]``: entry of the classes of each pair of rows."""
    return label_gram.index_select(0, classes).index_select(1, classes)


def _collapse(pairs: Tensor, classes: Tensor, number: int) -> Tensor:
    """``[N, N]`` to ``[C, C]``: sums over the pairs of rows of each pair of classes."""
    by_class = pairs.new_zeros(number, len(pairs)).index_add_(0, classes, pairs)
    return pairs.new_zeros(number, number).index_add_(1, classes, by_class)
