"""Train, validation and test of the general sources: which parts there are, and those that are missing."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from cma_tune.data.dataset import SourceOptions
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.few_shot import by_class
from cma_tune.data.splits import Item, Split, check_keys
from cma_tune.errors import UserError

_SPLIT_SEED = 0  # of our own stratified splits; part of what a split is, so never a flag
_ALSO_CALLED: dict[str, tuple[str, ...]] = {"train": (), "val": ("validation", "valid", "dev"), "test": ()}


MISSING = "parts missing"
"""Fault of a source without train, test or a part that was named."""


def find_parts(
    options: SourceOptions, present: Collection[str], place: str, complain: Complain = refuse
) -> dict[str, str]:
    """What the source calls its parts: ``{"train" | "val" | "test": name}``, of those in `present`.

    Raises:
        UserError: two parts are given one name, or a name that the user gave is not there (`complain` may go
            on without it).
    """
    chosen = {"train": options.train_split, "val": options.val_split, "test": options.test_split}
    for part, name in chosen.items():
        if name != part and name not in present:
            complain(
                MISSING,
                [f"'{name}' (there are: {', '.join(sorted(present)) or 'none'})"],
                f"Expected a part '{name}' in {place} for --source.{part}-split, "
                f"got {', '.join(sorted(present)) or 'none'}.",
            )
    if len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"Expected three different parts of {place}, got train '{chosen['train']}', "
            f"val '{chosen['val']}' and test '{chosen['test']}'; "
            "leave out --source.val-split to have validation cut from train."
        )
    found: dict[str, str] = {}
    for part in (
        "train",
        "test",
        "val",
    ):  # validation last: what is train or test already is not validation too
        names = [chosen[part], *(_ALSO_CALLED[part] if chosen[part] == part else ())]
        free = [name for name in names if name in present and name not in found.values()]
        if free:
            found[part] = free[0]
    return found


def find_published_parts(
    options: SourceOptions, present: Collection[str], place: str, complain: Complain = refuse
) -> dict[str, str]:
    """As `find_parts`, where train and test have to be there.

    Raises:
        UserError: one of them is not (`complain` may go on without it), or see `find_parts`.
    """
    found = find_parts(options, present, place, complain)
    if not {"train", "test"} <= set(found):
        complain(
            MISSING,
            [
                f"'{wanted}' (there are: {', '.join(present)})"
                for part, wanted in (("train", options.train_split), ("test", options.test_split))
                if part not in found
            ],
            f"Expected parts {options.train_split} and {options.test_split} in {place}, "
            f"got {', '.join(present)}; name them with --source.train-split and --source.test-split.",
        )
    return found


def complete(
    parts: Mapping[str, Sequence[Item]], class_names: Sequence[str], place: str, complain: Complain = refuse
) -> tuple[Split, str]:
    """A split out of the parts a source has, and a sentence on where it comes from.

    Missing validation is a fifth of every class of train, rounded, but one image at least where train keeps
    one; train alone is cut 50/20/30. Both are stratified and always the same.

    Raises:
        UserError: there are no images, one comes twice, or train or test is missing beside other parts
            (`complain` may go on with what is there).
    """
    check_keys(parts, place, complain)
    names = tuple(class_names)
    train, val, test = (tuple(parts.get(part, ())) for part in ("train", "val", "test"))
    if not (train or val or test):
        raise UserError(f"Expected images in {place}, got none; check the path.")
    if train and val and test:
        return Split(train, val, test, names), f"the source's own train, val and test ({place})"
    if train and test:
        whole = len(train)
        train, val = _cut_validation(train)
        cut = f"val {len(val):,} of train's {whole:,}, a rounded fifth of every class"
        return Split(train, val, test, names), f"the source's own train and test, {cut} ({place})"
    as_it_is = Split(train, val, test, names), f"the source's own parts ({place})"
    if train and val:
        complain(
            MISSING,
            ["test (there are: train, val)"],
            f"Expected a test part in {place} beside train and val, got none; "
            "if the validation part is what to test on, name it with --source.test-split.",
        )
        return as_it_is
    if val or test:
        others = [part for part in ("val", "test") if parts.get(part)]
        complain(
            MISSING,
            [f"train (there are: {', '.join(others)})"],
            f"Expected a train part in {place} beside {' and '.join(others)}, got none; "
            "name it with --source.train-split.",
        )
        return as_it_is
    train, val, test = _cut_in_three(train)
    return Split(train, val, test, names), f"our stratified 50/20/30 split of {place}"


def _shuffled_classes(items: Sequence[Item]) -> list[list[Item]]:
    generator = random.Random(_SPLIT_SEED)
    return [generator.sample(group, len(group)) for group in by_class(items).values()]


def _cut_validation(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Train and validation: a rounded fifth of every class, at least one image if train keeps one."""
    train: list[Item] = []
    val: list[Item] = []
    for group in _shuffled_classes(items):
        cut = min(max(1, _tenths(2, group)), len(group) - 1)
        val += group[:cut]
        train += group[cut:]
    return tuple(train), tuple(val)


def _cut_in_three(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...]]:
    """Train, validation and test, 50/20/30; of too few images train gets the first, test the second."""
    train: list[Item] = []
    val: list[Item] = []
    test: list[Item] = []
    for group in _shuffled_classes(items):
        tested = min(max(1, _tenths(3, group)), len(group) - 1)
        validated = min(max(1, _tenths(2, group)), len(group) - 1 - tested)
        test += group[:tested]
        val += group[tested : tested + validated]
        train += group[tested + validated :]
    return tuple(train), tuple(val), tuple(test)


def _tenths(tenths: int, group: Sequence[Item]) -> int:
    return (tenths * len(group) + 5) // 10
