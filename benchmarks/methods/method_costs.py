"""What every method costs without the CMA loss and with it: seconds an epoch at 16 shots, peak memory.

python benchmarks/methods/method_costs.py --dataset shapes
python benchmarks/methods/method_costs.py --dataset caltech101 --data-root DATA --backbone BACKBONE \
    --frozen-images

One process for each method, some epochs twice, of which the quicker time counts: the machine should have
nothing else to do. Features of the images that a method can store are stored before.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from method_rows import Cell, Cost, read_costs, write_costs
from method_runs import RESULTS, WEIGHTS, command, flags_of, measured, methods_of, of_cell, parser_for


def cost(method: str, common: list[str], frozen_images: bool, epochs: int, output: Path) -> Cost:
    """Run one method on two seeds and look at the quicker of each side."""
    cell = Cell(method, "few-shot", 16)
    own = [*common, f"--output={output}", f"--optim.epochs={epochs}"]
    line = command(cell, own, frozen_images, (1, 2), (WEIGHTS[0], WEIGHTS[-1]))
    _, peak = measured(line, output / "log.txt")
    sides: dict[bool, list[float]] = {}
    for record in of_cell(output, cell):
        sides.setdefault(record.weight > 0, []).append(float(record.training["seconds_since_last_start"]))
    seconds = {side: min(times) / epochs for side, times in sides.items()}
    return Cost(method, seconds[False], seconds.get(True), peak)


def main() -> None:
    """Measure what the table lacks."""
    parser = parser_for(__doc__)
    parser.add_argument("--features", type=Path, default=Path("runs/methods/features"))
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    table = options.table or RESULTS / f"{options.dataset}_costs.csv"
    common = [*flags_of(options), f"--features-dir={options.features.resolve()}"]
    for method in methods_of(options.only, options.frozen_images):
        costs = read_costs(table)
        if any(one.method == method for one in costs):
            continue
        with tempfile.TemporaryDirectory() as folder:
            one = cost(method, common, options.frozen_images, options.epochs, Path(folder))
        print(f"{method}: {one.seconds:.3f} s an epoch, {one.peak_mib:.0f} MiB", flush=True)
        write_costs(table, [*costs, one])


if __name__ == "__main__":
    main()
