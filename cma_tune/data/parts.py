"""Train, validation and test of the general sources: which parts there are, and those that are missing."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from cma_tune.data.dataset import SourceOptions
from cma_tune.data.few_shot import by_class
from cma_tune.data.splits import Item, Split, check_keys
from cma_tune.errors import UserError

_SPLIT_SEED = 0  # of our own stratified splits; part of what a split is, so never a flag
_ALSO_CALLED: dict[str, tuple[str, ...]] = {"train": (), "val": ("validation", "valid", "dev"), "test": ()}


def find_parts(options: SourceOptions, present: Collection[str], place: str) -> dict[str, str]:
    """What the source calls its parts: ``{"train" | "val" | "test": name}``, of those in `present`.

    Raises:
        UserError: a name that the user gave is not there, or two parts are given one name.
    """
    chosen = {"train": options.train_split, "val": options.val_split, "test": options.test_split}
    for part, name in chosen.items():
        if name != part and name not in present:
            raise UserError(
                f"Expected a part '{name}' in {place} for --source.{part}_split, "
                f"got {', '.join(sorted(present)) or 'none'}."
            )
    if len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"Expected three different parts of {place}, got train '{chosen['train']}', "
            f"val '{chosen['val']}' and test '{chosen['test']}'; "
            "leave out --source.val_split to have validation cut from train."
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


def find_published_parts(options: SourceOptions, present: Collection[str], place: str) -> dict[str, str]:
    """As `find_parts`, where train and test have to be there.

    Raises:
        UserError: one of them is not, or see `find_parts`.
    """
    found = find_parts(options, present, place)
    if not {"train", "test"} <= set(found):
        raise UserError(
            f"Expected parts {options.train_split} and {options.test_split} in {place}, "
            f"got {', '.join(present)}; name them with --source.train_split and --source.test_split."
        )
    return found


def complete(
    parts: Mapping[str, Sequence[Item]], class_names: Sequence[str], place: str
) -> tuple[Split, str]:
    """A split out of the parts a source has, and a sentence on where it comes from.

    Missing validation is a fifth of train; train alone is cut 50/20/30. Both are stratified and always the
    same.

    Raises:
        UserError: there are no images, one comes twice, or train or test is missing beside other parts.
    """
    check_keys(parts, place)
    names = tuple(class_names)
    train, val, test = (tuple(parts.get(part, ())) for part in ("train", "val", "test"))
    if not (train or val or test):
        raise UserError(f"Expected images in {place}, got none; check the path.")
    if train and val and test:
        return Split(train, val, test, names), f"the source's own train, val and test ({place})"
    if train and test:
        train, val = _cut_validation(train)
        origin = f"the source's own train and test, val a fifth of train ({place})"
        return Split(train, val, test, names), origin
    if train and val:
        raise UserError(
            f"Expected a test part in {place} beside train and val, got none; "
            "if the validation part is what to test on, name it with --source.test_split."
        )
    if val or test:
        others = " and ".join(part for part in ("val", "test") if parts.get(part))
        raise UserError(
            f"Expected a train part in {place} beside {others}, got none; name it with --source.train_split."
        )
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
