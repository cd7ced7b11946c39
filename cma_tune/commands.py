"""The commands: what each takes, and what it runs. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cma_tune.companion_options import LabConfig, SemiSupervisedConfig, SupervisedConfig
from cma_tune.config import BaseToNovelConfig, FewShotConfig, ZeroShotConfig
from cma_tune.options import (
    DATA_ACTIONS,
    CrossDatasetConfig,
    DataConfig,
    DomainGeneralizationConfig,
    ExportConfig,
    FeaturesConfig,
    GridConfig,
    InspectConfig,
    PredictConfig,
    PushConfig,
    QuickstartConfig,
    ReportConfig,
    WordsConfig,
)


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        config: what it takes.
        run: what it does.
        positional: what options its positional arguments are, in order.
        words: how its positional arguments are called, where that is not by their options' names.
        about: for its help: lines on the positional arguments, where their options don't say enough.
        choice: a positional argument that has to be given, although its option has a default in Python.
    """

    config: type
    run: Callable[[Any], None]
    positional: str | None = None
    words: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    choice: str | None = None


def _zero_shot(config: ZeroShotConfig) -> None:
    from cma_tune.protocols.zero_shot import zero_shot

    zero_shot(config)


def _few_shot(config: FewShotConfig) -> None:
    from cma_tune.protocols.few_shot import few_shot

    few_shot(config)


def _base_to_novel(config: BaseToNovelConfig) -> None:
    from cma_tune.protocols.base_to_novel import base_to_novel

    base_to_novel(config)


def _cross_dataset(config: CrossDatasetConfig) -> None:
    from cma_tune.protocols.cross_dataset import cross_dataset

    cross_dataset(config)


def _grid(config: GridConfig) -> None:
    from cma_tune.protocols.grid import grid

    grid(config)


def _supervised(config: SupervisedConfig) -> None:
    from cma_tune.companion.supervised import supervised

    supervised(config)


def _semi_supervised(config: SemiSupervisedConfig) -> None:
    from cma_tune.companion.semi_supervised import semi_supervised

    semi_supervised(config)


def _lab(config: LabConfig) -> None:
    from cma_tune.companion.lab.command import lab
    from cma_tune.report.lab import leave_figure

    for folder in lab(config):
        if os.environ.get("RANK", "0") == "0":
            print(f"figure: {leave_figure(folder)}")


def _features(config: FeaturesConfig) -> None:
    from cma_tune.protocols.features import features

    features(config)


def _data(config: DataConfig) -> None:
    from cma_tune.protocols.data import data

    data(config)


def _report(config: ReportConfig) -> None:
    from cma_tune.report import report

    report(config.folder, config.format, config.figures, config.against, config.compare, config.html)


def _predict(config: PredictConfig) -> None:
    from cma_tune.predict import predict

    predict(
        config.images,
        config.prompt,
        classes=config.classes,
        top=config.top,
        form=config.format,
        output=config.output,
        batch_size=config.batch_size,
        workers=config.workers,
        skip_unreadable=config.skip_unreadable,
        backbone=config.backbone,
    )


def _export(config: ExportConfig) -> None:
    from cma_tune.serving.export import export_command

    export_command(config.prompt, config.to, config.output, config.classes, config.backbone)


def _push(config: PushConfig) -> None:
    from cma_tune.sharing.push import push

    push(config.folder, config.repo, config.private, config.backbone, config.dry_run, config.license)


def _words(config: WordsConfig) -> None:
    from cma_tune.predict import words

    words(config.prompt, config.count, config.backbone)


def _inspect(config: InspectConfig) -> None:
    from cma_tune.inspection.command import inspect

    inspect(config)


def _quickstart(config: QuickstartConfig) -> None:
    from cma_tune.protocols.quickstart import quickstart

    quickstart(config.output)


COMMANDS: dict[str, Command] = {
    "zero-shot": Command(ZeroShotConfig, _zero_shot),
    "few-shot": Command(FewShotConfig, _few_shot),
    "base-to-novel": Command(BaseToNovelConfig, _base_to_novel),
    "cross-dataset": Command(CrossDatasetConfig, _cross_dataset),
    "domain-generalization": Command(DomainGeneralizationConfig, _cross_dataset),
    "grid": Command(GridConfig, _grid, "protocol", choice="protocol"),
    "supervised": Command(SupervisedConfig, _supervised),
    "semi-supervised": Command(SemiSupervisedConfig, _semi_supervised),
    "lab": Command(LabConfig, _lab, "experiment", choice="experiment"),
    "features": Command(FeaturesConfig, _features, "action"),
    "data": Command(
        DataConfig,
        _data,
        "words",
        "ACTION [NAME] [OUT]",
        {f"{action} {names}".strip(): what for action, (names, what) in DATA_ACTIONS.items()},
    ),
    "report": Command(ReportConfig, _report, "folder"),
    "predict": Command(PredictConfig, _predict, "images"),
    "export": Command(ExportConfig, _export, "prompt output"),
    "push": Command(PushConfig, _push, "folder"),
    "words": Command(WordsConfig, _words),
    "inspect": Command(InspectConfig, _inspect, "folder"),
    "quickstart": Command(QuickstartConfig, _quickstart),
}
