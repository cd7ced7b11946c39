"""From what a source calls its classes to labels from 0 and their class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from cma_tune.data.faults import Complain, refuse
from cma_tune.errors import UserError

UNKNOWN = "labels that are no class names"
"""Fault of a source whose labels a file of class names does not have."""


def read_class_names(path: Path) -> list[str]:
    """Read a file of class names, one a line, in label order; empty lines don't count.

    Raises:
        UserError: the file is missing, is not text, or is empty.
    """
    path = path.expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"Expected a file of class names, one a line, at {path}, but there is none; name another."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Expected a file of class names in UTF-8, one a line, at {path}, but it can't be read ({error})."
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"Expected class names, one a line, in {path}, got an empty file.")
    return names


def labels_of_texts(
    values: Iterable[str], class_names: Path | None, place: str, complain: Complain = refuse
) -> tuple[list[str], dict[str, int]]:
    """Class names in label order, and the label of every value.

    Without a file the distinct values are the names, sorted (as numbers, if all of them are). With one,
    values are matched by name if all of them are in the file, else by number from 0 if all are numbers.

    Args:
        values: what the source calls its classes.
        class_names: file of class names.
        place: the source, for messages.

    Raises:
        UserError: values and class names do not match (`complain` may go on with the values that do).
    """
    distinct = set(values)
    if class_names is None:
        names = sorted(
            distinct, key=lambda value: (int(value), value) if _all_whole(distinct) else (0, value)
        )
        return names, {value: label for label, value in enumerate(names)}
    names = read_class_names(class_names)
    if distinct <= set(names):
        return names, _by_name(names, distinct, class_names)
    if _all_whole(distinct):
        matched = {value: int(value) for value in distinct if int(value) < len(names)}
        outside = sorted(distinct - set(matched), key=int)
        if not outside:
            return names, matched
    else:
        outside = sorted(distinct - set(names))
        matched = {name: label for label, name in enumerate(names) if name in distinct}
    shown = ", ".join(f"'{value}'" for value in outside[:3])
    complain(
        UNKNOWN,
        [f"'{value}'" for value in outside],
        f"Expected labels of {place} to be among the {len(names)} class names in {class_names} "
        f"(or all of them numbers from 0 to {len(names) - 1}), got {len(outside)} that are not "
        f"(first: {shown}); mend the labels or the class names.",
    )
    return names, matched


def labels_of_numbers(
    own_names: Sequence[str], class_names: Path | None, place: str
) -> tuple[list[str], list[int]]:
    """Class names in label order, and the label for every number of a source whose numbers have names.

    A file of class names either holds all of the source's names, whose order it then decides, or is as long
    as they are, and then gives other names to the same numbers.

    Args:
        own_names: the source's name for number 0, 1, …
        class_names: file of class names.
        place: the source, for messages.

    Raises:
        UserError: the file does neither.
    """
    if class_names is None:
        return list(own_names), list(range(len(own_names)))
    names = read_class_names(class_names)
    if set(own_names) <= set(names):
        label_of = _by_name(names, own_names, class_names)
        return names, [label_of[name] for name in own_names]
    if len(names) == len(own_names):
        return names, list(range(len(names)))
    raise UserError(
        f"Expected {len(own_names)} class names for {place} in {class_names}, or all of its own names "
        f"(such as '{own_names[0]}'), got {len(names)} others; mend the class names."
    )


def _by_name(names: Sequence[str], wanted: Collection[str], path: Path) -> dict[str, int]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1 and name in wanted)
    if twice:
        raise UserError(
            f"Expected every class name that labels are matched by once in {path}, "
            f"got '{twice[0]}' more than once; use numbers as labels or tell the names apart."
        )
    return {name: label for label, name in enumerate(names) if name in wanted}


def _all_whole(values: Iterable[str]) -> bool:
    return all(value.isascii() and value.isdigit() for value in values)
