"""Which words the tokens of a learned context are near to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cma_tune.errors import UserError
from cma_tune.learners.base import Learner
from cma_tune.learners.coop import ContextLearner


def check_context(card: Mapping[str, Any]) -> None:
    """Raise a `UserError` if the method of a card learns no context."""
    if "context" not in card:
        raise UserError(f"Expected a learned context, got a '{card['learner']}', which has none.")


def nearest_words(learner: Learner, count: int = 5) -> list[list[tuple[str, float]]]:
    """For every context token, the vocabulary's words at the smallest Euclidean distance (CoOp, table 4).

    Words whose embedding is zero are left out: the backbone never saw them.

    Args:
        learner: its context may be shared or class-specific; of the latter the mean over classes is taken.
        count: words per token, at most.

    Returns:
        One list per context token of (word, distance), nearest first.

    Raises:
        UserError: `count` is below 1, or the method learns no context.
    """
    check_context({"learner": learner.name, **learner.describe()})
    assert isinstance(learner, ContextLearner)
    if count < 1:
        raise UserError(f"Expected at least 1 word per context token, got {count}.")
    backbone = learner.backbone
    context = learner.context.detach().float()
    if context.dim() == 3:
        context = context.mean(dim=0)
    tower = backbone.tower
    vocabulary = tower.vocabulary().float()  # [V, W]
    # By differences: from dot products, as cdist does by default here, a distance of 0 comes out as 1e-3.
    distances = torch.cdist(context, vocabulary, compute_mode="donot_use_mm_for_euclid_dist")  # [M, V]
    seen = (vocabulary != 0).any(dim=-1)
    distances[:, ~seen] = torch.inf
    values, ids = distances.topk(min(count, int(seen.sum())), dim=-1, largest=False)
    return [
        [(backbone.tokenizer.decode([int(i)]), float(v)) for i, v in zip(row_ids, row_values, strict=True)]
        for row_ids, row_values in zip(ids, values, strict=True)
    ]
