"""Entropies of ragged groups of rows, batched.

The groups of a batch differ in size. They are sorted into *buckets* by size (2, 3-4, 5-8, ...), each padded
with zero rows to the largest group in it: a zero row adds a zero eigenvalue and nothing else, so padding is
exact. A bucket is then one batched problem, and a batch has a handful of them, however many classes it has.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cma_tune.metrics.entropy import eigenpairs, nonzero_shares, shannon, spectrum, unit_scale


class Bucket(NamedTuple):
    """Groups that are computed together."""

    groups: int
    """How many groups, K."""
    width: int
    """Rows of each, padding included, W."""


class Groups(NamedTuple):
    """Where each row goes. All tensors lie on the CPU."""

    classes: Tensor
    """Classes present, ascending, ``[K]``."""
    sizes: Tensor
    """Rows of each group without padding, in bucket order, ``[K]``."""
    slots: Tensor
    """Place of each row in the padded groups laid end to end, ``[rows]``."""
    owners: Tensor
    """Group of each row, as an index into ``sizes``, ``[rows]``."""
    buckets: list[Bucket]


def class_groups(labels: Tensor, texts_per_image: bool) -> Groups:
    """Plan the groups of a batch.

    The rows to be placed are the images, ``[B]``, followed by one text row for each class present, in
    ascending order, or, with ``texts_per_image``, one for each image.

    Args:
        labels: class of each image, ``[B]``, int64 on the CPU.
        texts_per_image: whether each image brings a text row of its own.

    Returns:
        The plan; without images it has no groups.
    """
    classes, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sizes = 2 * counts if texts_per_image else counts + 1
    if len(classes) == 0:
        return Groups(classes, sizes, labels, labels, [])

    # Bucket 1 holds the pairs, bucket 2 sizes 3-4, bucket 3 sizes 5-8: frexp's exponent is the bit length.
    bucket = torch.frexp((sizes - 1).double()).exponent.long()
    largest = sizes.new_zeros(64).scatter_reduce(0, bucket, sizes, "amax")
    order = bucket.argsort(stable=True)
    widths = largest[bucket[order]]
    starts = torch.empty_like(sizes)
    starts[order] = widths.cumsum(0) - widths

    # Position of an image among those of its class, from a stable sort by class.
    by_class = inverse.argsort(stable=True)
    first = counts.cumsum(0) - counts
    position = torch.empty_like(inverse)
    position[by_class] = torch.arange(len(inverse)) - first[inverse[by_class]]
    images = starts[inverse] + position
    texts = images + counts[inverse] if texts_per_image else starts + counts

    numbers = torch.bincount(bucket, minlength=64).tolist()
    buckets = [
        Bucket(number, width) for number, width in zip(numbers, largest.tolist(), strict=True) if number
    ]
    rank = order.argsort()
    owners = torch.cat([rank[inverse], rank[inverse] if texts_per_image else rank])
    return Groups(classes, sizes[order], torch.cat([images, texts]), owners, buckets)


def group_entropies(images: Tensor, texts: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Matrix entropy of each group's rows, scaled to unit norm.

    Args:
        images: ``[B, D]``, float32 or float64.
        texts: the text rows as planned, ``[T, D]``, of the same dtype.
        groups: from :func:`class_groups`, with at least one group.

    Returns:
        Entropies in nats and numbers of rows, both ``[K]`` in bucket order, of the dtype of ``images``.
    """
    sizes = groups.sizes.to(images, non_blocking=True)
    entropies: Tensor = _GroupEntropies.apply(images, texts, sizes, groups)
    return entropies, sizes


