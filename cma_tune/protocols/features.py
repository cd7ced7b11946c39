"""Stored image features by command: build them ahead, list, verify and prune them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from cma_tune.build import Setup
from cma_tune.checks import check
from cma_tune.config import FewShotConfig, shared_entries
from cma_tune.data import feature_index, feature_upkeep
from cma_tune.data.feature_index import Entry
from cma_tune.data.feature_shards import space_id
from cma_tune.data.images import Augmentation
from cma_tune.data.splits import Item
from cma_tune.errors import UserError, nearest
from cma_tune.options import FeaturesConfig

PARTS = {"train": "training images", "val": "validation images", "test": "test images"}
"""Parts of a split and what runs call their images."""


def features(config: FeaturesConfig) -> None:
    """Do what the command was asked for.

    Raises:
        UserError: see the actions.
        SystemExit: with 1, `verify` found something wrong.
    """
    if config.action != "prune" and (config.only is not None or config.everything):
        raise UserError(f"Expected --only and --everything with prune, got them with {config.action}.")
    if config.action == "build":
        build(config)
        return
    if os.environ.get("RANK", "0") != "0":
        return  # one process looks after the store
    store = _folder(config)
    if config.action == "list":
        print(table(store))
        return
    if not feature_index.is_store(store):
        raise UserError(
            f"Expected stored image features in {store}, got a folder without any; "
            "name theirs with --features-dir, or the runs' folder with --output."
        )
    if config.action == "verify":
        _verify(store)
        return
    try:
        _prune(store, config)
    except OSError as error:
        raise UserError(
            f"Expected to remove stored image features in {store}, but it can't be written "
            f"({error.strerror or error})."
        ) from None


def build(config: FeaturesConfig, setup: Setup | None = None) -> None:
    """Encode and store the images of the parts that are not stored yet.

    Raises:
        UserError: a part is unknown or empty, or a value is out of its range; see also `Setup`.
    """
    for part in config.parts:
        if part not in PARTS:
            raise UserError(
                f"Expected --parts out of {', '.join(PARTS)}, got '{part}'{nearest(part, PARTS)}."
            )
    if not config.parts or len(set(config.parts)) < len(config.parts):
        raise UserError(f"Expected every part once in --parts, got {','.join(config.parts) or 'none'}.")
    if config.views and "train" not in config.parts:
        raise UserError("Expected train among --parts with --views: views are of training images.")
    run = _as_run(config)
    check(run, writes_output=config.features_dir is None)
    setup = setup or Setup(run)
    for part in config.parts:
        items = setup.dataset.split.parts()[part]
        if not items:
            setup.say(f"{part}: no images")
        elif part == "train" and config.views:
            augmentation = Augmentation((config.augment.scale_min, 1.0), config.augment.flip)
            for seed in config.seeds:
                for epoch in range(config.views):
                    view = (seed, epoch, augmentation)
                    _build_part(setup, items, part, f"train, seed {seed}, view {epoch + 1}", view)
        else:
            _build_part(setup, items, part, part)
    setup.say(f"stored in {setup.features_dir}")


def _build_part(setup: Setup, items: tuple[Item, ...], part: str, label: str, view: Any = None) -> None:
    before = setup.store.encoded
    setup.features(items, PARTS[part], view)
    setup.say(f"{label}: {len(items):,} images, {setup.store.encoded - before:,} of them encoded now")


def _as_run(config: FeaturesConfig) -> FewShotConfig:
    """The run whose stored features these are."""
    return FewShotConfig(**shared_entries(FewShotConfig, config), train_features="stored")


def _folder(config: FeaturesConfig) -> Path:
    store = Path(config.features_dir or Path(config.output) / "features")
    if not store.is_dir():
        raise UserError(
            f"Expected stored image features in {store}, but there is no such folder; "
            "name it with --features-dir, or the runs' folder with --output."
        )
    return store


def table(store: Path) -> str:
    """The spaces of a store, one a line, or one line that says there are none."""
    spaces: dict[str, list[Entry]] = defaultdict(list)
    entries = feature_index.entries(store)
    for entry in entries.values():
        spaces[entry.space].append(entry)
    if not entries:
        return f"{store}: no stored image features"
    header = ["id", "backbone", "images go through", "datasets", "images", "dim", "MB"]
    rows = [[space_id(text), *_row(text, shards)] for text, shards in spaces.items()]
    rows.sort(key=lambda row: row[1:4])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(_cells(row, widths)).rstrip() for row in [header, *rows]]
    unreadable = len(feature_index.sizes(store)) - len(entries)
    if unreadable > 0:
        lines.append(f"{unreadable} more can't be read; 'cma-tune features verify' says why")
    # A dataset's name may be a path, which need not be valid UTF-8.
    return "\n".join(lines).encode("utf-8", "replace").decode()


def _row(text: str, shards: list[Entry]) -> list[str]:
    def all_of(key: str) -> str:
        return ", ".join(sorted({entry.about.get(key, "?") for entry in shards}))

    rows, size = sum(entry.rows for entry in shards), sum(entry.bytes for entry in shards)
    how = f"{all_of('preprocessing')}, {space_in_words(text)}"
    return [all_of("backbone"), how, all_of("dataset"), str(rows), str(shards[0].dim), f"{size / 1e6:.2f}"]


def space_in_words(text: str) -> str:
    """Precision and view of a space."""
    space = json.loads(text)
    precision, view = {"no": "float32"}.get(space["precision"], space["precision"]), space["view"]
    if not view:
        return f"{precision}, test transform"
    scale = "-".join(f"{value:g}" for value in view["scale"])
    return (
        f"{precision}, crop {view['epoch'] + 1} of seed {view['seed']} (scale {scale}, flip {view['flip']:g})"
    )


def _cells(row: list[str], widths: list[int]) -> list[str]:
    """Text to the left, numbers to the right."""
    return [
        cell.rjust(width) if column >= 4 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _verify(store: Path) -> None:
    checked = feature_upkeep.verify(store)
    for problem in checked.problems:
        print(problem)
    doubled = f", {checked.doubled} images stored twice" if checked.doubled else ""
    wrong = f"{len(checked.problems)} damaged" if checked.problems else "nothing wrong"
    print(f"{store}: {checked.shards} files, {checked.rows} images, {_mb(checked.bytes)}{doubled}; {wrong}")
    if checked.problems:
        print("'cma-tune features prune' removes what is damaged; runs encode those images again")
        raise SystemExit(1)


def _prune(store: Path, config: FeaturesConfig) -> None:
    if config.only is not None and config.everything:
        raise UserError("Expected --only or --everything, got both.")
    if config.everything:
        removed = feature_upkeep.remove_everything(store)
    elif config.only is not None:
        known = [folder.name for folder in feature_index.space_folders(store)]
        if config.only not in known:
            raise UserError(
                f"Expected for --only an id that 'cma-tune features list' shows, got '{config.only}'"
                f"{nearest(config.only, known)}."
            )
        removed = feature_upkeep.remove_spaces(store, [config.only])
    else:
        removed = feature_upkeep.prune(store)
    for line in removed.lines:
        print(line)
    print(f"{store}: {_mb(removed.bytes)} freed" if removed.lines else f"{store}: nothing to remove")


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
