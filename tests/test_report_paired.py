"""Paired tests between two methods, from records and stored predictions."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from test_report_tables import base_to_novel, few_shot, zero_shot

from cma_tune.cli import main
from cma_tune.config import BaseToNovelConfig, FewShotConfig
from cma_tune.errors import UserError
from cma_tune.metrics.significance import sign_test
from cma_tune.predictions import save_predictions
from cma_tune.records import Record, save_record
from cma_tune.report import build_tables
from cma_tune.report.methods import places
from cma_tune.report.paired import find_method, paired_sheets
from cma_tune.report.sheets import Entry, Sheet, shown

TRUE = torch.arange(40) % 4


def right(record: Record, which: range, folder: Path) -> Record:
    """Store predictions of which these are right, and make them the record's accuracy."""
    predicted = (TRUE + 1) % 4
    predicted[list(which)] = TRUE[list(which)]
    save_predictions(folder / record.run, {"test": torch.stack([predicted, TRUE], dim=1)})
    return replace(record, figures={**record.figures, "accuracy": 100 * len(which) / 40})


def compared(records: list[Record], *pair: str, folder: Path = Path("nowhere")) -> list[Sheet]:
    return paired_sheets(build_tables(records), pair, {one.run: folder / one.run for one in records})


def line(sheet: Sheet, test: str, dataset: str = "digits") -> list[str]:
    (found,) = [[shown(e) for e in row] for row in sheet.rows if row[2] == test and row[0] == dataset]
    return found


def test_over_seeds_it_is_scipys_t_and_an_exact_sign_test() -> None:
    first, second = [70.0, 71.0, 75.0], [72.0, 72.5, 76.0]
    records = [*few_shot({4: first}), *few_shot({4: second}, weight=0.3)]
    (sheet,) = compared(records, "coop", "cma")
    p = stats.ttest_rel(second, first).pvalue
    figures = ["digits", "accuracy, 4 shots", "paired t over seeds", "3", "72.00", "73.50", "+1.50", "–"]
    assert line(sheet, "paired t over seeds") == [*figures, f"{p:.4f}"]
    assert line(sheet, "sign over seeds")[-1] == "0.2500"
    assert sheet.headers[4:6] == ("CoOp", "CoOp + CMA, λ=0.3")


def test_differences_without_spread_have_no_p_of_t() -> None:
    (sheet,) = compared(
        [*few_shot({4: [70.1, 71.2]}), *few_shot({4: [71.4, 72.5]}, weight=0.3)], "coop", "cma"
    )
    assert line(sheet, "paired t over seeds")[-3:] == ["+1.30", "–", "–"]
    assert line(sheet, "sign over seeds")[-1] == "0.5000"


def test_methods_without_any_difference_have_no_p_of_t() -> None:
    records = [*few_shot({4: [70.0, 71.0]}), *few_shot({4: [70.0, 71.0]}, weight=0.3)]
    (sheet,) = compared(records, "coop", "cma")
    assert line(sheet, "paired t over seeds")[-3:] == ["+0.00", "–", "–"]
    assert line(sheet, "sign over seeds")[-1] == "1.0000"
    assert "or 0, t has no p" in sheet.notes[1]


def test_rounding_is_nobodys_win() -> None:
    assert 0.1 + 0.2 != 0.3
    first, second = [50.0] * 10 + [0.1 + 0.2], [51.0] * 10 + [0.3]
    assert sign_test(first, second) == stats.binomtest(0, 10).pvalue
    assert shown(Entry(-1e-15, signed=True)) == "+0.00"


def test_only_seeds_of_both_are_paired() -> None:
    records = [*few_shot({4: [70.0, 71.0, 75.0]})[1:], *few_shot({4: [72.0, 72.5]}, weight=0.3)]
    (sheet,) = compared(records, "coop", "coop+cma-0.3")
    assert line(sheet, "one seed, no test")[3:7] == ["1", "71.00", "72.50", "+1.50"]


def test_over_datasets_the_means_are_paired() -> None:
    names = ["caltech101", "dtd", "eurosat"]
    first = [
        one for i, d in enumerate(names) for one in few_shot({4: [50.0 + i]}, config=FewShotConfig(dataset=d))
    ]
    second = [
        one
        for i, d in enumerate(names)
        for one in few_shot({4: [51.0 + 3 * i]}, weight=0.3, config=FewShotConfig(dataset=d))
    ]
    (sheet,) = compared([*first, *second], "coop", "cma")
    p = stats.ttest_rel([51.0, 54.0, 57.0], [50.0, 51.0, 52.0]).pvalue
    assert line(sheet, "paired t over datasets", "all 3")[-1] == f"{p:.4f}"
    assert line(sheet, "sign over datasets", "all 3")[-1] == "0.2500"
    assert {row[0] for number, row in enumerate(sheet.rows) if number in sheet.averages} == {"all 3"}


