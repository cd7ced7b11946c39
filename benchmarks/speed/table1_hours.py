"""Hours of the whole of the paper's Table 1, estimated from measured parts: plain, live and stored.

python benchmarks/speed/text_step.py --output PLACE
python benchmarks/speed/training_step.py --output PLACE
python benchmarks/speed/table1_hours.py PLACE

11 datasets: few-shot at 5 numbers of shots, 3 seeds and 2 methods, and base-to-novel at 16 shots, 11 λ and
3 seeds, with the reference's epochs and batches. A run is its training steps and the test images through the
image tower; with stored features these go through it once per dataset, and ten crops of every training image
once per seed and shots. The text side is ViT-B/16's for every backbone; RN50's text tower has the same
width, heads and blocks. Reading and decoding images is left out on all sides: worker processes do it beside.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from speed_options import PRECISIONS, RESULTS, folder, suffix, write

from cma_tune.data.catalog import CATALOG
from cma_tune.recipes import RELEASE_WEIGHTS, recipe_epochs

SHOTS = (1, 2, 4, 8, 16)
SEEDS = 3
METHODS = 2
WEIGHTS = 11
BATCH = 32
VIEWS = 10
TOKENS = 16
MEASURED = ("text_step", "training_step")
MEASURED_CLASSES = 100
"""Those of training_step.py."""


@dataclass(frozen=True)
class Parts:
    """What was measured over one backbone, in seconds.

    Attributes:
        text: CoOp's text step by side (plain, packed) and classes.
        step: a training step of 100 classes by side (plain, live, stored).
    """

    text: Mapping[str, Mapping[int, float]]
    step: Mapping[str, float]

    def image(self) -> float:
        """One image through the image tower: what live steps have and stored ones have not."""
        return max(0.0, self.step["live"] - self.step["stored"]) / BATCH

    def step_of(self, side: str, classes: int) -> float:
        """A training step with so many classes: the text side changes with them, the rest stays."""
        text = self.text["plain" if side == "plain" else "packed"]
        rest = self.step[side] - between(text, MEASURED_CLASSES)
        return between(text, classes) + max(0.0, rest)


def between(measured: Mapping[int, float], classes: int) -> float:
    """Seconds at this many classes, on straight lines between and beyond those that were measured."""
    known = sorted(measured)
    pairs = list(pairwise(known))
    low, high = next((pair for pair in pairs if classes <= pair[1]), pairs[-1])
    share = (classes - low) / (high - low)
    return max(0.0, measured[low] + share * (measured[high] - measured[low]))


def hours(parts: Parts, side: str) -> tuple[float, float]:
    """Few-shot and base-to-novel of all datasets."""
    few_shot = base_to_novel = 0.0
    for name in RELEASE_WEIGHTS:  # the eleven
        classes, test = CATALOG[name].classes, CATALOG[name].sizes[2]
        base = (classes + 1) // 2
        tested = test * parts.image()
        seen = sum(steps(name, classes, shots) for shots in SHOTS) * parts.step_of(side, classes)
        learned = steps(name, base, SHOTS[-1]) * parts.step_of(side, base)
        runs, novel_runs = SEEDS * METHODS, SEEDS * WEIGHTS
        few_shot += runs * seen
        base_to_novel += novel_runs * learned
        if side == "stored":
            few_shot += tested + SEEDS * VIEWS * classes * sum(SHOTS) * parts.image()
        else:
            few_shot += runs * len(SHOTS) * tested
            base_to_novel += novel_runs * tested
    return few_shot / 3600, base_to_novel / 3600


def steps(name: str, classes: int, shots: int) -> int:
    """Training steps of one run."""
    return recipe_epochs(name, shots) * math.ceil(classes * shots / BATCH)


def parts_by_backbone(
    text_rows: Sequence[Mapping[str, Any]], step_rows: Sequence[Mapping[str, Any]]
) -> dict[str, Parts]:
    """The measured parts out of the rows of both benchmarks."""
    text = {
        side: {row["classes"]: row[f"{side} s"] for row in text_rows if row["context tokens"] == TOKENS}
        for side in ("plain", "packed")
    }
    sides = ("plain", "live", "stored")
    return {row["backbone"]: Parts(text, {side: row[f"{side} s"] for side in sides}) for row in step_rows}


def content_of(path: Path) -> dict[str, Any]:
    """What one benchmark left.

    Raises:
        SystemExit: there is no such file.
    """
    if not path.is_file():
        raise SystemExit(f"Expected the figures of a benchmark in {path}, got no such file; run it first.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Print the estimate of every backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="with the JSON files of text_step.py and training_step.py")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of the figures")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--output", type=folder, help=f"folder for the estimate as JSON, such as {RESULTS}")
    options = parser.parse_args()
    ending = suffix(options.device, options.precision)
    about = {name: content_of(options.folder / f"{name}{ending}.json") for name in MEASURED}
    measured_rows = [about[name].pop("rows") for name in MEASURED]
    rows: list[dict[str, object]] = []
    for backbone, parts in parts_by_backbone(*measured_rows).items():
        for side in ("plain", "live", "stored"):
            few_shot, base_to_novel = hours(parts, side)
            total = few_shot + base_to_novel
            rows.append(
                {
                    "backbone": backbone,
                    "side": side,
                    "few-shot h": few_shot,
                    "base-to-novel h": base_to_novel,
                    "both h": total,
                }
            )
    write(f"table1_hours{ending}.json", options.output, {"measured": about}, rows)


if __name__ == "__main__":
    main()
