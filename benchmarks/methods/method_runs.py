"""Every method without the CMA loss and with it: one process for each method and number of shots.

python benchmarks/methods/method_runs.py --dataset shapes --epochs 4:25,16:20
python benchmarks/methods/method_runs.py --dataset caltech101 --data-root DATA --backbone BACKBONE \
    --frozen-images --epochs 1:30,4:15,16:5

Three seeds; 1, 4 and 16 shots, and base-to-novel at 16 shots for methods that go to other classes; λ = 0, two
others, and the choice among the three on the few-shot validation images. The figures go to a table (CSV) that
`method_page.py` reads; what is there is not run again. What a method costs is measured by `method_costs.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from method_rows import FIGURES, Cell, Row, read_rows, write_rows

from cma_tune.method_facts import OPTIMIZERS, OWN_CLASSES, TRAINS_IMAGES, UNTRAINED
from cma_tune.method_options import LearnerName
from cma_tune.records import Record, find_records

RESULTS = Path(__file__).resolve().parents[1] / "results/methods"
SHOTS = (1, 4, 16)
SEEDS = (1, 2, 3)
WEIGHTS = (0.0, 0.3, 0.7)
FORM = ("--loss.reduction=mean", "--loss.normalize=true", "--context.tokens=4")
UNCROPPED = ("linear_probe", "linear_probe_text", "cross_modal_probe", "lp_plus_plus")
"""Methods whose recipes have features of the test transform; the others get ten random crops of an image."""
FEW_EPOCHS: dict[int, tuple[str, ...]] = {4: ("--optim.epochs=3",), 16: ("--optim.epochs=2",)}
OWN: dict[str, dict[int, tuple[str, ...]]] = {
    "cocoop": {
        1: ("--optim.batch_size=1", "--optim.epochs=10"),
        4: ("--optim.batch_size=1", "--optim.epochs=5"),
        16: ("--optim.batch_size=1", "--optim.epochs=2"),
    },
    "lora": {
        1: ("--optim.steps_per_shot=50",),
        4: ("--optim.steps_per_shot=20",),
        16: ("--optim.steps_per_shot=5",),
    },
    "vpt": FEW_EPOCHS,
    "ivlp": FEW_EPOCHS,
    "maple": FEW_EPOCHS,
    "promptsrc": {4: ("--optim.epochs=5",), 16: ("--optim.epochs=2",)},
}
"""Flags of single methods by shots: CoCoOp's batches of one image, which its memory asks for, with its ten
epochs or fewer; a tenth or less of the 500 steps a shot that LoRA takes, which would be days here; fewer than
the 5 epochs of VPT, IVLP and MaPLe and PromptSRC's 20, whose images go through the tower in every step."""
TEXT_ALONE = ("--lora.towers=text",)
"""Of LoRA where the image tower has to stay as it is."""


def cells(methods: Sequence[str]) -> Iterator[Cell]:
    """What is to be run, few-shot of all methods first."""
    for shots in SHOTS:
        for method in methods:
            yield Cell(method, "few-shot", shots)
    for method in methods:
        if method not in OWN_CLASSES:
            yield Cell(method, "base-to-novel", 16)


def methods_of(only: str | None, frozen_images: bool) -> list[str]:
    """The methods that are asked for, or all that can run.

    Args:
        only: their names, with commas between them.
        frozen_images: the image tower is not one that a method can change.
    """
    if only is not None:
        return only.split(",")
    every = get_args(LearnerName)
    return [name for name in every if not (frozen_images and name in TRAINS_IMAGES and name != "lora")]


