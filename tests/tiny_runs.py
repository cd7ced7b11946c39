"""Whole runs in a second: a tiny random CLIP in a folder, and configs that train on it for a few steps."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor

from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.config import BaseToNovelConfig, ContextConfig, FewShotConfig, LossConfig, OptimConfig
from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextOptions

# Runs of these tests are compared to loops on the CPU, on machines with a GPU too.
os.environ["ACCELERATE_USE_CPU"] = "true"

VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
TEXT: dict[str, Any] = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
FEATURES = 12
CONTEXT = 3

Config = TypeVar("Config", bound=FewShotConfig)


def write_tiny_clip(folder: Path) -> Path:
    """A randomly initialised CLIP as a folder that ``local-dir:`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(FEATURES, CLIPVisionCfg(**VISION), CLIPTextCfg(**TEXT))
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.1 * torch.randn_like(tensor))
            model.logit_scale.fill_(2.5)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    content = {
        "model_cfg": {"embed_dim": FEATURES, "vision_cfg": VISION, "text_cfg": TEXT},
        "preprocess_cfg": preprocessing,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


@cache
def tiny_clip() -> Path:
    """The tiny CLIP's folder, for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-clip-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny_clip(folder)


@cache
def backbone() -> Backbone:
    """The tiny CLIP, loaded; one object for all tests, since it is frozen."""
    return load_backbone(f"local-dir:{tiny_clip()}")


def few_shot_config(output: Path, **changes: Any) -> FewShotConfig:
    """Few-shot on `digits`: 3 shots in batches of 7, so 3 epochs of 4 steps."""
    return _tiny(FewShotConfig(dataset="digits", shots=[3]), output, changes)


def base_to_novel_config(output: Path, **changes: Any) -> BaseToNovelConfig:
    """Base-to-novel on `shapes`: 2 shots of 16 base classes in batches of 7, so 3 epochs of 4 steps."""
    return _tiny(BaseToNovelConfig(dataset="shapes", shots=[2]), output, changes)


def _tiny(config: Config, output: Path, changes: dict[str, Any]) -> Config:
    tiny: dict[str, Any] = {
        "backbone": f"local-dir:{tiny_clip()}",
        "output": str(output),
        "features_dir": str(tiny_clip() / "features"),  # encoded once for all tests of this process
        "context": ContextConfig(tokens=CONTEXT),
        "loss": LossConfig("mean", True),
        "optim": OptimConfig(epochs=3, batch_size=7, lr=0.05),
        "train_features": "stored",
    }
    return replace(config, **{**tiny, **changes})


def cpu() -> Accelerator:
    """One process on the CPU."""
    return Accelerator(cpu=True)


def coop(class_names: tuple[str, ...] = ("cat", "red dog", "ship"), seed: int = 0) -> CoOp:
    """An untrained learner."""
    return CoOp(backbone(), class_names, ContextOptions(tokens=CONTEXT), seed=seed)


def random_features(count: int, classes: int, seed: int = 0, views: int = 1) -> tuple[Tensor, Tensor]:
    """Unit features ``[views, count, FEATURES]`` and labels ``[count]``."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(views, count, FEATURES, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.nn.functional.normalize(features, dim=-1), labels
