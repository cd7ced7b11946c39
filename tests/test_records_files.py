"""Records as files: written, read back, found, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cma_tune.config import FewShotConfig, OptimConfig
from cma_tune.errors import UserError
from cma_tune.records import Record, find_records, finished_record, load_record, save_record, versions
from cma_tune.run import Run


def make(run: Run) -> Record:
    return Record(
        run=run.digest(),
        protocol=run.protocol,
        config=asdict(run.config),
        dataset={"split": "0" * 64},
        backbone={"name": "embedded"},
        figures={"accuracy": 61.25, "validation_accuracy": 60.0, "class_similarity": 0.3},
        per_class={"test": {"Ä": 50.0, "absent": None}},
        versions=versions(),
    )


def run(tmp_path: Path, **changes: Any) -> Run:
    return Run("few-shot", replace(FewShotConfig(output=str(tmp_path)), **changes))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = make(run(tmp_path, weights=[0.3], shots=[4], seeds=[2]))
    save_record(tmp_path / "a/b", record)
    assert load_record(tmp_path / "a/b/record.json") == record
    assert (record.shots, record.seed, record.weight, record.learner) == (4, 2, 0.3, "coop")
    assert record.headline() == "accuracy 61.25, validation accuracy 60.00"
    searched = replace(record, training={"chosen": {"on": "validation", "alpha": 2.25, "beta": 5.5}})
    assert searched.headline().endswith("accuracy 60.00, alpha 2.25 by validation, beta 5.5 by validation")
    halves = {"base_accuracy": 80.0, "novel_accuracy": 60.0, "harmonic_mean": 68.571}
    among = {f"{name}_among_all": 1.0 for name in halves}
    assert replace(record, figures=halves | among).headline() == "base 80.00, novel 60.00, H 68.57"
    means = {"mean_accuracy": 41.5, "zero_shot_mean_accuracy": 30.0, "source_accuracy": 80.0}
    transfer = replace(record, figures={"accuracy: dtd": 1.0, "zero_shot_accuracy: dtd": 2.0, **means})
    assert transfer.headline() == "mean of targets 41.50, by zero-shot 30.00, source 80.00"
    assert "NaN" not in (tmp_path / "a/b/record.json").read_text()


def test_figures_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    record = make(run(tmp_path))
    record.figures["accuracy"] = float("nan")
    with pytest.raises(ValueError):
        save_record(tmp_path, record)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 2}', "null"])
def test_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(
        UserError, match=r"Expected a record of format 1 at .*record.json, got something else"
    ):
        load_record(tmp_path / "record.json")


def test_entries_that_do_not_fit_are_named(tmp_path: Path) -> None:
    content = asdict(make(run(tmp_path)))
    (tmp_path / "record.json").write_text(json.dumps({**content, "surprise": 1}))
    with pytest.raises(UserError, match=r"its entries don't fit: .*surprise"):
        load_record(tmp_path / "record.json")
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"Expected a record at .* to be JSON"):
        load_record(tmp_path / "record.json")


def test_records_are_found_below_a_folder_in_order(tmp_path: Path) -> None:
    runs = [run(tmp_path, seeds=[seed]) for seed in (3, 1, 2)]
    for each in runs:
        save_record(each.folder(), make(each))
    assert [record.seed for record in find_records(tmp_path)] == [1, 2, 3]
    with pytest.raises(UserError, match="there is no such folder"):
        list(find_records(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"Expected record.json files of cma-tune below .*empty, got none; run a protocol"
    ):
        list(find_records(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("run", 7),
        ("protocol", None),
        ("config", []),
        ("config", {"shots": [1]}),
        ("config", {"dataset": "digits", "shots": []}),
        ("config", {"dataset": "digits", "weights": ["recipe"]}),
        ("dataset", "digits"),
        ("backbone", {}),
        ("figures", {"accuracy": "high"}),
        ("figures", {"accuracy": True}),
        ("per_class", 1),
        ("training", "long"),
        ("selection", []),
        ("versions", "all"),
    ],
)
def test_entries_of_another_form_are_named(entry: str, value: Any, tmp_path: Path) -> None:
    content = asdict(make(run(tmp_path)))
    (tmp_path / "record.json").write_text(json.dumps({**content, entry: value}))
    with pytest.raises(UserError, match=rf"Expected a record at .*, but its entries don't fit: {entry}\.$"):
        load_record(tmp_path / "record.json")


def test_files_that_are_no_records_can_be_skipped(tmp_path: Path) -> None:
    one = make(run(tmp_path))
    save_record(tmp_path / "b", one)
    for place, content in [("a", '{"tool": "other"}'), ("c", "{"), ("d", json.dumps({"format": 1}))]:
        (tmp_path / place).mkdir()
        (tmp_path / place / "record.json").write_text(content)
    skipped: list[UserError] = []
    assert list(find_records(tmp_path, skipped.append)) == [one]
    for mistake, place in zip(skipped, "acd", strict=True):
        assert str(tmp_path / place / "record.json") in str(mistake)
    with pytest.raises(UserError, match=r"Expected a record of format 1 at .*a/record.json"):
        list(find_records(tmp_path))
    (tmp_path / "b/record.json").unlink()
    with pytest.raises(UserError, match=r"Expected record.json files of cma-tune below .*, got none"):
        list(find_records(tmp_path, skipped.append))


def test_a_finished_run_is_known_by_its_record(tmp_path: Path) -> None:
    one = run(tmp_path)
    assert finished_record(one) is None
    save_record(one.folder(), make(one))
    assert finished_record(one) == make(one)
    assert finished_record(run(tmp_path, seeds=[2])) is None  # another folder
    # Where and how it is computed is not the run.
    assert finished_record(run(tmp_path, workers=4, resume=False)) == make(one)


def test_another_runs_record_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    one = run(tmp_path)
    save_record(one.folder(), make(one))
    other = run(tmp_path, optim=OptimConfig(lr=0.1, epochs=7), views=2)
    with pytest.raises(UserError) as caught:
        finished_record(other)
    assert str(caught.value) == (
        f"Expected no record or this run's record in {one.folder()}, got one of another run "
        "(it differs in optim.epochs, optim.lr, views); choose another --output."
    )


def test_records_and_configs_need_the_standard_library_alone() -> None:
    code = (
        "import cma_tune.records, cma_tune.checks, sys; print('torch' in sys.modules, 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
