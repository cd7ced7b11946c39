"""Names of groups and backbones, and the notes under a table: what to know before comparing rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from cma_tune.records import Record
from cma_tune.report.groups import (
    Group,
    is_of_release,
    learner_name,
    merged_epochs,
    miniatures,
    of_own_recipe,
    shots_text,
)
from cma_tune.run import backbone_folder

# Methods may differ in their recipes, but not in what they start from and what they are tested on.
_BACKBONE_NAMES, _BACKBONE_DIGESTS = ("pretrained", "model_config"), ("weights", "preprocessing")
_SHARED = (*_BACKBONE_NAMES, *_BACKBONE_DIGESTS, "split")


def name_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups of a table with variants, so that every name is there once.

    A variant holds all settings in which groups of one method differ, and, over all groups, differences of
    the data and the backbone.
    """
    shared = [key for key in _keys(groups) if _is_shared(key) and _differ(groups, key)]
    for digest in _BACKBONE_DIGESTS:  # one that goes with the name of the weights adds nothing to it
        if _combinations(groups, *_BACKBONE_NAMES) == _combinations(groups, *_BACKBONE_NAMES, digest):
            shared = [key for key in shared if key != digest]
    named: dict[str, Group] = {}
    for group in groups:
        peers = [peer for peer in groups if peer.learner == group.learner]
        keys = [key for key in _keys(peers) if not _is_shared(key) and _differ(peers, key)]
        parts = [f"{_short(k)}={_show(group.settings[k])}" for k in [*keys, *shared] if k in group.settings]
        if group.epochs and merged_epochs(peer.epochs for peer in peers) is None:
            parts.insert(0, f"epochs={_show_epochs(group.epochs)}")
        one = replace(group, variant=", ".join(parts))
        if one.name in named:  # its records have a setting that the others' version did not know
            one = replace(one, variant=", ".join([*parts, f"run={one.records[0].run[:8]}"]))
        named[one.name] = one
    return list(named.values())


def setting_notes(groups: Sequence[Group]) -> list[str]:
    """Sentences on epochs, settings that differ between methods, λ chosen or of the release, and versions."""
    notes = []
    learned = [group for group in groups if group.learner != "zero_shot"]
    epochs = merged_epochs(group.epochs for group in learned)
    if epochs:
        notes.append(f"Epochs: {_by_shots({shots: str(number) for shots, number in epochs.items()})}.")
    differences = _between_methods(learned)
    if differences:
        notes.append(f"Settings that differ between methods: {'; '.join(differences)}.")
    for group in groups:
        if group.selected:
            notes.append(f"{group.name}, by seed: {_chosen(group)}.")
        if group.release:
            weights = _by_shots({record.shots: f"{record.weight:g}" for record in group.records})
            whose = ", of the dataset's entry in the user's catalogue" if of_own_recipe(group) else ""
            notes.append(f"{group.name}: {weights}{whose}.")
        elif group.weight and not group.selected and all(map(is_of_release, group.records)):
            whose = "the dataset's entry in the user's catalogue" if of_own_recipe(group) else "the release"
            notes.append(f"{group.name}: λ of {whose}.")
    if drawn := sorted(set().union(*map(miniatures, groups))):
        notes.append(f"On miniatures, which are drawn images: {', '.join(drawn)}.")
    versions = _several_versions(groups)
    if versions:
        notes.append(f"Runs were made with different versions: {', '.join(versions)}.")
    return notes


def _between_methods(groups: Sequence[Group]) -> list[str]:
    """Settings that are the same within every method, and so in no variant, but differ between methods."""
    by_learner: dict[str, list[Group]] = {}
    for group in groups:
        by_learner.setdefault(group.learner, []).append(group)
    epochs = {name: merged_epochs(g.epochs for g in several) for name, several in by_learner.items()}
    differences = []
    if None not in epochs.values() and merged_epochs(e for e in epochs.values() if e) is None:
        shown = ", ".join(f"{learner_name(name)} {_show_epochs(e)}" for name, e in epochs.items() if e)
        differences.append(f"epochs ({shown})")
    for key in _keys(groups):
        if _is_shared(key) or not _differ(groups, key):
            continue
        having = {name: [g for g in several if key in g.settings] for name, several in by_learner.items()}
        if not any(_differ(several, key) for several in having.values()):
            values = {name: several[0].settings[key] for name, several in having.items() if several}
            shown = ", ".join(f"{learner_name(name)} {_show(value)}" for name, value in values.items())
            differences.append(f"{_short(key)} ({shown})")
    return differences


def _chosen(group: Group) -> str:
    by_shots: dict[int, list[str]] = {}
    for record in group.records:
        by_shots.setdefault(record.shots, []).append(f"{record.weight:g}")
    return _by_shots({shots: ", ".join(weights) for shots, weights in by_shots.items()})


def _by_shots(values: Mapping[int, str]) -> str:
    """``"50 at 1 shot; 100 at 2, 4 shots"``, or the value alone if it is the same at all shots."""
    shots_of: dict[str, list[int]] = {}
    for shots in sorted(values):
        shots_of.setdefault(values[shots], []).append(shots)
    if len(shots_of) == 1:
        return next(iter(shots_of))
    parts = []
    for value, several in shots_of.items():
        earlier = "".join(f"{shots}, " for shots in several[:-1])
        parts.append(f"{value} at {earlier}{shots_text(several[-1])}")
    return "; ".join(parts)


def _several_versions(groups: Sequence[Group]) -> list[str]:
    found: dict[str, set[str]] = {}
    for group in groups:
        for record in group.records:
            for package, version in record.versions.items():
                found.setdefault(package, set()).add(version)
    return [f"{name} {' and '.join(sorted(several))}" for name, several in found.items() if len(several) > 1]


def _is_shared(key: str) -> bool:
    return key in _SHARED or key.startswith("source.")


def _keys(groups: Iterable[Group]) -> list[str]:
    return sorted({key for group in groups for key in group.settings})


def _differ(groups: Iterable[Group], key: str) -> bool:
    return len({group.settings[key] for group in groups if key in group.settings}) > 1


def _combinations(groups: Iterable[Group], *keys: str) -> int:
    return len({tuple(group.settings.get(key) for key in keys) for group in groups})


def _show_epochs(epochs: Mapping[int, int]) -> str:
    return "/".join(map(str, dict.fromkeys(epochs[shots] for shots in sorted(epochs))))


def _show(value: str) -> str:
    """A JSON value as a reader wants it; digests cut to eight characters."""
    content = json.loads(value)
    if isinstance(content, list):
        return " | ".join(map(str, content))
    if not isinstance(content, str):
        return "default" if content is None else value
    is_digest = len(content) >= 32 and set(content) <= set("0123456789abcdef")
    return content[:8] if is_digest else content


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def backbone_of(record: Record) -> str:
    """Name and weights: one architecture with two sets of weights is two backbones."""
    name, pretrained = str(record.backbone["name"]), record.backbone.get("pretrained")
    return f"{name} {Path(pretrained).stem}" if pretrained else name


def shown_backbones(records: Iterable[Record]) -> dict[str, str]:
    """What to call each backbone: a folder by its name alone, unless two folders share it."""
    names = {backbone_of(record) for record in records}
    folders = {name: backbone_folder(name) for name in names}
    short = {name: name if folder is None else PurePath(folder).name for name, folder in folders.items()}
    taken = Counter(short.values())
    return {name: text if text and taken[text] == 1 else name for name, text in short.items()}
