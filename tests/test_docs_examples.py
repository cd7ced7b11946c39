"""Every example in docs/examples runs, and what it shows is true."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from torch.nn.functional import normalize

from cma_tune import CollapseMonitor, accuracy, gram_matrix, mutual_information_ratio

EXAMPLES = Path(__file__).resolve().parents[1] / "docs/examples"
WITHOUT_MAIN = {"drawn_shapes"}


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch, fresh_accelerate: None) -> None:
    """As if each were started in its folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def run(name: str, *arguments: str) -> Any:
    torch.manual_seed(0)
    return importlib.import_module(name).main(arguments)


@pytest.mark.parametrize(
    ("name", "task", "start"),
    [
        ("plain_open_clip", "cross_entropy", 0.5),
        ("contrastive_open_clip", "contrastive", 2.0),
        ("transformers_trainer", "cross_entropy", 2.0),
        ("lightning_module", "cross_entropy", 0.5),
    ],
)
def test_the_task_is_learned_and_the_loss_makes_the_difference(
    name: str, task: str, start: float, capsys: pytest.CaptureFixture[str]
) -> None:
    without = run(name, "--steps", "10", "--weight", "0")
    with_it = run(name, "--steps", "10", "--weight", "0.7")
    assert with_it["cma"] < 0.97 * without["cma"]
    for result in (without, with_it):
        assert 0 < result[task] < start
    shown = re.findall(r"^over all .* with λ=(\S+): .* CMA (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert shown == [("0", f"{without['cma']:.4f}"), ("0.7", f"{with_it['cma']:.4f}")]


def test_groups_that_span_two_processes_train_as_those_of_one() -> None:
    alone = run("accelerate_processes", "--steps", "4")
    done = launch(str(EXAMPLES / "accelerate_processes.py"), "--steps", "4")
    assert done.returncode == 0, done.stderr[-3000:]
    shown = re.findall(r"^step \d+: cross-entropy (\S+), CMA (\S+)$", done.stdout, re.MULTILINE)
    assert len(shown) == len(alone) == 4
    for (ce, cma), step in zip(shown, alone, strict=True):
        assert float(ce) == pytest.approx(step["cross_entropy"], abs=2e-4)
        assert float(cma) == pytest.approx(step["cma"], abs=2e-4)
    assert alone[3]["cross_entropy"] < alone[0]["cross_entropy"] / 2


def test_the_metric_over_batches_is_the_function_of_all_rows() -> None:
    values = run("collapse_torchmetrics", "--batch-size", "7")
    shapes = importlib.import_module("drawn_shapes")
    model, transform, tokenizer = shapes.load_clip(shapes.options([], "").model, None)
    images, labels, prompts = shapes.load_shapes(transform, part="test")
    with torch.no_grad():
        features = normalize(model.eval().encode_image(images), dim=-1).double()
        classifier = normalize(model.encode_text(tokenizer(prompts)), dim=-1).double()
    for name, expected in CollapseMonitor()(features, labels, classifier).items():
        assert values[name] == pytest.approx(expected, abs=1e-5), name
    ratio = mutual_information_ratio(gram_matrix(features), gram_matrix(classifier[labels]))
    assert values["mutual_information_ratio"] == pytest.approx(float(ratio), abs=1e-5)
    assert 100 * values["accuracy"] == pytest.approx(accuracy(features @ classifier.T, labels))


def test_the_table_names_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\)", table, re.MULTILINE)) | WITHOUT_MAIN
