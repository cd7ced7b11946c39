"""One dataset's rows of the paper's Table 1, ours beside the published ones: what every script here runs.

python benchmarks/paper/dtd.py --data-root DATA                # the recipes of configs/, hours on a GPU
python benchmarks/paper/dtd.py --data-root DATA --protocols few-shot --seeds 1
python benchmarks/paper/dtd.py --quick                         # a miniature of the dataset, a minute on a CPU

Few-shot: zero-shot, CoOp and CoOp + CMA with RN50 at 1 to 16 shots. Base-to-novel: novel accuracy by λ with
ViT-B/16. A script that was killed goes on where it was. With --quick the figures show that everything runs,
and nothing else: drawn images, the embedded backbone, one epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cma_tune.build import Setup
from cma_tune.cli import parse
from cma_tune.config import BaseToNovelConfig, FewShotConfig, ZeroShotConfig, shared_entries
from cma_tune.data.miniature import write_miniature
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import Record
from cma_tune.report import build_tables
from cma_tune.report.published import against_paper
from cma_tune.report.sheets import format_sheets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = {
    "few-shot": ("few_shot/coop_rn50.yaml", "few_shot/cma_rn50.yaml"),
    "base-to-novel": ("base_to_novel/cma_vit_b16.yaml",),
}


def main(dataset: str, arguments: Sequence[str] | None = None) -> None:
    """Run the rows of `dataset` and print them beside the paper's."""
    parser = argparse.ArgumentParser(description=f"{dataset}: rows of the paper's Table 1, ours beside them.")
    parser.add_argument("--data-root", default="data", help="folder that holds the datasets' folders")
    parser.add_argument("--output", default="runs/paper", help="folder of the results")
    parser.add_argument("--protocols", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, help="by default those of the recipes: 1 2 3")
    parser.add_argument("--format", choices=["text", "csv", "markdown", "latex"], default="text")
    parser.add_argument("--quick", action="store_true", help="a miniature and the embedded backbone")
    options = parser.parse_args(arguments)
    if not options.quick:
        records = run(dataset, options.protocols, options.data_root, options.output, options.seeds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_miniature(dataset, Path(folder) / "data")
            records = run(dataset, options.protocols, f"{folder}/data", f"{folder}/runs", options.seeds, True)
    print(format_sheets(against_paper(build_tables(records)), options.format), end="")


def run(
    dataset: str,
    protocols: Sequence[str],
    data_root: str,
    output: str,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
) -> list[Record]:
    """The records of a dataset's rows.

    Args:
        dataset: one of the eleven.
        protocols: "few-shot", "base-to-novel" or both.
        data_root: folder that holds the datasets' folders.
        output: folder of the results.
        seeds: in place of the recipes'.
        quick: a small backbone, few λ and one epoch in place of the recipes'.

    Raises:
        UserError: the dataset is not there; see also the protocols.
    """
    records: list[Record] = []
    for protocol in protocols:
        setup: Setup | None = None
        for name in RECIPES[protocol]:
            config = recipe(protocol, name, dataset, data_root, output)
            config = replace(config, seeds=list(seeds)) if seeds else config
            config = quickly(config) if quick else config
            setup = Setup(config, backbone=setup.backbone if setup else None)
            if isinstance(config, BaseToNovelConfig):
                records += base_to_novel(config, setup)
                continue
            if not records:
                records.append(zero_shot(zero_shot_of(config), setup))
            records += few_shot(config, setup)
    return records


def recipe(protocol: str, name: str, dataset: str, data_root: str, output: str) -> FewShotConfig:
    """A recipe of configs/ for one dataset."""
    flags = {"config": CONFIGS / name, "dataset": dataset, "data-root": data_root, "output": output}
    config = parse(protocol, [f"--{flag}={value}" for flag, value in flags.items()])
    assert isinstance(config, FewShotConfig)
    return config


def zero_shot_of(config: FewShotConfig) -> ZeroShotConfig:
    """The zero-shot run that stands beside a few-shot config."""
    return ZeroShotConfig(**shared_entries(ZeroShotConfig, config))


def quickly(config: FewShotConfig) -> FewShotConfig:
    """The same run on a miniature: its two training images per class stand for all shots of the recipe."""
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
