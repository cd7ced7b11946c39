"""Datasets of one's own by name: a YAML file beside the catalogue, no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from cma_tune.data.templates import check_templates
from cma_tune.errors import UserError, nearest

VARIABLE = "CMA_TUNE_CATALOG"
"""Environment variable that names the YAML file; ``--catalog`` sets it, so that started processes know it."""

KINDS = ("folder", "csv", "hub")


@dataclass(frozen=True)
class OwnEntry:
    """One dataset of the YAML file. Paths in the file are relative to it.

    Attributes:
        sources: ``folder:PATH``, ``csv:FILE`` or ``hub:REPO_OR_FOLDER``, one or several (``source: …`` gives
            one); `source_of` says which is read.
        templates: prompts with one ``{}`` each, averaged (``template: …`` gives one).
        split_file: split in CoOp's form for a ``folder:`` source, with paths relative to that folder.
        weight: λ by shots (0: whatever the shots) that stands for the recipe's, as `own_weights` gives it.
        image_column, label_column, split_column, train_split, val_split, test_split, class_names: as in
            `SourceOptions`; None is its default.
    """

    sources: tuple[str, ...]
    templates: tuple[str, ...] = ()
    split_file: str | None = None
    weight: Mapping[int, float] | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    class_names: str | None = None

    def options(self) -> dict[str, Any]:
        """What the entry says of columns, parts and class names."""
        given = {name: getattr(self, name) for name in OPTIONS}
        found = {name: value for name, value in given.items() if value is not None}
        if self.class_names is not None:
            found["class_names"] = Path(self.class_names)
        return found

    def source_of(self, from_hub: bool = False) -> str:
        """The source that is read: the first on disk, else the first of the Hub, else the first.

        Args:
            from_hub: take the first of the Hub, if there is one.
        """
        hub = [source for source in self.sources if source.startswith("hub:")]
        there = [source for source in self.sources if Path(source.partition(":")[2]).exists()]
        return [*(hub if from_hub else ()), *there, *hub, *self.sources][0]


OPTIONS = (
    "image_column",
    "label_column",
    "split_column",
    "train_split",
    "val_split",
    "test_split",
    "class_names",
)


def own_weights() -> dict[str, dict[int, float]]:
    """λ of the YAML file's datasets by name and shots (0: whatever the shots), of those that have one.

    Raises:
        UserError: see `own_entries`.
    """
    return {name: dict(entry.weight) for name, entry in own_entries().items() if entry.weight is not None}


def own_entries() -> dict[str, OwnEntry]:
    """The entries of the YAML file that CMA_TUNE_CATALOG names, none without it.

    Raises:
        UserError: the file is missing or no YAML, or an entry has unknown or missing keys or a template
            without its ``{}``.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return {}
    path = Path(place).expanduser()
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise UserError(
            f"Expected a YAML file of datasets at {path}, but there is none; mend --catalog or {VARIABLE}."
        ) from None
    return dict(_read(path, changed))


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Mapping[str, OwnEntry]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Expected YAML in {path}, but it can't be read ({reason}); mend the file.") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(
            f"Expected names with their entries in {path}, got another form; "
            "write 'birds:' and below it 'source: folder:PATH' and 'template: a photo of a {}.'."
        )
    return {str(name): _entry(str(name), entry, path) for name, entry in content.items()}


def _entry(name: str, entry: Mapping[Any, Any], path: Path) -> OwnEntry:
    known = {one.name for one in fields(OwnEntry)} | set(ONE_OF)
    for key in entry:
        if key not in known:
            raise UserError(
                f"Expected keys out of {', '.join(sorted(known))} for '{name}' in {path}, "
                f"got '{key}'{nearest(str(key), known)}."
            )
    if ":" in name or not name or "/" in name:
        raise UserError(f"Expected a name without ':' and '/' in {path}, got '{name}'.")
    sources = tuple(_source(source, name, path) for source in _one_or_several("source", entry, name, path))
    if not sources:
        raise _no_source("", name, path)
    templates = _one_or_several("template", entry, name, path)
    check_templates(templates, f" of '{name}' in {path}")
    given = {key: value for key, value in entry.items() if key in (*OPTIONS, "split_file")}
    if not all(isinstance(value, str) for value in given.values()):
        raise UserError(f"Expected texts as values of '{name}' in {path}, got {dict(entry)}.")
    for key in ("class_names", "split_file"):
        if key in given:
            given[key] = str(_beside(path, given[key]))
    if "split_file" in given and not any(source.startswith("folder:") for source in sources):
        raise UserError(f"Expected a source folder:PATH beside split_file for '{name}' in {path}, got none.")
    weight = _weight(entry["weight"], name, path) if "weight" in entry else None
    return OwnEntry(sources, templates, weight=weight, **given)


ONE_OF = {"source": "sources", "template": "templates"}
"""Keys for one value, with those for several."""


def _one_or_several(key: str, entry: Mapping[Any, Any], name: str, path: Path) -> tuple[str, ...]:
    if key in entry and ONE_OF[key] in entry:
        raise UserError(f"Expected {key} or {ONE_OF[key]} for '{name}' in {path}, got both.")
    values = entry.get(ONE_OF[key], entry.get(key, ()))
    values = (values,) if isinstance(values, str) else values
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
        raise UserError(f"Expected texts as values of '{name}' in {path}, got {dict(entry)}.")
    return tuple(values)


def _source(source: str, name: str, path: Path) -> str:
    kind, _, place = source.partition(":")
    if kind not in KINDS or not place:
        raise _no_source(source, name, path)
    below = _beside(path, place)
    if kind != "hub" or below.exists():  # else a repository
        place = str(below)
    return f"{kind}:{place}"


def _no_source(source: str, name: str, path: Path) -> UserError:
    return UserError(
        f"Expected source: folder:PATH, csv:FILE or hub:REPO for '{name}' in {path}, got '{source}'."
    )


def _weight(weight: Any, name: str, path: Path) -> dict[int, float]:
    by_shots = weight if isinstance(weight, dict) else {0: weight}
    for shots, value in by_shots.items():
        # `true` is a number to Python, but no λ.
        if type(shots) is not int or shots < 0 or type(value) not in (int, float) or not 0 <= value <= 1:
            raise UserError(
                "Expected weight: a number from 0 to 1, or shots with such numbers as in {1: 0.4, 16: 0.7}, "
                f"for '{name}' in {path}, got {weight}."
            )
    return {shots: float(value) for shots, value in by_shots.items()}


def _beside(path: Path, place: str) -> Path:
    return path.parent / Path(place).expanduser()
