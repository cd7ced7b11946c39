"""A whole few-shot run on Caltech101, from images to record: live and stored against the plain path.

python benchmarks/speed/few_shot_run.py --data-root DATA --backbone local-dir:FOLDER

All sides run the same protocol over the same picks. The plain side sends all 77 tokens of every class through
the text tower and encodes fresh crops in every epoch; live does the latter only. Every side starts with an
empty store of image features; "stored, again" is a second run, with another λ, over the first one's store.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from speed_tools import PlainPrompts, arguments, leave, seconds
from torch import Tensor

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, LossConfig, OptimConfig, Precision
from cma_tune.learners import CoOp
from cma_tune.methods import MAKERS, Given, context_options
from cma_tune.protocols.few_shot import few_shot

MIXED: dict[str, Precision] = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


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


def main() -> None:
    """Measure every side once: a run is long enough."""
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    packed_maker = MAKERS["coop"]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for side, again in (("plain", False), ("live", False), ("stored", False), ("stored", True)):
            config = FewShotConfig(
                dataset="caltech101",
                data_root=options.data_root,
                backbone=options.backbone,
                output=f"{folder}/{side}{again}",
                features_dir=f"{folder}/features-{side}",
                shots=[options.shots],
                weights=[0.5 if again else 0.8],
                loss=LossConfig("mean", True),
                optim=OptimConfig(epochs=options.epochs),
                train_features="stored" if side == "stored" else "live",
                mixed_precision=MIXED[options.precision],
            )
            MAKERS["coop"] = plain_maker if side == "plain" else packed_maker
            PlainCoOp.times = 0
            setup = Setup(config)
            assert setup.backbone  # loading it is no part of the comparison
            total = seconds(lambda config=config, setup=setup: few_shot(config, setup))  # type: ignore[misc]
            record: dict[str, Any] = json.loads(next(Path(config.output).rglob("record.json")).read_text())
            rows.append(
                {
                    "run": "stored, again" if again else side,
                    "steps": record["training"]["steps"],
                    "training s": float(record["training"]["seconds_since_last_start"]),
                    "whole run s": total,
                    "whole run, times faster": float(rows[0]["whole run s"]) / total if rows else 1.0,  # type: ignore[arg-type]
                    "accuracy": record["figures"]["accuracy"],
                    "plain text steps": PlainCoOp.times,
                }
            )
            print(rows[-1], flush=True)
    for row in rows:
        row["training, times faster"] = float(rows[0]["training s"]) / float(row["training s"])  # type: ignore[arg-type]
    leave("few_shot_run", options, rows)


if __name__ == "__main__":
    main()
