"""Both protocols over all eleven miniatures as grids that are killed twice; the tables they end in.

python benchmarks/grid/killed_grid.py --work FOLDER

Makes a miniature of each dataset, runs `cma-tune grid few-shot` and `cma-tune grid base-to-novel` on them
(2 shots, 2 seeds, λ 0 and the release's, embedded backbone, few epochs), kills the whole process group at a
third and at two thirds of the runs, and starts the same command again each time. Then it checks that nothing
is left to do and that the figures of some datasets are those of a grid that was never killed, and writes the
report. The images are drawn: the figures show that everything runs, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cma_tune.data.miniature import write_miniature
from cma_tune.protocols.grid_plan import ELEVEN
from cma_tune.records import find_results

RUNS_PER_DATASET = {"few-shot": 5, "base-to-novel": 4}
"""Two seeds times two λ; few-shot has zero-shot beside them."""

NEVER_KILLED = ("eurosat", "oxford_pets")
"""Datasets whose grid is also run without a kill, over a store of features of its own."""

REPORTS = {"text": "report.txt", "csv": "report.csv", "markdown": "report.md", "latex": "report.tex"}

CMA_TUNE = (sys.executable, "-m", "cma_tune")


def command(protocol: str, datasets: Sequence[str], work: Path, output: str, epochs: int) -> list[str]:
    """The grid's command line."""
    return [
        *(*CMA_TUNE, "grid", protocol, f"--datasets={','.join(datasets)}"),
        *(f"--data-root={work / 'data'}", f"--output={work / output}"),
        *("--shots=2", "--seeds=1,2", "--weights=0,recipe"),
        *(f"--optim.epochs={epochs}", "--train-features=stored"),
        *(["--zero-shot"] if protocol == "few-shot" else []),
    ]


def finished(folder: Path) -> int:
    """How many runs are finished."""
    return sum(1 for _ in folder.rglob("record.json"))


def run_with_kills(line: list[str], output: Path, kills: Sequence[int], log: Path) -> tuple[list[int], float]:
    """Run to the end, killing the process group when so many runs are finished.

    Returns:
        How many were finished at the kills; the largest resident set of its processes, in MiB.

    Raises:
        SystemExit: the grid ended before a kill, or failed.
    """
    before, seen, peak = finished(output), [], 0.0
    for kill in kills:
        process = _start(line, log)
        while process.poll() is None and finished(output) - before < kill:
            time.sleep(0.05)
        if process.poll() is not None:
            raise SystemExit(f"Expected to kill the grid at {kill} runs, but it ended before; see {log}.")
        os.killpg(process.pid, signal.SIGKILL)
        peak = max(peak, _end(process)[1])
        seen.append(finished(output) - before)
    status, last = _end(_start(line, log))
    if status:
        raise SystemExit(f"Expected the grid to end without a failed run; see {log}.")
    return seen, max(peak, last)


def _end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for one grid: its status, and the resident set of the largest of its processes in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


def _start(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as handle:
        return subprocess.Popen(line, stdout=handle, stderr=handle, start_new_session=True)


def check_nothing_left(line: list[str], runs: int) -> None:
    """Ask the grid itself.

    Raises:
        SystemExit: it says otherwise.
    """
    said = subprocess.run([*line, "--dry-run"], check=True, capture_output=True, text=True).stdout
    if f"{runs} runs: {runs} done, 0 to do" not in said:
        raise SystemExit(f"Expected {runs} runs, all done, but the grid says: {said.splitlines()[-1]}")


def check_equal(killed: Path, whole: Path) -> int:
    """Number of runs below `whole`, whose figures have to be those below `killed`.

    Raises:
        SystemExit: they are not.
    """
    figures = {where.relative_to(killed): record.figures for where, record in find_results(killed)}
    expected = {where.relative_to(whole): record.figures for where, record in find_results(whole)}
    different = [str(where) for where in expected if figures.get(where) != expected[where]]
    if different:
        raise SystemExit(f"Expected the figures of a grid that was never killed, got others: {different}.")
    return len(expected)


def main() -> None:
    """Make the miniatures, run and kill the grids, compare, report, print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs, empty")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--datasets", nargs="+", default=list(ELEVEN), choices=ELEVEN, metavar="NAME")
    options = parser.parse_args()
    work, names = options.work.resolve(), options.datasets
    measured: dict[str, object] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    started = time.perf_counter()
    for name in names:
        write_miniature(name, work / "data")
    measured["miniatures: seconds"] = round(time.perf_counter() - started, 1)
    whole = [name for name in NEVER_KILLED if name in names] or names[:1]
    for protocol, per_dataset in RUNS_PER_DATASET.items():
        runs, started = per_dataset * len(names), time.perf_counter()
        line = command(protocol, names, work, "runs", options.epochs)
        log = work / f"{protocol}.log"
        killed, peak = run_with_kills(line, work / "runs", [runs // 3, 2 * runs // 3], log)
        seconds = time.perf_counter() - started
        check_nothing_left(line, runs)
        measured[protocol] = {
            "runs": runs,
            "finished when killed": killed,
            "seconds, kills and restarts with it": round(seconds, 1),
            "peak resident set, MiB": round(peak),
        }
        subprocess.run(
            command(protocol, whole, work, "whole", options.epochs), check=True, stdout=subprocess.DEVNULL
        )
    measured["runs with the figures of a grid never killed"] = check_equal(work / "runs", work / "whole")
    for form, file in REPORTS.items():
        with open(work / file, "wb") as handle:
            subprocess.run(
                [*CMA_TUNE, "report", work / "runs", f"--format={form}", "--against=paper"],
                check=True,
                stdout=handle,
            )
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
