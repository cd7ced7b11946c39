"""One dataset's rows of the paper's Table 1, ours beside the published ones: what every script here runs.

python benchmarks/paper/dtd.py --data-root DATA                # the recipes of configs/, hours on a GPU
python benchmarks/paper/dtd.py --data-root DATA --protocols few-shot --seeds 1,2 --workers 2
python benchmarks/paper/dtd.py --data-root DATA --dry-run      # what is done, to do, missing
python benchmarks/paper/dtd.py --quick                         # a miniature of the dataset, a minute on a CPU
python benchmarks/paper/dtd.py --quick --output runs/quick     # and keep it

Few-shot: zero-shot, CoOp and CoOp + CMA with RN50 at 1 to 16 shots. Base-to-novel: novel accuracy by λ with
ViT-B/16. Each recipe is a grid, so a script that was killed goes on where it was. With --quick the figures
show that everything runs, and nothing else: drawn images, the embedded backbone, one epoch. They go to a
temporary folder if no other is named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cma_tune.cli import parse
from cma_tune.data.catalog import ENTRIES
from cma_tune.data.miniature import write_miniature
from cma_tune.errors import UserError
from cma_tune.options import GridConfig
from cma_tune.protocols.grid import grid
from cma_tune.protocols.grid_plan import plan
from cma_tune.records import Record, finished_record
from cma_tune.report import build_tables
from cma_tune.report.published import against_paper
from cma_tune.report.sheets import format_sheets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = {
    "few-shot": ("few_shot/coop_rn50.yaml", "few_shot/cma_rn50.yaml"),
    "base-to-novel": ("base_to_novel/cma_vit_b16.yaml",),
}

QUICK = (
    "--quick: drawn images, the embedded backbone, one epoch, and two training images per class whatever the "
    "shots of a row say; the figures show that everything runs, and nothing else"
)


def main(dataset: str, arguments: Sequence[str] | None = None) -> None:
    """Run the rows of `dataset` and print them beside the paper's.

    Raises:
        SystemExit: with 1, a run failed or data are missing; with 2, a mistake in the command.
    """
    parser = argparse.ArgumentParser(description=f"{dataset}: rows of the paper's Table 1, ours beside them.")
    parser.add_argument("--data-root", help="folder that holds the datasets' folders (default: data)")
    parser.add_argument("--output", help="folder of the results (default: runs/paper)")
    parser.add_argument(
        "--protocols", type=protocols, default=list(RECIPES), help=f"out of {','.join(RECIPES)}"
    )
    parser.add_argument(
        "--seeds", nargs="+", help="as 1,2,3; by default those of the recipes, which are these"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that share the runs, as in a grid")
    parser.add_argument("--dry-run", action="store_true", help="what is done, to do and missing")
    parser.add_argument("--format", choices=["text", "csv", "markdown", "latex"], default="text")
    parser.add_argument("--quick", action="store_true", help="a miniature and the embedded backbone")
    options = parser.parse_args(arguments)
    if options.quick and options.data_root is not None:
        parser.error("Expected no --data-root with --quick, which draws its own images; take one out.")
    try:
        if not options.quick:
            options.data_root, options.output = options.data_root or "data", options.output or "runs/paper"
            ended_well = run(dataset, options)
        else:
            with tempfile.TemporaryDirectory() as folder:
                options.output = options.output or f"{folder}/runs"
                data = Path(options.output) / "miniature"
                if not (data / ENTRIES[dataset].folder).is_dir():  # kept by an earlier call
                    write_miniature(dataset, data)
                options.data_root = str(data)
                ended_well = run(dataset, options)
                print(QUICK, file=sys.stderr)
    except UserError as error:
        print(f"{dataset}.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not ended_well:
        raise SystemExit(1)


def protocols(text: str) -> list[str]:
    """Names with commas between them.

    Raises:
        argparse.ArgumentTypeError: one is none.
    """
    names = text.split(",")
    if wrong := [name for name in names if name not in RECIPES]:
        raise argparse.ArgumentTypeError(f"Expected {' or '.join(RECIPES)}, got '{wrong[0]}'.")
    return names


def run(dataset: str, options: argparse.Namespace) -> bool:
    """Do the grids of a dataset's rows, and print what they gave.

    Args:
        dataset: one of the eleven.
        options: as `main` takes them.

    Returns:
        Whether every grid ended well; one that does not stops no other.

    Raises:
        UserError: see `grid`.
    """
    records: list[Record] = []
    ended_well = True
    for protocol in options.protocols:
        for name in RECIPES[protocol]:
            config = recipe(protocol, name, dataset, options)
            try:
                grid(config)
            except SystemExit:  # it has said why
                ended_well = False
            records += [one for task in plan(config) if (one := finished_record(task.run)) is not None]
    if records and not options.dry_run:
        print(format_sheets(against_paper(build_tables(records)), options.format), end="")
    return ended_well


def recipe(protocol: str, name: str, dataset: str, options: argparse.Namespace) -> GridConfig:
    """A recipe of configs/ as a grid over one dataset; zero-shot goes with the first of few-shot."""
    flags = {"config": CONFIGS / name, "dataset": dataset, "data-root": options.data_root}
    flags |= {"output": options.output, "workers": options.workers}
    if options.seeds:
        flags["seeds"] = ",".join(options.seeds)
    config = parse("grid", [protocol, *(f"--{flag}={value}" for flag, value in flags.items())])
    assert isinstance(config, GridConfig)
    zero_shot = name == RECIPES["few-shot"][0]
    config = replace(config, zero_shot=zero_shot, dry_run=options.dry_run)
    return quickly(config) if options.quick else config


def quickly(config: GridConfig) -> GridConfig:
    """The same grid on a miniature: its two training images per class stand for all shots of the recipe."""
    return replace(
        config,
        backbone="embedded",
        pretrained=None,
        shots=[config.shots[0], config.shots[-1]] if len(config.shots) > 1 else config.shots,
        seeds=config.seeds[:2],
        weights=[config.weights[0], config.weights[-1]] if len(config.weights) > 1 else config.weights,
        allow_fewer_shots=True,
        optim=replace(config.optim, epochs=1, batch_size=32),
        train_features="stored",
    )
