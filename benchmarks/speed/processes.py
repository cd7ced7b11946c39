"""CoOp's text step with the classes split over processes: two of one thread each against one.

python benchmarks/speed/processes.py

Both sides run the packed path, forward and backward, on the same processes: alone, the first does all classes
while the others wait; together, each does its share, and features are gathered with their gradients.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from speed_options import leave, numbers, parse, timing_options
from speed_tools import random_backbone, real_names, seconds
from torch.multiprocessing.spawn import spawn

from cma_tune.clip.backbone import TextOptions
from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextOptions

TOKENS = 16


def worker(rank: int, folder: str, options: argparse.Namespace) -> None:
    """One of the processes; the first writes what it measured."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    rows = [measure(rank, classes, options) for classes in options.classes]
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


def measure(rank: int, classes: int, options: argparse.Namespace) -> dict[str, object]:
    """Both sides in turns at so many classes; they are checked to give the same features."""
    backbone = random_backbone(options.model)
    learner = CoOp(backbone, real_names(classes), ContextOptions(TOKENS))
    found = {}
    best = {"alone": float("inf"), "together": float("inf")}
    for turn in range(options.repeats + 1):  # the first warms up
        for side in best:
            backbone.text_options = TextOptions(split_over_processes=side == "together")
            dist.barrier()
            if rank == 0 or side == "together":
                time = seconds(lambda: learner.text_features().sum().backward())
                best[side] = min(best[side], time) if turn else best[side]
                with torch.no_grad():
                    found[side] = learner.text_features()
            dist.barrier()
    if rank == 0:
        torch.testing.assert_close(found["together"], found["alone"], rtol=0, atol=1e-5)
    return {
        "classes": classes,
        "context tokens": TOKENS,
        "processes": options.processes,
        "one process s": best["alone"],
        "all processes s": best["together"],
        "times faster": best["alone"] / best["together"],
    }


def main() -> None:
    """Print one line per number of classes."""
    parser = timing_options(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="ViT-B-16", help="an open_clip model")
    parser.add_argument("--classes", type=numbers, default=[100, 397, 1000])
    parser.add_argument("--processes", type=int, default=2)
    options = parse(parser)
    if options.device != "cpu":
        parser.error("expected --device cpu: this compares processes that share one machine's cores")
    options.threads = 1
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (folder, options), nprocs=options.processes)
        rows = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
    leave("processes", options, rows)


if __name__ == "__main__":
    main()
