"""FlexMatch (Zhang et al. 2021): FixMatch with a lower threshold for classes that are still learned badly."""

from __future__ import annotations

import torch
from torch import Tensor

from cma_tune.companion.algorithms.fixmatch import FixMatch


class FlexMatch(FixMatch):
    """Confident means max q ≥ τ·β_c/(2−β_c) for c = argmax q.

    β_c = n_c / max(max n, n_unused): n_c counts the images whose last prediction at or above τ was c,
    n_unused those that never had one. At first none has, every threshold is 0, and all images count.

    Args:
        classes, pool, unlabelled_weight, threshold: see `FixMatch`.
    """

    name = "flexmatch"
    selected: Tensor
    """Last confident prediction of every image, ``[pool]``; −1 where there was none."""

    def __init__(
        self, classes: int, pool: int, unlabelled_weight: float = 1.0, threshold: float = 0.95
    ) -> None:
        super().__init__(classes, pool, unlabelled_weight, threshold)
        self.register_buffer("selected", torch.full((pool,), -1))

    def confident(self, largest: Tensor, pseudo_labels: Tensor, indices: Tensor) -> Tensor:
        """See `FixMatch`; also remembers the predictions at or above τ."""
        learned = self.learned()[pseudo_labels]
        mask = largest >= self.threshold * learned / (2 - learned)
        self._remember(pseudo_labels, indices, largest >= self.threshold)
        return mask

    def learned(self) -> Tensor:
        """β, how well each class is learned, ``[C]``, from 0 to 1."""
        counts = torch.bincount(self.selected + 1, minlength=self.classes + 1).double()
        # The unused images among the counts are FlexMatch's warm-up.
        return (counts[1:] / counts.max()).float()

    def _remember(self, pseudo_labels: Tensor, indices: Tensor, sure: Tensor) -> None:
        places = torch.arange(len(indices), device=indices.device)
        rows, where = places[sure], indices[sure]
        # An image may come twice in a batch; the last row decides, on any device.
        last = torch.full_like(self.selected, -1).scatter_reduce(0, where, rows, "amax")
        rows = rows[last[where] == rows]
        self.selected[indices[rows]] = pseudo_labels[rows]
