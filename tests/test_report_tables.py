"""Tables from made-up records: means and intervals by hand, and what must never be averaged together."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cma_tune.config import BaseToNovelConfig, FewShotConfig, ZeroShotConfig
from cma_tune.errors import UserError
from cma_tune.records import Record, find_records, save_record
from cma_tune.report import build_tables, format_tables
from cma_tune.report.cells import Table
from cma_tune.run import Run, expand

SIMILARITIES = {"class_similarity": 0.3, "modal_similarity": 0.2}


def record(run: Run, figures: dict[str, float], **changes: Any) -> Record:
    """The record that the protocols would leave for `run`."""
    dataset = {
        "name": run.config.dataset,
        "origin": "/somewhere/split.json",
        "split": "ab" * 32,
        "classes": 10,
        "test_images": 100,
        "templates": ["a photo of a {}."],
    }
    if isinstance(run.config, FewShotConfig):
        dataset |= {"picks": run.digest(), "train_images": 10 * run.config.shots[0], "val_images": 10}
    backbone = {
        "name": run.config.backbone,
        "pretrained": run.config.pretrained,
        "model_config": None,
        "weights": "cd" * 32,
        "preprocessing": "ef" * 32,
    }
    made = Record(
        run.digest(),
        run.protocol,
        asdict(run.config),
        dataset,
        backbone,
        {**SIMILARITIES, **figures},
        {},
        training={} if run.protocol == "zero-shot" else {"mixed_precision": "no", "steps": 3},
        versions={"torch": "2.7.0"},
    )
    return replace(made, **changes)


def few_shot(
    accuracies: dict[int, list[float]],
    weight: float = 0.0,
    config: FewShotConfig | None = None,
    **changes: Any,
) -> list[Record]:
    """One record for every shots and seed 1, 2, … with these accuracies."""
    records = []
    for shots, values in accuracies.items():
        for seed, value in enumerate(values, start=1):
            one = replace(config or FewShotConfig(), shots=[shots], seeds=[seed], weights=[weight])
            (run,) = expand("few-shot", one)
            records.append(record(run, {"accuracy": value}, **changes))
    return records


def zero_shot(accuracy: float, config: ZeroShotConfig | None = None, **changes: Any) -> Record:
    return record(Run("zero-shot", config or ZeroShotConfig()), {"accuracy": accuracy}, **changes)


def base_to_novel(
    pairs: list[tuple[float, float]], weight: float, config: BaseToNovelConfig | None = None
) -> list[Record]:
    records = []
    for seed, (base, novel) in enumerate(pairs, start=1):
        (run,) = expand(
            "base-to-novel", replace(config or BaseToNovelConfig(), seeds=[seed], weights=[weight])
        )
        figures = {
            "base_accuracy": base,
            "novel_accuracy": novel,
            "harmonic_mean": 2 / (1 / base + 1 / novel),
            "novel_class_similarity": 0.25,
            "novel_modal_similarity": 0.15,
        }
        records.append(record(run, figures))
    return records


def cells(table: Table) -> dict[str, list[str]]:
    """Rows of the text form: name → cells."""
    body = format_tables([table], "markdown").split("|\n")[2:]
    rows = [
        [cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in body if "|" in line
    ]
    return {row[0].replace("\\", ""): [cell.rstrip(" |") for cell in row[1:]] for row in rows}


def accuracy(records: list[Record]) -> Table:
    (table,) = (table for table in build_tables(records) if table.kind == "accuracy")
    return table


def test_few_shot_means_and_intervals_are_the_ones_done_by_hand(tmp_path: Path) -> None:
    # 70, 71, 72: mean 71, population variance 2/3, 1.96·√(2/3)/√3 = 0.92395.
    # 80, 84, 82: mean 82, population variance 8/3, twice that.
    records = [
        zero_shot(60.0),
        *few_shot({4: [80.0, 84.0, 82.0], 1: [70.0, 71.0, 72.0]}),
        *few_shot({1: [73.0, 73.0, 73.0]}, weight=0.8),
    ]
    for number, one in enumerate(records):
        save_record(tmp_path / str(number), one)
    table = accuracy(list(find_records(tmp_path)))
    assert table.columns == ("0 shots", "1 shot", "4 shots")
    assert [row.name for row in table.rows] == ["Zero-shot", "CoOp", "CoOp + CMA, λ=0.8"]
    assert cells(table) == {
        "Zero-shot": ["60.00", "–", "–"],
        "CoOp": ["–", "71.00 ± 0.92", "82.00 ± 1.85"],
        "CoOp + CMA, λ=0.8": ["–", "73.00 ± 0.00", "–"],
    }
    cell = table.rows[1].cells[1]
    assert cell is not None
    assert cell.interval == pytest.approx(0.923952, abs=1e-6)
    assert "over 3 seeds (1, 2, 3)." in table.notes[0]
    assert table.notes[1] == "Epochs: 50 at 1 shot; 100 at 4 shots."


def test_a_single_seed_has_no_interval_and_other_numbers_of_seeds_are_flagged() -> None:
    alone = accuracy(few_shot({1: [70.0]}))
    assert cells(alone) == {"CoOp": ["70.00"]}
    assert alone.notes[0] == "One seed (1): no interval."
    mixed = accuracy(few_shot({1: [70.0, 72.0], 2: [80.0, 81.0], 4: [90.0]}))
    assert cells(mixed)["CoOp"] == ["71.00 ± 1.39", "80.50 ± 0.69", "90.00 (n=1)"]
    assert "over 2 seeds (1, 2), where a cell does not give another number n." in mixed.notes[0]
    first, second, third = few_shot({1: [70.0, 71.0, 72.0]})
    other = few_shot({1: [1.0, 2.0, 3.0]}, weight=0.5)
    unequal = accuracy([first, second, *other[1:]])
    assert third not in unequal.rows[0].group.records
    assert "Not every cell has the same seeds: 1, 2; 2, 3." in unequal.notes


def test_h_is_of_the_means_and_its_interval_of_the_seeds() -> None:
    # H of the means, 85 and 55, is 66.7857. By seed: 2/(1/80+1/60) = 68.5714 and 2/(1/90+1/50) = 64.2857,
    # whose mean would be 66.43; they are 2.142857 from it, so the interval is 1.96·2.142857/√2 = 2.9698.
    table = accuracy([*base_to_novel([(80, 60), (90, 50)], 0.5), *base_to_novel([(70, 70), (70, 70)], 0.0)])
    assert table.columns == ("base", "novel", "H") and table.shots == 16
    assert cells(table) == {
        "CoOp": ["70.00 ± 0.00", "70.00 ± 0.00", "70.00 ± 0.00"],
        "CoOp + CMA, λ=0.5": ["85.00 ± 6.93", "55.00 ± 6.93", "66.79 ± 2.97"],
    }
    assert sum(note.startswith("H: the harmonic mean of mean base") for note in table.notes) == 1


def test_weights_stand_in_ascending_order_and_shots_in_tables_of_their_own() -> None:
    records = [r for w in (1.0, 0.1, 0.0) for r in base_to_novel([(80, 60)], w)]
    records += base_to_novel([(50, 50)], 0.0, BaseToNovelConfig(shots=[4]))
    tables = [table for table in build_tables(records) if table.kind == "accuracy"]
    assert [table.shots for table in tables] == [4, 16]
    assert [row.group.weight for row in tables[1].rows] == [0.0, 0.1, 1.0]


def test_datasets_and_backbones_have_tables_of_their_own() -> None:
    records = few_shot({1: [70.0]})
    records += few_shot({1: [60.0]}, config=FewShotConfig(dataset="dtd"))
    for tag in ("openai", "laion400m_e32"):
        records += few_shot({1: [50.0]}, config=FewShotConfig(dataset="dtd", backbone="RN50", pretrained=tag))
    tables = [table for table in build_tables(records) if table.kind == "accuracy"]
    assert [(table.dataset, table.backbone) for table in tables] == [
        ("digits", "embedded"),
        ("dtd", "RN50 laion400m_e32"),
        ("dtd", "RN50 openai"),
        ("dtd", "embedded"),
    ]


def test_a_backbone_in_a_folder_is_called_by_the_folder_unless_two_are() -> None:
    def named(*folders: str) -> list[str]:
        records = [zero_shot(50.0, ZeroShotConfig(backbone=f"local-dir:{folder}")) for folder in folders]
        return [table.backbone for table in build_tables(records) if table.kind == "accuracy"]

    assert named("a/clip", "b/other") == ["clip", "other"]
    assert named("a/clip", "b/clip") == ["local-dir:a/clip", "local-dir:b/clip"]


def test_alignment_follows_with_cosines() -> None:
    few, aligned = build_tables([zero_shot(60.0), *few_shot({1: [70.0, 72.0]})])
    assert few.kind == "accuracy" and aligned.kind == "alignment"
    assert aligned.columns == ("class similarity", "modal similarity")
    assert cells(aligned) == {
        "Zero-shot": ["0.300", "0.200"],
        "CoOp, 1 shot": ["0.300 ± 0.000", "0.200 ± 0.000"],
    }
    assert "**" not in format_tables([aligned], "markdown")  # no direction is better
    (bare,) = few_shot({1: [70.0]}, weight=0.8)
    bare = replace(bare, figures={"accuracy": 70.0})
    assert [len(table.rows) for table in build_tables([*few_shot({1: [70.0]}), bare])] == [2, 1]
    assert [table.kind for table in build_tables([bare])] == ["accuracy"]
    columns = build_tables(base_to_novel([(80, 60)], 0.5))[1].columns
    assert columns[0] == "base class similarity" and columns[3] == "novel modal similarity"


def test_calibration_stands_in_a_table_of_its_own() -> None:
    records = few_shot({1: [70.0, 72.0]})
    records = [
        replace(one, figures={"accuracy": 70.0, "ece": ece})
        for one, ece in zip(records, (3.0, 5.0), strict=True)
    ]
    accuracy, calibration = build_tables(records)
    assert (accuracy.kind, calibration.kind, calibration.columns) == ("accuracy", "calibration", ("ECE",))
    assert "calibration (expected error in points)" in calibration.title
    assert cells(calibration) == {"CoOp, 1 shot": ["4.00 ± 1.39"]}  # 1.96·1/√2


def test_a_chosen_lambda_is_one_row_over_seeds_whatever_was_chosen() -> None:
    records = []
    for seed, (weight, value) in enumerate([(0.3, 70.0), (0.8, 74.0)], start=1):
        (run,) = expand("few-shot", FewShotConfig(shots=[4], seeds=[seed], weights=[weight]))
        one = record(run, {"accuracy": value})
        selection = {
            "on": "few-shot validation images",
            "candidates": [[0.3, 1.0], [0.8, 2.0]],
            "chosen": weight,
        }
        records += [
            one,
            replace(one, run=f"s{seed}", selection=selection, config={**one.config, "select_weight": True}),
        ]
    table = accuracy(records)
    assert [row.name for row in table.rows] == [
        "CoOp + CMA, λ=0.3",
        "CoOp + CMA, λ=0.8",
        "CoOp + CMA, λ chosen on validation",
    ]
    chosen = table.rows[2].cells[0]
    assert chosen is not None and chosen.values == (70.0, 74.0)
    assert "CoOp + CMA, λ chosen on validation, by seed: 0.3, 0.8." in table.notes
    # Chosen among other λ, it is another method.
    among = replace(records[3], selection={**(records[3].selection or {}), "candidates": [[0.8, 2.0]]})
    assert len(accuracy([records[1], among]).rows) == 2


def test_a_copy_of_a_run_is_no_second_seed_and_a_contradiction_is_refused() -> None:
    (one,) = few_shot({1: [70.0]})
    table = accuracy([one, replace(one)])
    assert cells(table) == {"CoOp": ["70.00"]}
    later = replace(one, figures={**one.figures, "ece": 3.0})  # of a time when records held more
    assert cells(accuracy([one, later])) == cells(accuracy([later, one])) == {"CoOp": ["70.00"]}
    with pytest.raises(
        UserError, match=r"Expected one result for few-shot with CoOp.*1 shot, seed 1, got two"
    ):
        build_tables([one, replace(one, figures={**one.figures, "accuracy": 71.0})])


def test_different_versions_are_noted_and_other_protocols_refused() -> None:
    one, two = few_shot({1: [70.0, 71.0]})
    table = accuracy([one, replace(two, versions={"torch": "2.8.0"})])
    assert "Runs were made with different versions: torch 2.7.0 and 2.8.0." in table.notes
    with pytest.raises(UserError, match="got one of 'regression'"):
        build_tables([replace(one, protocol="regression")])
