"""The few-shot picks of the literature, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from cma_tune.data.splits import Item, Split
from cma_tune.errors import UserError

VALIDATION_SHOTS = 4
"""The field's protocol keeps at most four validation images per class."""


def by_class(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Items grouped by label, groups in order of first appearance."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def _pick(items: Iterable[Item], shots: int, generator: random.Random) -> tuple[Item, ...]:
    picks: list[Item] = []
    for group in by_class(items).values():
        # A group that is too small is taken whole and draws nothing, as in the reference:
        # the generator's state, and so every later pick, depends on it.
        picks += generator.sample(group, shots) if len(group) >= shots else group
    return tuple(picks)


def few_shot_split(split: Split, shots: int, seed: int, allow_fewer: bool = False) -> Split:
    """Keep `shots` training and ``min(shots, 4)`` validation images per class; test stays whole.

    One generator seeded with `seed` draws train first, then validation (CoOp's ``generate_fewshot_dataset``;
    equal to the published index files for every seed from 0).

    Raises:
        UserError: a class has fewer training images than `shots` and `allow_fewer` is off, there are none at
            all, shots < 1 or seed < 0.
    """
    if shots < 1:
        raise UserError(f"Expected at least 1 shot, got {shots}; use zero-shot for none.")
    if seed < 0:  # Python's generator would silently give the picks of -seed
        raise UserError(f"Expected a seed of at least 0, got {seed}.")
    if not split.train:
        raise UserError(
            "Expected training images to pick shots from, got a dataset of test images alone; "
            "learn on another dataset and test on this one."
        )
    if not allow_fewer:
        groups = by_class(split.train)
        few = {
            split.class_names[label]: len(groups.get(label, []))
            for label in range(len(split.class_names))
            if len(groups.get(label, [])) < shots
        }
        if few:
            counts = ", ".join(f"{name} ({count})" for name, count in list(few.items())[:5])
            more = f" and {len(few) - 5} more classes" if len(few) > 5 else ""
            raise UserError(
                f"Expected at least {shots} training images per class, got fewer for {counts}{more}; "
                "use fewer shots, or --allow-fewer-shots to take all that such classes have."
            )
    generator = random.Random(seed)
    train = _pick(split.train, shots, generator)
    val = _pick(split.val, min(shots, VALIDATION_SHOTS), generator)
    return replace(split, train=train, val=val)
