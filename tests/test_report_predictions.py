"""Predictions of the test images: stored beside the record, and the record's own figures again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import base_to_novel_config, few_shot_config

from cma_tune.config import ZeroShotConfig
from cma_tune.errors import UserError
from cma_tune.predictions import FILE, load_predictions, save_predictions
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import Record, find_results

FIGURES = {"test": "accuracy", "base": "base_accuracy", "novel": "novel_accuracy"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few-shot with two λ and a choice, base-to-novel, zero-shot."""
    folder: Path = tmp_path_factory.mktemp("runs")
    few = few_shot_config(folder, weights=[0.0, 0.5], select_weight=True)
    few_shot(few)
    base_to_novel(base_to_novel_config(folder))
    zero_shot(
        ZeroShotConfig("shapes", backbone=few.backbone, output=str(folder), features_dir=few.features_dir)
    )
    return folder


def test_every_run_leaves_the_predictions_that_its_figures_come_from(runs: Path) -> None:
    seen = set()
    for folder, record in find_results(runs):
        parts = load_predictions(folder)
        assert parts is not None
        among_all = parts.pop("all", None)
        assert (among_all is not None) == (record.protocol == "base-to-novel")
        if among_all is not None:
            check_among_all(record, among_all.tolist())
        assert set(parts) == {part for part, figure in FIGURES.items() if figure in record.figures}
        for part, pairs in parts.items():
            right = [predicted == true for predicted, true in pairs.tolist()]
            assert record.figures[FIGURES[part]] == 100.0 * sum(right) / len(right)
            for label, value in enumerate(record.per_class.get(part, {}).values()):
                of_class = [
                    one for one, true in zip(right, pairs[:, 1].tolist(), strict=True) if true == label
                ]
                assert value == pytest.approx(100.0 * sum(of_class) / len(of_class))
        seen.add((record.protocol, record.selection is not None))
    assert seen == {("few-shot", False), ("few-shot", True), ("base-to-novel", False), ("zero-shot", False)}


def check_among_all(record: Record, pairs: list[list[int]]) -> None:
    """Each half's images among the names of both; the first half of the classes is base."""
    half = (int(record.dataset["classes"]) + 1) // 2
    for name, wanted in (("base", range(half)), ("novel", range(half, 2 * half))):
        right = [predicted == true for predicted, true in pairs if true in wanted]
        assert record.figures[f"{name}_accuracy_among_all"] == pytest.approx(100 * sum(right) / len(right))


def test_two_bytes_a_class_unless_there_are_more_classes(tmp_path: Path) -> None:
    for largest, kind in ((32_767, torch.int16), (32_768, torch.int32)):
        pairs = torch.tensor([[0, largest], [largest, 1]])
        save_predictions(tmp_path, {"test": pairs})
        assert load_file(tmp_path / FILE)["test"].dtype == kind
        loaded = load_predictions(tmp_path)
        assert loaded is not None and torch.equal(loaded["test"], pairs)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_no_file_is_none_and_a_wrong_one_is_a_sentence(tmp_path: Path) -> None:
    assert load_predictions(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"Expected predictions at .* can't be read"):
        load_predictions(tmp_path)
    save_file({"test": torch.zeros(3, dtype=torch.int16)}, tmp_path / FILE)
    with pytest.raises(UserError, match=r"Expected predicted and true classes \[N, 2\]"):
        load_predictions(tmp_path)