def test_images_of_a_run_by_mcnemar_and_bootstrap(tmp_path: Path) -> None:
    records = [
        right(few_shot({4: [0.0]})[0], range(0, 20), tmp_path),  # 5 of them the other gets wrong
        right(few_shot({4: [0.0]}, weight=0.3)[0], range(5, 32), tmp_path),  # 12 the first gets wrong
    ]
    (sheet,) = compared(records, "coop", "cma", folder=tmp_path)
    found = line(sheet, "McNemar, seed 1")
    p = stats.binomtest(5, 17).pvalue
    assert found[3:7] == ["40", "50.00", "67.50", "+17.50"] and found[-1] == f"{p:.4f}"
    low, high = (float(text.replace("−", "-")) for text in found[7].split(" to "))
    # A draw has mean 7/40 and variance 17/40 − (7/40)².
    half = 196 * ((17 / 40 - (7 / 40) ** 2) / 40) ** 0.5
    assert (low, high) == (pytest.approx(17.5 - half, abs=2.6), pytest.approx(17.5 + half, abs=2.6))


def test_predictions_must_be_the_records_own_and_of_the_same_images(tmp_path: Path) -> None:
    first = right(few_shot({4: [0.0]})[0], range(20), tmp_path)
    second = right(few_shot({4: [0.0]}, weight=0.3)[0], range(30), tmp_path)
    wrong = replace(second, figures={**second.figures, "accuracy": 10.0})
    with pytest.raises(
        UserError, match=r"Expected predictions of the record in .*10\.00 .*got others \(75\.00\)"
    ):
        compared([first, wrong], "coop", "cma", folder=tmp_path)
    moved = torch.stack([torch.zeros(40, dtype=torch.long), TRUE.flip(0)], dim=1)
    save_predictions(tmp_path / second.run, {"test": moved})
    other = replace(second, figures={**second.figures, "accuracy": 25.0})
    (sheet,) = compared([first, other], "coop", "cma", folder=tmp_path)
    assert [row[2] for row in sheet.rows] == ["one seed, no test"]


def test_zero_shot_stands_beside_every_seed_and_halves_beside_h(tmp_path: Path) -> None:
    records = [zero_shot(60.0), *few_shot({4: [70.0, 72.0]})]
    (sheet,) = compared(records, "zero-shot", "coop")
    assert line(sheet, "paired t over seeds")[3:7] == ["2", "60.00", "71.00", "+11.00"]
    halves = [*base_to_novel([(80, 60), (81, 62)], 0.0), *base_to_novel([(79, 66), (80, 67)], 0.5)]
    (sheet,) = compared(halves, "coop", "cma")
    assert [row[1] for row in sheet.rows[::2]] == ["base, 16 shots", "novel, 16 shots", "H, 16 shots"]
    assert not any("H over datasets" in note for note in sheet.notes)
    assert isinstance(entry := sheet.rows[2][6], Entry) and entry.value == pytest.approx(5.5)


def test_which_method_is_meant() -> None:
    records = [*few_shot({4: [70.0]}), *few_shot({4: [71.0]}, weight=0.3), *few_shot({4: [72.0]}, weight=0.6)]
    (place,) = places(build_tables(records))
    found = find_method(place, "CoOp + CMA, λ=0.6")
    assert found is not None and found.weight == 0.6
    with pytest.raises(UserError, match=r"got 'cma', which may be 'coop\+cma-0.3', 'coop\+cma-0.6'"):
        compared(records, "coop", "cma")
    with pytest.raises(UserError, match=r"out of coop, .* got 'coop\+cma-0.4' \(did you mean"):
        compared(records, "coop", "coop+cma-0.4")
    with pytest.raises(UserError, match="Expected two methods for --compare"):
        compared(records, "coop")
    apart = [*few_shot({4: [70.0]}), *few_shot({1: [71.0]}, weight=0.3)]
    with pytest.raises(UserError, match="on the same dataset and backbone at the same shots, got none"):
        compared(apart, "coop", "cma")
    # In base-to-novel "cma" may be several, few-shot knows which one it is.
    both = [
        *records[:2],
        *(one for w in (0.1, 0.2) for one in base_to_novel([(80, 60)], w, BaseToNovelConfig())),
    ]
    assert len(compared(both, "coop", "cma")) == 1


def test_the_command_line_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in (*few_shot({4: [70.0, 71.0]}), *few_shot({4: [72.0, 72.0]}, weight=0.3)):
        save_record(tmp_path / one.run, one)
    main(["report", str(tmp_path), "--compare", "coop,cma", "--figures", str(tmp_path)])
    assert "paired tests: CoOp + CMA, λ=0.3 against CoOp" in capsys.readouterr().out


def test_as_csv_both_comparisons_stand_below_each_other_in_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = FewShotConfig(dataset="dtd", backbone="RN50-quickgelu", pretrained="openai")
    plain, other = few_shot({4: [0.0]}, config=config)[0], few_shot({4: [0.0]}, weight=0.3, config=config)[0]
    for one, which in ((plain, range(20)), (other, range(5, 32))):
        save_record(tmp_path / one.run, right(one, which, tmp_path))
    options = ["--against", "paper", "--compare", "coop,cma", "--format", "csv"]
    main(["report", str(tmp_path), *options, "--figures", str(tmp_path)])
    figures, against, paired = capsys.readouterr().out.split("\n\n")
    assert {row["method"] for row in csv.DictReader(io.StringIO(figures))} == {"CoOp", "CoOp + CMA, λ=0.3"}
    (line,) = csv.DictReader(io.StringIO(against))
    assert (line["method"], line["paper"]) == ("CoOp, 4 shots", "53.63")
    _, images = csv.DictReader(io.StringIO(paired))
    assert images["test"] == "McNemar, seed 1"
    low, high = float(images["95 % interval low"]), float(images["95 % interval high"])
    assert low < float(images["difference"]) == 17.5 < high