class _GroupEntropies(torch.autograd.Function):
    r"""All entropies, with a gradient worked out beside them.

    An entropy depends on the eigenvalues alone, so the eigenvectors V are needed but not differentiated. With
    respect to unit rows Y, K = YYᵀ = V diag(λ) Vᵀ, the gradient is −(2/n) (V diag(ln(λ/n)) Vᵀ + I) Y, the
    same for any V where eigenvalues repeat. Scaling to unit norm then takes away what lies along each row, I
    included. The forward pass has V at hand and does all this; the backward pass only weighs the result.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, sizes: Tensor, groups: Groups) -> Tensor:
        shares_of_rows = [len(images), len(texts)]
        slots = torch.split(groups.slots.to(images.device, non_blocking=True), shares_of_rows)
        lengths = [bucket.groups * bucket.width for bucket in groups.buckets]
        unit = images.new_zeros(sum(lengths), images.shape[1])
        unit.index_copy_(0, slots[0], images).index_copy_(0, slots[1], texts)
        scale = unit_scale(unit)
        unit *= scale

        with_gradient = any(ctx.needs_input_grad)
        entropies, gradients = [], []
        for bucket, block, scales, rows in zip(
            groups.buckets,
            torch.split(unit, lengths),
            torch.split(scale, lengths),
            torch.split(sizes, [bucket.groups for bucket in groups.buckets]),
            strict=True,
        ):
            block = block.view(bucket.groups, bucket.width, -1)
            entropy, gradient = _bucket_entropy(block, rows[:, None], with_gradient)
            entropies.append(entropy)
            if gradient is not None:
                gradients.append(gradient.flatten(0, 1).mul_(scales))
        if with_gradient:
            owners = torch.split(groups.owners.to(images.device, non_blocking=True), shares_of_rows)
            ctx.save_for_backward(torch.cat(gradients), *slots, *owners)
        return torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *places = ctx.saved_tensors
        images, texts = (
            gradient.index_select(0, slots).mul_(weights[0][owners, None]) if needed else None
            for slots, owners, needed in zip(places[:2], places[2:], ctx.needs_input_grad[:2], strict=True)
        )
        return images, texts, None, None


def _bucket_entropy(unit: Tensor, sizes: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Entropies ``[K]`` of unit, zero and padding rows ``[K, W, D]`` in groups of ``sizes`` ``[K, 1]``.

    With them, if asked for, their gradient with respect to ``unit``, less what lies along each row.
    """
    _, width, dims = unit.shape
    if width == 2:
        eigenvalues, vectors = _pair_eigenpairs(unit)
        shares = eigenvalues / sizes
        shares = shares.masked_fill(shares <= 0, 1.0)  # these are exact: no noise to cut off
    else:
        # The non-zero eigenvalues of both are the same; take the smaller.
        gram = unit @ unit.mT if width <= dims else unit.mT @ unit
        if not with_gradient:
            return shannon(nonzero_shares(spectrum(gram) / sizes)), None
        eigenvalues, vectors = eigenpairs(gram)
        shares = nonzero_shares(eigenvalues / sizes)
    entropy = shannon(shares)
    if not with_gradient:
        return entropy, None

    slopes = (-2 * shares.log() / sizes)[:, None]
    mixing = (vectors * slopes) @ vectors.mT
    if width <= dims:
        # Orthogonal to the rows already in the small matrix: ⟨(MY)ᵢ, Yᵢ⟩ is the diagonal of MYYᵀ.
        along = (vectors.square() * (slopes * eigenvalues[:, None])).sum(-1)
        mixing.diagonal(dim1=-2, dim2=-1).sub_(along)
        return entropy, mixing @ unit
    gradient = unit @ mixing
    return entropy, gradient.addcmul_(unit, torch.linalg.vecdot(gradient, unit)[..., None], value=-1)


def _pair_eigenpairs(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[K, 2]`` and eigenvectors ``[K, 2, 2]`` of pairs of unit (or zero) rows ``[K, 2, D]``.

    For two unit rows with cosine c they are 1±c along (1, ±1)/√2. As ‖a±b‖²/2 they keep their digits where c
    nears ∓1, and the entropy its gradient.
    """
    signs = pairs.new_tensor([[1.0, 1.0], [1.0, -1.0]])
    eigenvalues = 2 * (signs / 2 @ pairs).square().sum(-1)  # halving is exact: equal rows give 2 and 0
    # A zero row leaves one eigenvalue of 1, or none: pairs with 2, 1, 0 directions have the sums 2, 1, 0.
    directions = eigenvalues.sum(-1, keepdim=True).round()
    alone = torch.cat([directions, torch.zeros_like(directions)], dim=-1)
    return eigenvalues.where(directions == 2, alone), (signs * math.sqrt(0.5)).expand(len(pairs), 2, 2)
