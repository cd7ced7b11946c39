"""What cross-dataset tests: the prompts of few-shot runs, or one that was saved, and runs that test them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, ZeroShotConfig, entries, shared_entries
from cma_tune.errors import UserError, typed
from cma_tune.files import slug
from cma_tune.learners.cards import prompt_folder
from cma_tune.method_facts import default_optimizer
from cma_tune.method_options import PAPER_FORM, OptimConfig
from cma_tune.options import CrossDatasetConfig
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.runs import runs_of
from cma_tune.protocols.selection import choices
from cma_tune.records import FILE, Record, load_record
from cma_tune.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransferRun(Run):
    """A learned context tested on some targets."""

    def options(self) -> CrossDatasetConfig:
        """The config, which is of this kind."""
        assert isinstance(self.config, CrossDatasetConfig)
        return self.config

    def folder(self) -> Path:
        """Below what was learned, a folder for these targets."""
        config, place = self.options(), super().folder()
        if config.prompt is not None:
            place = place.parents[2] / f"prompt-{config.prompt[:12]}"
        to = "+".join(config.targets)
        if len(to) > 40:
            to = f"{len(config.targets)}-{hashlib.sha256(to.encode()).hexdigest()[:12]}"
        return place / slug(to)


@dataclass(frozen=True)
class Learned:
    """A learned prompt and where it comes from.

    Attributes:
        run: the run that tests it.
        folder: of the prompt.
        config: of the run it was learned in, as far as it is known.
        figures: of that run, as far as they are known.
        source: what the record says of the dataset it was learned on.
        record: of the run it was learned in, if it is at hand.
    """

    run: TransferRun
    folder: Path
    config: dict[str, Any]
    figures: dict[str, float]
    source: dict[str, Any]
    record: Record | None = None


def check_against_prompt(config: CrossDatasetConfig, card: Mapping[str, Any]) -> None:
    """What was chosen when the prompt was learned can't be chosen again; what is then not read is warned of.

    Raises:
        UserError: another dataset, method or backbone than the prompt's.
    """
    plain = type(config)()
    backbone = {entry: card["backbone"][entry] for entry in ("pretrained", "model_config")}
    own = {**card, **backbone, "backbone": card["backbone"]["name"]}
    for name in ("dataset", "learner", "backbone", *backbone):
        given, kept = getattr(config, name), own.get(name)
        if kept is not None and given not in (getattr(plain, name), kept):
            raise UserError(
                f"Expected no --{typed(name)} beside --prompt, which has its own ({kept}), got {given}; "
                "take it out."
            )
    groups = [f.name for f in fields(FewShotConfig) if is_dataclass(getattr(plain, f.name))]
    of_learning = [name for name in groups if name != "source"]
    of_learning += ["shots", "seeds", "weights", "select_weight", "train_features", "views"]
    unread = [name for name in of_learning if getattr(config, name) != getattr(plain, name)]
    if unread:
        log.warning(
            "--prompt was learned already: nothing of it is changed by %s",
            ", ".join(f"--{typed(n)}" for n in unread),
        )


def as_learned(config: CrossDatasetConfig, card: Mapping[str, Any]) -> CrossDatasetConfig:
    """What a saved prompt leaves to choose; the rest of the config was chosen when it was learned."""
    kept = shared_entries(ZeroShotConfig, config)
    backbone = card["backbone"]
    kept |= {"dataset": str(card.get("dataset", "unknown")), "backbone": backbone["name"]}
    kept |= {"pretrained": backbone["pretrained"], "model_config": backbone["model_config"]}
    kept |= {name: getattr(config, name) for name in ("targets", "prompt", "resume")}
    kept |= {"learner": card["learner"], "optim": OptimConfig(**default_optimizer(card["learner"]))}
    kept |= {"loss": PAPER_FORM}
    return type(config)(**kept)


def few_shot_config(config: CrossDatasetConfig) -> FewShotConfig:
    """The config of the runs in which is learned what is tested."""
    return FewShotConfig(**shared_entries(FewShotConfig, config))


def learn(protocol: str, config: CrossDatasetConfig, setup: Setup) -> Iterator[Learned]:
    """Every prompt of the few-shot runs, which are skipped where they are finished."""
    source = few_shot_config(config)
    runs = runs_of("few-shot", source)
    runs += choices(runs) if config.select_weight else []
    for run, record in zip(runs, few_shot(source, setup), strict=True):
        one = transfer_run(protocol, config, run)
        yield Learned(one, run.prompt_folder(), record.config, record.figures, record.dataset, record)


def transfer_run(protocol: str, config: CrossDatasetConfig, run: Run) -> TransferRun:
    """The test, on the targets of `config`, of what the few-shot run learned."""
    content = shared_entries(FewShotConfig, run.config)
    return TransferRun(protocol, type(config)(**content, targets=config.targets))


def from_prompt(protocol: str, config: CrossDatasetConfig, card: Mapping[str, Any]) -> Learned:
    """A saved prompt; the record beside it, if it is still there, says how it was learned."""
    assert config.prompt is not None
    folder = prompt_folder(config.prompt)
    # What it holds, not where it lies, decides the result.
    run = TransferRun(protocol, replace(config, prompt=card["weights"]))
    path = folder.parent / FILE
    record = load_record(path) if path.is_file() else None
    if record is not None and record.run == card.get("run"):
        return Learned(run, folder, record.config, record.figures, record.dataset, record)
    source = {"name": config.dataset, "classes": len(card["class_names"])}
    source |= {name: card[name] for name in ("split", "picks") if name in card}
    unknown = {"shots": [0], "seeds": [0], "weights": [0.0]}
    return Learned(run, folder, entries(config) | unknown, card.get("figures", {}), source)
