"""Caltech101 from its folders and from a local table of the Hub's form: the same split, the same figures?

python benchmarks/grid/caltech101_two_sources.py --data-root DATA --backbone local-dir:FOLDER --work FOLDER

Writes tables that hold the image files byte for byte, with the classes under their folders' names and in
another order, and runs zero-shot, few-shot (2 shots, 2 seeds, λ 0 and the release's) and base-to-novel from

- the folders with the published split file,
- a table whose rows carry file names, beside the split file: the published split is recovered from them,
- a table without file names, whose own parts are those of the published split.

Every side encodes the images itself. It ends with 1 if a figure, or a class's accuracy, differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets

from cma_tune.data.catalog import CATALOG
from cma_tune.data.splits import Split, read_coop_split
from cma_tune.records import Record, find_results

ENTRY = CATALOG["caltech101"]
SPLIT_FILE = str(ENTRY.split_file)
CMA_TUNE = (sys.executable, "-m", "cma_tune")
LEARNED = ("--shots=2", "--seeds=1,2", "--weights=0,recipe")


def write_table(folder: Path, split: Split, images: Path, stems: bool) -> None:
    """The published parts as a table of the Hub's form; with `stems`, shuffled into train and test alone."""
    called = sorted({item.key.split("/")[0].lower() for item in split.test}, reverse=True)
    columns: dict[str, Any] = {"image": datasets.Image(), "label": datasets.ClassLabel(names=called)}
    parts = {"train": split.train, "validation": split.val, "test": split.test}
    if stems:
        columns["image_id"] = datasets.Value("string")
        every = sorted((*split.train, *split.val, *split.test), key=lambda item: item.key[::-1])
        parts = {"train": tuple(every[::2]), "test": tuple(every[1::2])}
    tables = {}
    for part, items in parts.items():
        rows = []
        for item in items:
            content = {"bytes": (images / item.key).read_bytes(), "path": None}
            row: dict[str, Any] = {"image": content, "label": called.index(item.key.split("/")[0].lower())}
            rows.append(row | ({"image_id": item.key.rsplit(".", 1)[0]} if stems else {}))
        tables[part] = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
    datasets.DatasetDict(tables).save_to_disk(folder)


def run(root: str, output: Path, backbone: str, epochs: int) -> float:
    """All protocols from one source; seconds."""
    common = ["--dataset=caltech101", f"--data-root={root}", f"--backbone={backbone}", f"--output={output}"]
    learned = [*LEARNED, f"--optim.epochs={epochs}", "--train-features=stored"]
    started = time.perf_counter()
    for protocol, more in (("zero-shot", []), ("few-shot", learned), ("base-to-novel", learned)):
        subprocess.run([*CMA_TUNE, protocol, *common, *more], check=True, stdout=sys.stderr)
    return time.perf_counter() - started


def compare(mine: Path, other: Path) -> list[str]:
    """What differs between the records of two sources, run by run."""
    records, others = (
        {str(where.relative_to(folder)): record for where, record in find_results(folder)}
        for folder in (mine, other)
    )
    if records.keys() != others.keys():
        return [f"runs: {sorted(records.keys() ^ others.keys())}"]
    return [
        f"{where}: {name}"
        for where in records
        for name, same in _same(records[where], others[where]).items()
        if not same
    ]


def _same(one: Record, other: Record) -> dict[str, bool]:
    return {
        "run": one.run == other.run,
        "figures": one.figures == other.figures,
        "accuracy by class": one.per_class == other.per_class,
    }


def main() -> None:
    """Make the tables, run all sides, compare; print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with caltech-101 in it")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--work", type=Path, required=True, help="folder for tables and runs, empty")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    source = options.data_root / ENTRY.folder
    split = read_coop_split(source / SPLIT_FILE, ENTRY.name)
    write_table(options.work / "named" / ENTRY.name, split, source / ENTRY.images, stems=True)
    shutil.copyfile(source / SPLIT_FILE, options.work / "named" / SPLIT_FILE)
    write_table(options.work / "parts" / ENTRY.name, split, source / ENTRY.images, stems=False)
    sides = {
        "folders": str(options.data_root),
        "table with file names": f"hub:{options.work / 'named'}",
        "table with the same parts": f"hub:{options.work / 'parts'}",
    }
    seconds = {
        side: round(run(root, options.work / side.replace(" ", "_"), options.backbone, options.epochs), 1)
        for side, root in sides.items()
    }
    first, *rest = (options.work / side.replace(" ", "_") for side in sides)
    different = {side.name: compare(first, side) for side in rest}
    found = {
        "images": {part: len(items) for part, items in split.parts().items()},
        "cores": os.cpu_count(),
        "seconds": seconds,
        "runs": sum(1 for _ in find_results(first)),
        "different": different,
        "figures": {str(w.relative_to(first)): r.headline() for w, r in find_results(first)},
        "origins": {side.name: next(find_results(side))[1].dataset["origin"] for side in (first, *rest)},
    }
    print(json.dumps(found, indent=1, ensure_ascii=False))
    raise SystemExit(1 if any(different.values()) else 0)


if __name__ == "__main__":
    main()
