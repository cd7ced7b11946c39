"""Class embeddings as a text tower's vocabulary, so that its LayerNorm and projection give them back."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup_table(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The embedding and the projection of a tower whose features are the rows.

    Args:
        rows: unit class embeddings ``[C, D]``.
        eps: of the LayerNorm between the two.

    Returns:
        Embedding ``[C + 1, 2·D]``, the last row for padding, and projection ``[D, 2·D]``.
    """
    features = rows.shape[1]
    # (√D·f, −√D·f) has mean 0 and variance 1, so LayerNorm only divides by √(1 + ε).
    table = torch.cat([rows, -rows], dim=1) * features**0.5
    projection = torch.eye(features, 2 * features) * ((1 + eps) / features) ** 0.5
    return torch.cat([table, torch.zeros(1, 2 * features)]), projection
