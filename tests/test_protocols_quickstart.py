"""The quickstart: it runs what its configs say, and ends in what its figures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report_tables import base_to_novel, few_shot

import cma_tune.protocols.quickstart as module
from cma_tune.cli import parse
from cma_tune.config import BaseToNovelConfig, FewShotConfig, ZeroShotConfig
from cma_tune.records import Record

CONFIGS = Path(__file__).parents[1] / "configs"


class Setup:
    """In place of everything that loads weights or data."""

    backbone = None

    class accelerator:
        is_main_process = True

    def __init__(self, config: ZeroShotConfig, backbone: object = None) -> None:
        self.config = config

    def say(self, text: str) -> None:
        print(text)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the quickstart runs, in order: configs, and the folder of the report."""
    seen: list[Any] = []

    def run_of(records: list[Record]) -> Any:
        def run(config: ZeroShotConfig, setup: Setup) -> list[Record]:
            assert setup.config.dataset == config.dataset
            seen.append(config)
            return records

        return run

    shots = {1: [50.0, 52.0], 4: [60.0, 61.0]}
    monkeypatch.setattr(module, "Setup", Setup)
    monkeypatch.setattr(module, "zero_shot", run_of([]))
    monkeypatch.setattr(module, "few_shot", run_of([*few_shot(shots), *few_shot(shots, weight=0.3)]))
    monkeypatch.setattr(module, "base_to_novel", run_of(base_to_novel([(80, 60)], 0.5)))
    monkeypatch.setattr(module, "report", seen.append)
    return seen


def test_it_runs_what_the_configs_say(ran: list[Any]) -> None:
    module.quickstart("runs/quickstart")
    digits = parse("few-shot", ["--config", str(CONFIGS / "quickstart.yaml")])
    shapes = parse("base-to-novel", ["--config", str(CONFIGS / "quickstart_shapes.yaml")])
    assert type(digits) is FewShotConfig and type(shapes) is BaseToNovelConfig
    beside = [ZeroShotConfig(dataset=name, output="runs/quickstart") for name in ("digits", "shapes")]
    assert ran == [beside[0], digits, beside[1], shapes, "runs/quickstart"]


def test_after_the_tables_it_says_what_they_show(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    module.quickstart("elsewhere")
    shown, rest = capsys.readouterr().out.strip().split("\n\n")
    assert shown == (
        "What the CMA loss changed here, in points of the mean: CoOp on digits, accuracy: λ=0.3 at 1 shot "
        "+0.00 (within the intervals), at 4 shots +0.00 (within the intervals); "
        "'within the intervals' is too close to tell from these seeds."
    )
    assert "records, prompts and figures in elsewhere." in rest and module.NEXT in rest
