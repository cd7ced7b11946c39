"""A run: one config with the sweep axes fixed, what makes it the same again, where it leaves its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Union

from cma_tune.config import FewShotConfig, ZeroShotConfig, entries
from cma_tune.files import slug
from cma_tune.method_facts import default_optimizer
from cma_tune.method_options import OptimConfig, resolved_loss
from cma_tune.recipes import recipe_epochs, recipe_weight

WHERE = ("output", "features_dir", "data_root")

HOW = (
    *("workers", "eval_batch_size", "compile", "image_memory", "text_chunk", "text_memory"),
    *("checkpoint_every", "resume", "tracker"),
)
"""With WHERE, the entries of a config that don't decide a run's result."""

ONLY: dict[str, Any] = {"optimizer": "sgd", "schedule": "cosine", "steps_per_shot": None}
"""Entries of the optimiser that came later, with what there was before."""


def identity_digest(identity: dict[str, Any]) -> str:
    """SHA-256 of what decides a run's result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One run of a protocol: its config with the sweep axes fixed.

    Attributes:
        protocol: zero-shot, few-shot or base-to-novel.
        config: the config; its lists hold one value each, and λ is a number.
    """

    protocol: str
    config: Union[ZeroShotConfig, FewShotConfig]  # noqa: UP007

    def identity(self) -> dict[str, Any]:
        """What decides the result: the config without where and how it is computed."""
        content = {name: value for name, value in entries(self.config).items() if name not in WHERE + HOW}
        if "optim" in content:
            # What once was the only way goes without saying: runs of that time are still the same.
            optim = content["optim"].items()
            content["optim"] = {name: value for name, value in optim if ONLY.get(name, ...) != value}
        return {"protocol": self.protocol, **content}

    def digest(self) -> str:
        """SHA-256 of the identity."""
        return identity_digest(self.identity())

    def prompt_folder(self) -> Path:
        """Where the run leaves its learned prompt."""
        return self.folder() / "prompt"

    def folder(self) -> Path:
        """Where the run leaves its record."""
        config = self.config
        place = Path(config.output) / self.protocol / slug(config.dataset) / slug(_backbone_name(config))
        if not isinstance(config, FewShotConfig):
            return place / "zero_shot"
        if config.select_weight:
            method = f"{config.learner}+cma-selected"
        else:
            weight = config.weights[0]
            method = config.learner if weight == 0 else f"{config.learner}+cma-{weight:g}"
        return place / method / f"shots{config.shots[0]}" / f"seed{config.seeds[0]}"


def _backbone_name(config: ZeroShotConfig) -> str:
    folder = backbone_folder(config.backbone)
    if folder is not None:
        return Path(folder).resolve().name
    return f"{config.backbone}-{Path(config.pretrained).stem}" if config.pretrained else config.backbone


def backbone_folder(name: str) -> str | None:
    """The folder in a backbone's name, if it is one."""
    kind, colon, folder = name.partition(":")
    return folder if colon and kind in ("local-dir", "transformers-dir") else None


def resolved_optim(config: FewShotConfig, shots: int) -> OptimConfig:
    """The optimiser with the method's own values where the config has none; epochs or steps per shot."""
    own = {"epochs": recipe_epochs(config.dataset, shots), **default_optimizer(config.learner)}
    given = {name: value for name, value in asdict(config.optim).items() if value is not None}
    if "epochs" in given:
        given["steps_per_shot"] = None
    elif "steps_per_shot" in given:
        given["epochs"] = None
    return OptimConfig(**{**own, **given})


def expand(protocol: str, config: FewShotConfig, own_weights: Mapping[int, float] | None = None) -> list[Run]:
    """The runs of a config: one for every combination of shots, seeds and λ, "recipe" resolved.

    Args:
        protocol: of the runs.
        config: with the axes.
        own_weights: what "recipe" is by shots (0: whatever the shots) on a dataset of the user's catalogue.

    Raises:
        UserError: the release has no λ for the dataset, and neither has the user's catalogue.
    """
    runs: dict[str, Run] = {}
    loss = resolved_loss(config.loss, of_release="recipe" in config.weights)
    for shots in config.shots:
        for weight in config.weights:
            is_recipe = isinstance(weight, str)
            number = recipe_weight(config.dataset, shots, own_weights) if is_recipe else float(weight)
            for seed in config.seeds:
                one = replace(
                    config,
                    shots=[shots],
                    seeds=[seed],
                    weights=[number],
                    select_weight=False,
                    loss=loss,
                    optim=resolved_optim(config, shots),
                )
                run = Run(protocol, one)
                runs[run.digest()] = run  # a number and "recipe" may mean the same λ
    return list(runs.values())
