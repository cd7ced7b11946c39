"""What every method costs without the CMA loss and with it: time of an epoch and a run at 16 shots, memory.

python benchmarks/methods/method_costs.py --dataset shapes --epochs 16:20
python benchmarks/methods/method_costs.py --dataset caltech101 --data-root DATA --backbone BACKBONE \
    --frozen-images --epochs 16:5

The runs of the table (the same epochs) once more, one process for each method, two seeds of which the quicker
counts: the machine should have nothing else to do. Stored features are there before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from method_rows import Cell, Cost, read_costs, write_costs
from method_runs import (
    RESULTS,
    WEIGHTS,
    command,
    epochs_option,
    flags_of,
    measured,
    methods_of,
    of_cell,
    parser_for,
)

from cma_tune.data.batches import epoch_order
from cma_tune.records import Record


def cost(
    method: str, common: list[str], frozen_images: bool, epochs: Mapping[int, int], output: Path
) -> Cost:
    """Run one method on two seeds and look at the quicker of each side."""
    cell = Cell(method, "few-shot", 16)
    own = [*common, f"--output={output}"]
    line = command(cell, own, frozen_images, (1, 2), (WEIGHTS[0], WEIGHTS[-1]), epochs)
    _, peak = measured(line, output / "log.txt")
    sides: dict[bool, list[Record]] = {}
    for record in of_cell(output, cell):
        sides.setdefault(record.weight > 0, []).append(record)
    passes = epochs_of(sides[False][0])

    def quickest(records: Sequence[Record], key: str) -> float:
        return min(float(record.training[key]) for record in records)

    seconds = {
        side: quickest(records, "seconds_since_last_start") / (passes or 1) for side, records in sides.items()
    }
    whole = quickest(sides[False], "wall_seconds_since_last_start")
    return Cost(method, passes, seconds[False], seconds.get(True), whole, peak)


def epochs_of(record: Record) -> float:
    """How many times a run went through its training images; 0 if it trained nothing."""
    images, batch_size = int(record.training["train_images"]), int(record.config["optim"]["batch_size"])
    return int(record.training["steps"]) / len(epoch_order(images, batch_size, 0, 0))


def main() -> None:
    """Measure what the table lacks."""
    parser = parser_for(__doc__)
    parser.add_argument("--features", type=Path, help="by default those that method_runs.py stored")
    epochs_option(parser)
    options = parser.parse_args()
    table = options.table or RESULTS / f"{options.dataset}_costs.csv"
    features = options.features or Path("runs/methods") / options.dataset / "features"
    common = [*flags_of(options), f"--features-dir={features.resolve()}"]
    for method in methods_of(options.only, options.frozen_images):
        costs = read_costs(table)
        if any(one.method == method for one in costs):
            continue
        with tempfile.TemporaryDirectory() as folder:
            one = cost(method, common, options.frozen_images, options.epochs, Path(folder))
        print(
            f"{method}: {one.seconds:.3f} s an epoch, {one.run:.1f} s a run, {one.peak_mib:.0f} MiB",
            flush=True,
        )
        write_costs(table, [*costs, one])


if __name__ == "__main__":
    main()
