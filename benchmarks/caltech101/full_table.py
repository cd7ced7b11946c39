"""The full Caltech101 table with a small backbone: few-shot and base-to-novel at the reference's epochs.

python benchmarks/caltech101/full_table.py --data-root DATA --backbone local-dir:LITE_CLIP --output runs/table

Hours on two cores, so records of finished runs are kept in ``--records``, by default the repository's own.
What is there is not run again, whatever the machine, as long as the backbone is given by the same relative
path. Stop it at any moment and give the same command again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from cma_tune.cli import main as cma_tune

KEPT = Path(__file__).resolve().parents[1] / "results/caltech101_lite"
FORM = ["--loss.reduction=mean", "--loss.normalize=true", "--train-features=stored", "--views=10"]
SEEDS = (1, 2, 3)


def commands(common: list[str]) -> Iterator[list[str]]:
    """Command lines, what is done first in front."""
    few_shot = [*common, *FORM, "--weights=0,0.8", "--select-weight"]
    base_to_novel = [*common, *FORM, "--shots=16", "--weights=0,0.1,0.3,0.5,0.7,1"]
    yield ["zero-shot", *common]
    for shots in (1, 2, 4, 8):
        yield from (["few-shot", *few_shot, f"--shots={shots}", f"--seeds={seed}"] for seed in SEEDS)
    yield from (["base-to-novel", *base_to_novel, f"--seeds={seed}"] for seed in SEEDS)
    yield from (["few-shot", *few_shot, "--shots=16", f"--seeds={seed}"] for seed in SEEDS)


def copy_records(source: Path, target: Path) -> None:
    """Copy every ``record.json`` that `target` lacks."""
    for path in sorted(source.rglob("record.json")):
        place = target / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", default="runs/caltech101_lite")
    parser.add_argument("--records", type=Path, default=KEPT)
    parser.add_argument("--compile", action="store_true", help="the towers under torch.compile")
    options = parser.parse_args()
    output = Path(options.output)
    copy_records(options.records, output)
    common = [
        *("--dataset=caltech101", f"--data-root={options.data_root}", f"--backbone={options.backbone}"),
        *(f"--output={output}", f"--compile={str(options.compile).lower()}"),
    ]
    for line in commands(common):
        cma_tune(line)
        copy_records(output, options.records)


if __name__ == "__main__":
    main()
