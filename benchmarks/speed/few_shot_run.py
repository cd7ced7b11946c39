"""A whole few-shot run on Caltech101, from images to record: live and stored against the plain path.

python benchmarks/speed/few_shot_run.py --data-root DATA --backbone local-dir:FOLDER

All sides run the same protocol over the same picks. The plain side sends all 77 tokens of every class through
the text tower and encodes fresh crops in every epoch; live does the latter only. Every side starts with an
empty store of image features; "stored, again" is a second run, with another λ, over the first one's store.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from speed_options import leave, machine_options, parse, precision_option
from speed_tools import PlainPrompts, in_a_process_of_its_own, peak_memory
from torch import Tensor

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, LossConfig, OptimConfig, Precision
from cma_tune.errors import UserError
from cma_tune.learners import CoOp
from cma_tune.methods import MAKERS, Given, context_options
from cma_tune.protocols.few_shot import few_shot

MIXED: dict[str, Precision] = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
SIDES = ("plain", "live", "stored")


class PlainCoOp(CoOp):
    """CoOp over the plain text path; it counts how often."""

    times = 0

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """See `CoOp`."""
        if not hasattr(self, "plain"):
            self.plain = PlainPrompts(self)
        PlainCoOp.times += 1
        features: Tensor = self.plain(self.context)
        return features


def plain_maker(config: FewShotConfig, given: Given) -> PlainCoOp:
    """In place of the package's own CoOp."""
    return PlainCoOp(given.backbone, given.class_names, context_options(config), given.seed)


def whole_run(options: argparse.Namespace) -> dict[str, object]:
    """One side's run in this process: its figures, time and peak memory."""
    side, again = str(options.side), bool(options.again)
    config = FewShotConfig(
        dataset="caltech101",
        data_root=options.data_root,
        backbone=options.backbone,
        output=f"{options.folder}/{side}{again}",
        features_dir=f"{options.folder}/features-{side}",
        shots=[options.shots],
        weights=[0.5 if again else 0.8],
        loss=LossConfig("mean", True),
        optim=OptimConfig(epochs=options.epochs),
        train_features="stored" if side == "stored" else "live",
        mixed_precision=MIXED[options.precision],
    )
    setup = Setup(config)
    assert setup.backbone  # loading it is no part of the comparison
    maker = plain_maker if side == "plain" else MAKERS["coop"]
    with patch.dict(MAKERS, coop=maker):
        start = time.perf_counter()
        peak = peak_memory(lambda: few_shot(config, setup), options.device, every=0.02)
        total = time.perf_counter() - start
    record: dict[str, Any] = json.loads(next(Path(config.output).rglob("record.json")).read_text())
    return {
        "run": "stored, again" if again else side,
        "steps": record["training"]["steps"],
        "training s": float(record["training"]["seconds_since_last_start"]),
        "whole run s": total,
        "peak GB": peak / 1e9,
        "accuracy": record["figures"]["accuracy"],
        "plain text steps": PlainCoOp.times,
    }


def main() -> None:
    """Measure every side once, each in a process of its own: a run is long enough."""
    parser = machine_options(__doc__.splitlines()[0] if __doc__ else "")
    precision_option(parser)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--side", choices=SIDES, help="print one side's figures alone")
    parser.add_argument("--again", action="store_true", help="of --side: the run over a store that is there")
    parser.add_argument("--folder", help="of --side: results and stored features")
    options = parse(parser)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if options.side:
        if options.folder is None:
            parser.error("expected --folder with --side, got none")
        try:
            print(json.dumps(whole_run(options)))
        except UserError as error:
            raise SystemExit(str(error)) from None
        return
    rows: list[dict[str, Any]] = []
    names = ("device", "threads", "precision", "data_root", "backbone", "shots", "epochs")
    same = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    with tempfile.TemporaryDirectory() as folder:
        for side, again in (("plain", False), ("live", False), ("stored", False), ("stored", True)):
            own = (f"--side={side}", f"--folder={folder}", *(["--again"] if again else []))
            rows.append(in_a_process_of_its_own(*same, *own))
            for name in ("training", "whole run"):
                rows[-1][f"{name}, times faster"] = rows[0][f"{name} s"] / rows[-1][f"{name} s"]
            print(rows[-1], flush=True)
    leave("few_shot_run", options, rows)


if __name__ == "__main__":
    main()