def epochs_by_shots(text: str) -> dict[int, int]:
    """Epochs by shots out of a text such as 4:25,16:20.

    Raises:
        argparse.ArgumentTypeError: it is no such text.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {int(shots): int(epochs) for shots, epochs in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected shots and epochs such as 4:25,16:20, got {text}"
        ) from error


def own_flags(cell: Cell, frozen_images: bool, epochs: Mapping[int, int]) -> tuple[str, ...]:
    """Flags of one method at these shots.

    `epochs` are for the methods that go by CoOp's epochs, and for TCP, which goes through the text tower as
    they do; the others' own are few or cost little.
    """
    if cell.method in OWN:
        alone = TEXT_ALONE if cell.method == "lora" and frozen_images else ()
        return (*OWN[cell.method].get(cell.shots, ()), *alone)
    if cell.shots in epochs and ("epochs" not in OPTIMIZERS.get(cell.method, {}) or cell.method == "tcp"):
        return (f"--optim.epochs={epochs[cell.shots]}",)
    return ()


def command(
    cell: Cell,
    common: Sequence[str],
    frozen_images: bool = False,
    seeds: Sequence[int] = SEEDS,
    weights: Sequence[float] = WEIGHTS,
    epochs: Mapping[int, int] | None = None,
) -> list[str]:
    """The command line of all seeds and λ of a cell."""
    weights = weights[:1] if cell.method in UNTRAINED else weights
    features: tuple[str, ...] = ()
    if frozen_images or cell.method not in TRAINS_IMAGES:
        features = ("--train-features=stored", f"--views={0 if cell.method in UNCROPPED else 10}")
    own = own_flags(cell, frozen_images, epochs or {})
    return [
        *(
            sys.executable,
            "-m",
            "cma_tune",
            cell.protocol,
            f"--learner={cell.method}",
            f"--shots={cell.shots}",
        ),
        *(f"--seeds={','.join(map(str, seeds))}", f"--weights={','.join(f'{w:g}' for w in weights)}"),
        *(["--select-weight"] if len(weights) > 2 else []),
        *(*FORM, *features, *own, *common),
    ]


def measured(line: Sequence[str], log: Path) -> tuple[float, float]:
    """Run a command to its end: wall time in s, peak resident memory of its process in MiB.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    with open(log, "ab") as handle:
        process = subprocess.Popen(line, stdout=handle, stderr=handle)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"Expected {' '.join(line)} to succeed, but it failed; see {log}.")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def row(record: Record, cell: Cell) -> Row:
    """A run's line of the table."""
    figures = {name: record.figures[name] for name in FIGURES if name in record.figures}
    return Row(cell, record.seed, record.weight, record.selection is not None, figures)


def of_cell(output: Path, cell: Cell) -> list[Record]:
    """The records of a cell that are there."""
    records = find_records(output) if any(output.rglob("record.json")) else ()
    wanted = (cell.method, cell.protocol, cell.shots)
    return [record for record in records if (record.learner, record.protocol, record.shots) == wanted]


def parser_for(description: str) -> argparse.ArgumentParser:
    """What this script and `method_costs.py` take."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--only", help="methods, with commas between them")
    parser.add_argument(
        "--frozen-images",
        action="store_true",
        help="no method changes the image tower; LoRA takes the text's",
    )
    parser.add_argument("--table", type=Path, help="by default the repository's own")
    return parser


def epochs_option(parser: argparse.ArgumentParser) -> None:
    """Fewer epochs than the methods' own."""
    parser.add_argument(
        "--epochs",
        type=epochs_by_shots,
        default={},
        help="of text prompts and probes by shots, such as 4:25,16:20; else each method's own",
    )


def flags_of(options: argparse.Namespace) -> list[str]:
    """Dataset and backbone as `cma-tune` takes them."""
    place = [f"--dataset={options.dataset}", f"--data-root={options.data_root}"]
    return [*place, f"--backbone={options.backbone}"]


def main() -> None:
    """Run what the table lacks."""
    parser = parser_for(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    epochs_option(parser)
    parser.add_argument(
        "--cells", default="1,4,16,novel", help="shots, and novel for base-to-novel, with commas between them"
    )
    options = parser.parse_args()
    table = options.table or RESULTS / f"{options.dataset}.csv"
    output = options.output / options.dataset
    output.mkdir(parents=True, exist_ok=True)
    common = [*flags_of(options), f"--output={output}"]
    wanted = options.cells.split(",")
    for cell in cells(methods_of(options.only, options.frozen_images)):
        if ("novel" if cell.protocol == "base-to-novel" else str(cell.shots)) not in wanted:
            continue
        if any(one.cell == cell for one in read_rows(table)):
            continue
        line = command(cell, common, options.frozen_images, epochs=options.epochs)
        seconds, peak = measured(line, output / "log.txt")
        print(
            f"{cell.method}, {cell.protocol}, {cell.shots} shots: {seconds:.0f} s, {peak:.0f} MiB", flush=True
        )
        added = [row(one, cell) for one in of_cell(output, cell)]
        # Read again: another process may have added its own meanwhile.
        write_rows(table, [*read_rows(table), *added])


if __name__ == "__main__":
    main()
