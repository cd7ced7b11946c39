"""Imports go downward only: what each part of the package may stand on."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cma_tune

PACKAGE = Path(cma_tune.__file__).parent

# From the bottom to the top: each part with the parts it may import, all of which stand above it here.
MAY_IMPORT: dict[str, str] = {
    "errors": "",
    "messages": "",
    "processes": "",
    "files": "errors",
    "recipes": "errors",
    "method_options": "",
    "method_facts": "",
    "config": "method_facts method_options",
    "run": "config files method_facts method_options recipes",
    "options": "config",
    "companion_options": "config",
    "companion_run": "companion_options config files run",
    "records": "config errors files method_options run",
    "predictions": "errors files",
    "value_checks": "errors",
    "checks": "config errors method_facts method_options value_checks",
    "companion_checks": "companion_options errors value_checks",
    "arguments": "errors",
    "metrics": "",
    "collapse_metric": "metrics",
    "losses": "metrics processes",
    "data": "errors files",
    "clip": "errors files processes",
    "hub": "clip errors",
    "learners": "clip errors files hub processes",
    "checkpoint": "errors files processes",
    "fitting": "errors",
    "train": "checkpoint data errors fitting learners losses metrics processes",
    "trackers": "errors",
    "accelerators": "config errors",
    "source_options": "config data",
    "methods": "clip config learners method_options",
    "build": (
        "accelerators clip config data errors files fitting learners losses methods metrics processes run "
        "source_options trackers train"
    ),
    "report": (
        "companion_run config errors files method_options metrics predictions recipes records run "
        "value_checks"
    ),
    "serving": "clip data errors files hub learners value_checks",
    "sharing": "clip data errors files hub learners records value_checks",
    "predict": "data errors files learners serving value_checks",
    "protocols": (
        "build checkpoint checks config data errors files learners messages method_facts method_options "
        "metrics options predictions processes recipes records run source_options trackers train value_checks"
    ),
    "companion": (
        "accelerators build checkpoint companion_checks companion_options companion_run config data errors "
        "files fitting losses metrics predictions processes records source_options trackers train"
    ),
    "inspection": "build config data errors files learners metrics options records report value_checks",
    "commands": (
        "companion companion_options config inspection options predict protocols report serving sharing"
    ),
    "cli": "arguments clip commands companion_options companion_run config errors messages method_facts",
    "__main__": "cli",
    "__init__": "losses metrics processes",
}

TORCH_ALONE = {"losses", "metrics", "processes"}
STANDARD_LIBRARY_ALONE = {
    *(
        "arguments",
        "checks",
        "companion_checks",
        "companion_options",
        "companion_run",
        "config",
        "errors",
        "files",
        "method_facts",
        "method_options",
    ),
    *("options", "recipes", "records", "run", "value_checks"),
}

EXCEPTIONS = {
    # The embedded model's files lie beside the data that go with them; the backbone asks where.
    ("clip", "cma_tune.data.builtin.SMALL_CLIP_DIR"),
    # How a class name reads in a prompt: a function of a text, which stands with the splits' names.
    ("clip", "cma_tune.data.splits.prompt_name"),
    ("learners", "cma_tune.data.splits.prompt_name"),
    # The quickstart is the whole line, and a report ends it.
    ("protocols", "cma_tune.report.*"),
}
"""(part, what it imports although it may not): one that is no longer needed has to go from here."""


def imported_names(source: str, package: str) -> Iterator[str]:
    """Full names of all that a module of `package` imports, also inside functions: ``a.b.name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    """``losses`` for losses/cma.py, ``train`` for train.py."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports() -> Iterator[tuple[str, str]]:
    """Every part of the package with each name it imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        package = ".".join(["cma_tune", *path.relative_to(PACKAGE).parent.parts])
        for name in imported_names(path.read_text(encoding="utf-8"), package):
            yield part_of(path), name


def is_exception(part: str, name: str, exception: tuple[str, str]) -> bool:
    allowed = exception[1]
    return part == exception[0] and (
        name == allowed or (allowed.endswith(".*") and name.startswith(allowed[:-1]))
    )


def test_the_order_has_no_circles_and_a_place_for_every_part() -> None:
    below: set[str] = set()
    for part, imported in MAY_IMPORT.items():
        assert set(imported.split()) <= below, part
        below.add(part)
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")}
    assert parts <= set(MAY_IMPORT), "a new part of the package: say what it may import"


def test_imports_go_downward_only() -> None:
    upward = []
    needed = set()
    for part, name in imports():
        root, _, inside = name.partition(".")
        if root != "cma_tune":
            continue
        imported = inside.partition(".")[0]
        if imported == part or imported in MAY_IMPORT[part].split():
            continue
        excused = {exception for exception in EXCEPTIONS if is_exception(part, name, exception)}
        needed |= excused
        if not excused:
            upward.append(f"{part} imports {name}")
    assert upward == []
    assert needed == EXCEPTIONS, "exceptions that are no longer needed"


def test_the_foundations_need_torch_or_the_standard_library_alone() -> None:
    foreign = set()
    for part, name in imports():
        root = name.partition(".")[0]
        if root == "cma_tune" or root in sys.stdlib_module_names:
            continue
        if part in STANDARD_LIBRARY_ALONE or (part in TORCH_ALONE and root != "torch"):
            foreign.add(f"{part} imports {name}")
    assert foreign == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn, cma_tune.train", ["torch.nn", "cma_tune.train"]),
        (
            "def f():\n    if 1:\n        from cma_tune.build import Setup, recipe",
            ["cma_tune.build.Setup", "cma_tune.build.recipe"],
        ),
        ("from . import a", ["cma_tune.data.builtin.a"]),
        ("from .digits import load", ["cma_tune.data.builtin.digits.load"]),
        ("from ...train import fit", ["cma_tune.train.fit"]),
        ("from cma_tune import build", ["cma_tune.build"]),
    ],
)
def test_every_kind_of_import_is_seen(source: str, expected: list[str]) -> None:
    assert list(imported_names(source, "cma_tune.data.builtin")) == expected
