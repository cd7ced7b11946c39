"""Grids for tests: a second dataset in a folder, and the tiny CLIP's config over both."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image
from tiny_runs import few_shot_config

from cma_tune.config import OptimConfig
from cma_tune.options import GridConfig

OPTIM = OptimConfig(epochs=2, batch_size=16, lr=0.05)
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}


def image_folder(root: Path, per_class: int = 3) -> str:
    """A dataset of four plain classes with train, val and test; its name for ``--dataset``."""
    for part_number, part in enumerate(("train", "val", "test")):
        for name, (red, green, blue) in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for index in range(per_class):
                colour = (red + 5 * index + part_number, green, blue)
                Image.new("RGB", (8, 8), colour).save(root / part / name / f"{index}.png")
    return f"folder:{root}"


def grid_config(output: Path, datasets: list[str], **changes: Any) -> GridConfig:
    """One shot, two seeds and two λ on every dataset, two steps each."""
    one = few_shot_config(output, shots=[1], seeds=[1, 2], weights=[0.0, 0.3], optim=OPTIM)
    content = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    return GridConfig(**{**content, "datasets": datasets, **changes})
