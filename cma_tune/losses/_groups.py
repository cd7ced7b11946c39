"""Entropies of ragged groups of rows, batched.

The groups of a batch differ in size. They are sorted into *buckets* by size (2, 3-4, 5-8, ...), each padded
with zero rows to the largest group in it: a zero row adds a zero eigenvalue and nothing else, so padding is
exact. A bucket is then one batched problem, and a batch has a handful of them, however many classes it has.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cma_tune.metrics.entropy import shannon, spectrum, unit_rows


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
        return Groups(classes, sizes, labels, [])

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
    return Groups(classes, sizes[order], torch.cat([images, texts]), buckets)


def group_entropies(rows: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Matrix entropy of each group's rows, scaled to unit norm.

    Args:
        rows: as planned, ``[rows, D]``, float32 or float64.
        groups: from :func:`class_groups`, with at least one group.

    Returns:
        Entropies in nats and numbers of rows, both ``[K]`` in bucket order, of the dtype of ``rows``.
    """
    slots = groups.slots.to(rows.device, non_blocking=True)
    sizes = groups.sizes.to(rows, non_blocking=True)
    lengths = [bucket.groups * bucket.width for bucket in groups.buckets]
    padded = rows.new_zeros(sum(lengths), rows.shape[1]).index_copy(0, slots, unit_rows(rows))

    entropies = []
    blocks = torch.split(padded, lengths)
    parts = torch.split(sizes, [bucket.groups for bucket in groups.buckets])
    for bucket, block, part in zip(groups.buckets, blocks, parts, strict=True):
        block = block.view(bucket.groups, bucket.width, -1)
        entropies.append(_pair_entropy(block) if bucket.width == 2 else _block_entropy(block, part))
    return torch.cat(entropies), sizes


def _block_entropy(block: Tensor, sizes: Tensor) -> Tensor:
    """Entropy of unit (or zero) rows ``[K, W, D]``, K groups of ``sizes`` rows each, as ``[K]``."""
    _, width, dims = block.shape
    # The non-zero spectrum of both is the same; take the smaller.
    gram = block @ block.mT if width <= dims else block.mT @ block
    return shannon(spectrum(gram) / sizes[:, None])


def _pair_entropy(pairs: Tensor) -> Tensor:
    """Entropy of unit (or zero) rows ``[K, 2, D]`` in closed form, as ``[K]``.

    Two unit rows with cosine c have the shares (1±c)/2, which are ‖a±b‖²/4. Written so they keep their digits
    as c nears ±1, and the gradient goes to 0 there as it should: it holds the factor a∓b.
    """
    a, b = pairs.unbind(1)
    shares = torch.stack([(a + b).square().sum(-1), (a - b).square().sum(-1)], dim=-1) / 4
    # A zero row leaves one share of 1/2 or none, whichever way the other row points.
    directions = (pairs.detach() != 0).any(-1).sum(-1).to(pairs)
    return shannon(shares, floor=0.0).where(directions == 2, directions * (math.log(2) / 2))
