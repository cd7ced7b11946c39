"""The companion's configs: every cell of the paper's figure, with the values of the references."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from cma_tune.cli import parse
from cma_tune.companion.algorithms import algorithm
from cma_tune.companion.setup import algorithm_options
from cma_tune.companion_checks import check_companion
from cma_tune.companion_options import InterplayConfig, SemiSupervisedConfig, SupervisedConfig
from cma_tune.companion_run import (
    CompanionRun,
    expand_companion,
    method_name,
    recipe_network,
    unread_entries,
)

FOLDER = Path(__file__).parents[1] / "configs" / "companion"

DATASETS = {
    # Labels of the paper's cells; network and weight decay of TorchSSL; OTMatch's weight.
    "cifar10": ([40, 250, 4000], "wrn-28-2", 5e-4, 0.5),
    "cifar100": ([400, 2500, 10000], "wrn-28-8", 1e-3, 0.15),
    "stl10": ([40, 1000], "wrn-37-2", 5e-4, 0.15),
}

FIXED, RUNNING = {"threshold": 0.95}, {"momentum": 0.999}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "pseudo-label": FIXED,
    "fixmatch": FIXED,
    "flexmatch": FIXED,
    "freematch": {**RUNNING, "fairness_weight": 0.01},
    "softmatch": {**RUNNING, "alignment": "torchssl"},
    "otmatch": {**RUNNING, "fairness_weight": 0.01},
}

LOSSES = {"": (0.0, 0.0), "max_mi": (0.1, 0.0), "min_hd": (0.0, 0.1)}
SUPERVISED = ("cifar10", "cifar100")
FULL, SHORT = 2**20, 2**13


def load(command: str, *names: str, flags: tuple[str, ...] = ()) -> Any:
    """The config of several files, the later ones over the earlier."""
    files = [str(FOLDER / f"{name.replace('-', '_')}.yaml") for name in names if name]
    config = parse(command, [word for file in files for word in ("--config", file)] + list(flags))
    check_companion(config)
    assert unread_entries(config) == []
    return config


def runs_of(command: str, config: Any) -> list[CompanionRun]:
    return expand_companion(command, config)


def test_these_are_the_configs() -> None:
    found = {file.stem for file in FOLDER.glob("*.yaml") if not file.stem.startswith("lab_")}
    own = {name.replace("-", "_") for name in ALGORITHMS}
    supervised = {f"supervised_{name}" for name in SUPERVISED}
    assert found == {*DATASETS, *own, "max_mi", "min_hd", "short", *supervised}


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(FOLDER.glob("*.yaml")) if not file.stem.startswith("lab_")],
    ids=lambda file: file.stem,
)
def test_every_file_loads_and_says_what_it_is(file: Path) -> None:
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    command = "supervised" if file.stem.startswith("supervised") else "semi-supervised"

    def check(content: dict[str, Any], read: Any) -> None:
        for key, value in content.items():
            if isinstance(value, dict):
                check(value, getattr(read, key))
            else:
                assert getattr(read, key) == value, key

    check(written, load(command, file.stem))
    comment = file.read_text(encoding="utf-8").splitlines()[0]
    assert comment.startswith("# ") and ("SHORT" in comment) == (file.stem == "short")


def check_recipe(config: SupervisedConfig, dataset: str) -> None:
    """What all of the references share, and what is the dataset's."""
    _, network, decay, _ = DATASETS[dataset]
    # No file names a network, so that another --dataset takes its own.
    assert (config.dataset, config.network, config.seeds) == (dataset, None, [1, 2, 3])
    assert recipe_network(config.dataset) == network
    schedule = config.schedule
    assert (schedule.lr, schedule.momentum, schedule.ema) == (0.03, 0.9, 0.999)
    assert (schedule.batch_size, schedule.ratio) == (64, 7)
    runs = runs_of("semi-supervised", config)
    assert {run.config.schedule.weight_decay for run in runs} == {decay}
    assert {run.config.flip for run in runs} == {0.5}
    config.schedule.weight_decay = "paper"
    assert {run.config.schedule.weight_decay for run in runs_of("semi-supervised", config)} == {5e-4}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_semi_supervised_cells(dataset: str, name: str) -> None:
    for loss, weights in LOSSES.items():
        config = load("semi-supervised", dataset, name, loss)
        assert type(config) is SemiSupervisedConfig and config.algorithm == name
        assert config.labels == DATASETS[dataset][0] and config.schedule.steps == FULL
        assert (config.max_mi, config.min_hd) == weights
        assert config.interplay == InterplayConfig("strong", True, False, False, 1)
        options = algorithm_options(config)
        transport = {"transport_weight": DATASETS[dataset][3]} if name == "otmatch" else {}
        assert options == {"unlabelled_weight": 1.0, **ALGORITHMS[name], **transport}
        algorithm(name, 10, 100, **options)
        check_recipe(config, dataset)


@pytest.mark.parametrize("dataset", SUPERVISED)
def test_supervised_cells(dataset: str) -> None:
    for loss, weights in LOSSES.items():
        config = load("supervised", f"supervised_{dataset}", loss)
        assert type(config) is SupervisedConfig and config.labels == [0]
        assert config.schedule.steps == FULL and (config.max_mi, config.min_hd) == weights
        check_recipe(config, dataset)


def test_a_short_run_of_any_recipe() -> None:
    for command, names in (
        ("semi-supervised", ("cifar100", "softmatch", "min_hd")),
        ("supervised", ("supervised_cifar10", "max_mi")),
    ):
        full, short = load(command, *names), load(command, *names, "short")
        assert (short.schedule.steps, short.eval_every) == (SHORT, 512)
        short.schedule.steps, short.eval_every = full.schedule.steps, full.eval_every
        assert short.output != full.output, "a short run's record must not stand where a full one's belongs"
        short.output = full.output
        assert short == full


def test_flags_override_files() -> None:
    flags = ("--labels", "40", "--seeds=5", "--max-mi", "0.05", "--matching.fairness_weight=0.05")
    config = load("semi-supervised", "stl10", "freematch", "max_mi", flags=flags)
    assert (config.labels, config.seeds, config.max_mi) == ([40], [5], 0.05)
    assert config.matching.fairness_weight == 0.05 and config.matching.transport_weight == 0.15


def test_every_run_of_the_figure_has_a_place_of_its_own() -> None:
    folders, identities, methods = set(), set(), set()
    for dataset, name in product(DATASETS, ALGORITHMS):
        config = load("semi-supervised", dataset, name)
        for config.max_mi, config.min_hd in LOSSES.values():
            for run in runs_of("semi-supervised", config):
                folders.add(run.folder())
                identities.add(run.digest())
                methods.add(method_name(run.config))
    cells = sum(len(labels) for labels, *_ in DATASETS.values())
    assert len(folders) == len(identities) == cells * 3 * len(ALGORITHMS) * len(LOSSES)
    assert len(methods) == len(ALGORITHMS) * len(LOSSES)
