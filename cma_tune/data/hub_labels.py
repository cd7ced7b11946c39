"""From what a Hub repository calls a dataset's classes to the literature's labels, by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cma_tune.data.class_names import class_names, wnids
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.labels import read_class_names
from cma_tune.errors import UserError

ALIASES: dict[str, dict[str, str]] = {
    "caltech101": {
        "airplanes": "airplane",
        "faces": "face",
        "leopards": "leopard",
        "motorbikes": "motorbike",
    },
    "eurosat": {
        "annualcrop": "Annual Crop Land",
        "herbaceousvegetation": "Herbaceous Vegetation Land",
        "highway": "Highway or Road",
        "industrial": "Industrial Buildings",
        "pasture": "Pasture Land",
        "permanentcrop": "Permanent Crop Land",
        "residential": "Residential Buildings",
        "sealake": "Sea or Lake",
    },
}
"""Names that are not the literature's in another spelling; keys are folded."""

NO_CLASS: dict[str, frozenset[str]] = {"caltech101": frozenset({"backgroundgoogle", "faceseasy"})}
"""Classes that the literature leaves out; folded."""

NUMBERED = ("oxford_flowers", "imagenet")
"""Datasets whose official numbers are the literature's labels, from 0 or from 1."""


def folded(name: str) -> str:
    """Lower case, letters and digits alone: ``Apply_Eye_Makeup`` and ``ApplyEyeMakeup`` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def sorted_words(name: str) -> str:
    """Words in lower case, sorted: the year of a car and the side of a building may stand anywhere."""
    return " ".join(sorted(re.findall(r"[a-z0-9]+", name.lower())))


def label_of_each(
    name: str, values: Sequence[str], spelling: Path | None, place: str, complain: Complain = refuse
) -> dict[str, int | None]:
    """Label of every class a source names; None for classes that the literature leaves out.

    Names are matched as they are, then without case and signs, then word by word in any order. Numbers count
    where the dataset's official numbering is the literature's (Flowers, ImageNet), from 0 or from 1.

    Args:
        name: key of the catalogue.
        values: the source's classes, each once.
        spelling: file with the source's name of each class, one a line, in the literature's order.
        place: the source, for messages.

    Raises:
        UserError: a class can't be matched, or two classes of the source are one of the literature's
            (`complain` may go on: unmatched ones are left out).
    """
    ours = read_class_names(spelling) if spelling is not None else class_names(name)
    if spelling is not None and len(ours) != len(class_names(name)):
        raise UserError(
            f"Expected {len(class_names(name))} class names of '{name}' in {spelling}, got {len(ours)}; "
            "write how the source calls each class, one a line, in the literature's order."
        )
    if name.startswith("imagenet") and spelling is None:
        found = _imagenet(name, values, ours)
    elif name in NUMBERED and all(value.isdigit() for value in values):
        found = _numbers(values, len(ours))
    else:
        found = _names(name, values, ours)
    _check(name, found, values, ours, place, complain)
    return {value: found[value] for value in values if value in found}


def _names(name: str, values: Iterable[str], ours: Sequence[str]) -> dict[str, int | None]:
    aliases, dropped = ALIASES.get(name, {}), NO_CLASS.get(name, frozenset())
    ways: tuple[Callable[[str], str], ...] = (str, folded, sorted_words)
    tables = [_unambiguous(ours, way) for way in ways]
    found: dict[str, int | None] = {}
    for value in values:
        if folded(value) in dropped:
            found[value] = None
            continue
        called = aliases.get(folded(value), value)
        labels = [table[way(called)] for way, table in zip(ways, tables, strict=True) if way(called) in table]
        if labels:
            found[value] = labels[0]
    return found


def _unambiguous(ours: Sequence[str], way: Callable[[str], str]) -> dict[str, int]:
    count = Counter(map(way, ours))
    return {way(name): label for label, name in enumerate(ours) if count[way(name)] == 1}


def _numbers(values: Sequence[str], classes: int) -> dict[str, int | None]:
    """Official numbers: from 1 where the highest is the number of classes, else from 0."""
    first = 1 if str(classes) in values else 0
    return {value: int(value) - first for value in values if first <= int(value) < classes + first}


def _imagenet(name: str, values: Sequence[str], ours: Sequence[str]) -> dict[str, int | None]:
    """By WordNet id, by number, or by ImageNet's own list of synonyms in its own order; else by name."""
    label_of = {wnid: label for label, wnid in enumerate(wnids(name))}
    ids = {value: re.search(r"n\d{8}", value) for value in values}
    if all(ids.values()):
        return {value: label_of[i[0]] for value, i in ids.items() if i is not None and i[0] in label_of}
    if all(value.isdigit() for value in values):
        # Numbers are ImageNet's, from 0; the variants of 200 classes use those of the thousand.
        of_number = [label_of.get(wnid) for wnid in wnids("imagenet")]
        inside = {value: of_number[int(value)] for value in values if int(value) < len(of_number)}
        return {value: label for value, label in inside.items() if label is not None}
    # "tench, Tinca tinca" … "toilet tissue, toilet paper, bathroom tissue": sorted by WordNet id.
    if len(values) == len(ours) and "tench" in values[0] and "toilet" in values[-1]:
        return {value: label for label, value in enumerate(values)}
    return _names(name, values, ours)


def _check(
    name: str,
    found: dict[str, int | None],
    values: Sequence[str],
    ours: Sequence[str],
    place: str,
    complain: Complain,
) -> None:
    unknown = [value for value in values if value not in found]
    if unknown:
        shown = ", ".join(f"'{value}'" for value in unknown[:3])
        complain(
            "classes that are none of the dataset's",
            [f"'{value}'" for value in unknown],
            f"Expected the {len(ours)} classes of '{name}' in {place}, got {len(unknown)} unknown ones "
            f"(first: {shown}); name the right --source.label-column, or give the source's names in the "
            "literature's order with --source.class-names.",
        )
    for label, count in Counter(found.values()).items():
        if count < 2 or label is None:
            continue
        same = [value for value in values if found.get(value) == label]
        complain(
            "classes that are one of the dataset's",
            [f"{' and '.join(map(repr, same))}: '{ours[label]}'"],
            f"Expected one class of {place} per class of '{name}', got '{same[0]}' and '{same[1]}' for "
            f"'{ours[label]}'; give the source's names in order with --source.class-names.",
        )
