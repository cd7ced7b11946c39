"""Datasets by command: what there is, what is missing, what is wrong, downloads and miniatures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cma_tune.data.fetch import fetch, fetch_hub
from cma_tune.data.hub_form import is_hub_root
from cma_tune.data.inventory import check_dataset
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature
from cma_tune.errors import UserError, nearest
from cma_tune.options import DATA_ACTIONS, DataConfig
from cma_tune.protocols.data_overview import details, overview, status, table
from cma_tune.source_options import source_options


def data(config: DataConfig) -> None:
    """Do what the command was asked for.

    Raises:
        UserError: an unknown action or dataset, too many or too few words; see also the actions.
        SystemExit: with 1, `check` found something wrong, or `fetch` left something missing.
    """
    runs: dict[str, Callable[..., None]] = {
        "list": _list,
        "status": _status,
        "check": _check,
        "fetch": _fetch,
        "miniature": _miniature,
    }
    action, *words = config.words or [""]
    if action not in runs:
        raise UserError(
            f"Expected 'cma-tune data' and one of {', '.join(runs)}, got '{action}'{nearest(action, runs)}."
        )
    names = DATA_ACTIONS[action][0].split()
    required = [name for name in names if not name.startswith("[")]
    if not len(required) <= len(words) <= len(names):
        wanted = " ".join(["cma-tune data", action, *names])
        raise UserError(f"Expected '{wanted}', got 'cma-tune data {' '.join(config.words)}'.")
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        runs[action](config, *words)
    except (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError) as error:
        if action not in ("fetch", "miniature"):
            raise
        raise UserError(
            f"Expected to write to {error.filename}, but it can't be done ({error.strerror}); "
            "choose another folder."
        ) from None


def _list(config: DataConfig, name: str | None = None) -> None:
    root = Path(config.data_root)
    print(overview(root) if name is None else details(name, root))


def _status(config: DataConfig) -> None:
    print(status(Path(config.data_root)))


def _check(config: DataConfig, name: str) -> None:
    root, options = Path(config.data_root), source_options(config.source)
    findings = check_dataset(name, root, options, config.all)
    print(
        table(["", "state", "expected", "found"], [[f.what, f.state, f.expected, f.found] for f in findings])
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
