"""Datasets by command: what there is, what is missing, what is wrong, downloads and miniatures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cma_tune.data.catalog import ENTRIES, IMAGES_FROM, CatalogEntry, known_names
from cma_tune.data.fetch import fetch, fetch_hub
from cma_tune.data.hub_form import is_hub_root
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.inventory import check_dataset
from cma_tune.data.layouts import miniature_sizes
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature
from cma_tune.data.own_catalog import own_entries
from cma_tune.data.sources import default_templates
from cma_tune.data.survey import shortfalls, survey
from cma_tune.errors import UserError, nearest
from cma_tune.options import DataConfig
from cma_tune.source_options import source_options


def data(config: DataConfig) -> None:
    """Do what the command was asked for.

    Raises:
        UserError: an unknown action or dataset, too many or too few words; see also the actions.
        SystemExit: with 1, `check` found something wrong, or `fetch` left something missing.
    """
    actions: dict[str, tuple[Callable[..., None], str]] = {
        "list": (_list, ""),
        "status": (_status, ""),
        "check": (_check, "NAME"),
        "fetch": (_fetch, "NAME"),
        "miniature": (_miniature, "NAME OUT"),
    }
    action, *words = config.words or [""]
    if action not in actions:
        raise UserError(
            f"Expected 'cma-tune data' and one of {', '.join(actions)}, "
            f"got '{action}'{nearest(action, actions)}."
        )
    run, names = actions[action]
    if len(words) != len(names.split()):
        wanted = " ".join(["cma-tune data", action, *names.split()])
        raise UserError(f"Expected '{wanted}', got 'cma-tune data {' '.join(config.words)}'.")
    if os.environ.get("RANK", "0") == "0":
        run(config, *words)


def _list(config: DataConfig) -> None:
    known_names()
    for name, entry in ENTRIES.items():
        train, val, test = entry.sizes
        print(f"{name}: {entry.classes} classes, {train:,} train, {val:,} val, {test:,} test images")
        print(f"  template  {entry.template}")
        print(f"  images    {IMAGES_FROM[name]}")
        print(f"            into DATA_ROOT/{Path(entry.folder) / entry.images}")
        if entry.split_file is not None:
            print(f"  split     {entry.split_url()}")
            print(f"            into DATA_ROOT/{entry.folder}/{entry.split_file}")
        if HUB[name].repo is not None:
            print(f"  Hub       {HUB[name].repo} (--data-root hub:)")
    for name, own in own_entries().items():
        classes, _ = _own_state(name, Path(config.data_root))
        print(f"{name}: {classes}" if classes else f"{name}: classes known once its source is at hand")
        for template in default_templates(name):
            print(f"  template  {template}")
        for source in own.sources:
            print(f"  source    {source}")
        if own.split_file is not None:
            print(f"  split     {own.split_file}")
        if own.weight is not None:
            print(f"  λ         {', '.join(_weight(shots, value) for shots, value in own.weight.items())}")


def _weight(shots: int, value: float) -> str:
    return f"{value:g} at {shots} shots" if shots else f"{value:g}"


def _own_state(name: str, root: Path) -> tuple[str, list[str]]:
    """Classes of a dataset of one's own as far as its source is at hand, and its row of the status."""
    source = own_entries()[name].source_of(is_hub_root(root))
    if not Path(source.partition(":")[2]).exists():
        return "", [name, "on the Hub" if source.startswith("hub:") else "absent", "", source]
    try:
        found = survey(name, root)
    except UserError as error:
        return "", [name, "incomplete", "", str(error)]
    if found.dataset is None:
        return "", [name, "incomplete", "", "; ".join(found.texts())]
    split = found.dataset.split
    counts = "/".join(f"{len(items):,}" for items in split.parts().values())
    state = "incomplete" if found.faults else "present"
    return f"{len(split.class_names)} classes", [name, state, counts, "; ".join(found.texts()) or source]


def _status(config: DataConfig) -> None:
    known_names()  # a name of the user's that is taken already would never be read
    root = Path(config.data_root).expanduser()
    rows = [_status_row(entry, root) for entry in ENTRIES.values()]
    rows += [_own_state(name, Path(config.data_root))[1] for name in own_entries()]
    print(_table(["dataset", "state", "train/val/test", f"below {root}"], rows))


def _status_row(entry: CatalogEntry, root: Path) -> list[str]:
    folder = root / entry.folder
    if not folder.is_dir():
        return [entry.name, "absent", "", f"'cma-tune data list' says where to get {entry.folder}/"]
    lacks = shortfalls(entry, root)
    counts = "/".join(f"{size:,}" for size in lacks.sizes)
    if lacks:
        return [entry.name, "incomplete", counts, "; ".join([*lacks.split, *lacks.images])]
    state = "present" if miniature_sizes(folder) is None else "miniature"
    return [entry.name, state, counts, str(folder)]


def _check(config: DataConfig, name: str) -> None:
    root, options = Path(config.data_root), source_options(config.source)
    findings = check_dataset(name, root, options, config.all)
    print(
        _table(["", "state", "expected", "found"], [[f.what, f.state, f.expected, f.found] for f in findings])
    )
    wrong = sum(finding.state == "wrong" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    warned = f", {warnings} to be looked at" if warnings else ""
    print(f"{name}: {wrong or 'nothing'} wrong{warned}")
    if wrong:
        raise SystemExit(1)


def _fetch(config: DataConfig, name: str) -> None:
    if is_hub_root(Path(config.data_root)):
        raise UserError(
            "Expected a folder in --data-root for fetch, got hub:; the Hub's form needs no fetch."
        )
    root = Path(config.data_root).expanduser()
    if config.form == "hub":
        fetch_hub(name, root)
        print(f"{name}: complete in {root / name}; use it with --data-root hub:{root}")
        return
    left = fetch(name, root, lambda text: print(text, flush=True))
    for text in left:
        print(text)
    if left:
        print(f"{name}: not complete below {root}")
        raise SystemExit(1)
    print(f"{name}: complete below {root}; 'cma-tune data check {name}' looks through it")


def _miniature(config: DataConfig, name: str, out: str) -> None:
    if len(config.per_class) != 3:
        raise UserError(
            f"Expected three numbers in --per-class (train, val, test), got {config.per_class}; write 2,1,2."
        )
    train, val, test = config.per_class
    write = write_hub_miniature if config.form == "hub" else write_miniature
    root = Path(out).expanduser()
    folder = write(name, root, (train, val, test))
    form = "hub:" if config.form == "hub" else ""
    print(f"{folder}: a miniature of {name}; use it with --dataset {name} --data-root {form}{root}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    # File names need not be valid UTF-8.
    return "\n".join(line.rstrip() for line in lines).encode("utf-8", "replace").decode()
