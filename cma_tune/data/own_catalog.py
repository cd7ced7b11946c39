"""Datasets of one's own by name: a YAML file beside the catalogue, no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from cma_tune.errors import UserError, nearest

VARIABLE = "CMA_TUNE_CATALOG"
"""Environment variable that names the YAML file; ``--catalog`` sets it, so that started processes know it."""

KINDS = ("folder", "csv", "hub")


@dataclass(frozen=True)
class OwnEntry:
    """One dataset of the YAML file. Paths in the file are relative to it.

    Attributes:
        source: ``folder:PATH``, ``csv:FILE`` or ``hub:REPO_OR_FOLDER``.
        templates: prompts with one ``{}`` each, averaged (``template: …`` gives one).
        image_column, label_column, split_column, train_split, val_split, test_split, class_names: as in
            `SourceOptions`; None is its default.
    """

    source: str
    templates: tuple[str, ...] = ()
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    class_names: str | None = None

    def options(self) -> dict[str, Any]:
        """What the entry says of columns, parts and class names."""
        given = {one.name: getattr(self, one.name) for one in fields(self)[2:]}
        found = {name: value for name, value in given.items() if value is not None}
        if self.class_names is not None:
            found["class_names"] = Path(self.class_names)
        return found


def own_entries() -> dict[str, OwnEntry]:
    """The entries of the YAML file that CMA_TUNE_CATALOG names, none without it.

    Raises:
        UserError: the file is missing or no YAML, or an entry has unknown or missing keys.
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
    known = {one.name for one in fields(OwnEntry)} | {"template"}
    for key in entry:
        if key not in known:
            raise UserError(
                f"Expected keys out of {', '.join(sorted(known))} for '{name}' in {path}, "
                f"got '{key}'{nearest(str(key), known)}."
            )
    if ":" in name or not name or "/" in name:
        raise UserError(f"Expected a name without ':' and '/' in {path}, got '{name}'.")
    kind, _, place = str(entry.get("source", "")).partition(":")
    if kind not in KINDS or not place:
        raise UserError(
            f"Expected source: folder:PATH, csv:FILE or hub:REPO for '{name}' in {path}, "
            f"got '{entry.get('source', '')}'."
        )
    templates = entry.get("templates", entry.get("template", ()))
    templates = (templates,) if isinstance(templates, str) else templates
    texts = [value for key, value in entry.items() if key not in ("source", "templates", "template")]
    if not isinstance(templates, (list, tuple)) or not all(
        isinstance(one, str) for one in (*templates, *texts)
    ):
        raise UserError(f"Expected texts as values of '{name}' in {path}, got {dict(entry)}.")
    if "template" in entry and "templates" in entry:
        raise UserError(f"Expected template or templates for '{name}' in {path}, got both.")
    given = {key: value for key, value in entry.items() if key not in ("source", "template", "templates")}
    if "class_names" in given:
        given["class_names"] = str(_beside(path, given["class_names"]))
    below = _beside(path, place)
    if kind != "hub" or below.exists():  # else a repository
        place = str(below)
    return OwnEntry(f"{kind}:{place}", tuple(templates), **given)


def _beside(path: Path, place: str) -> Path:
    return path.parent / Path(place).expanduser()
