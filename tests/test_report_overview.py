"""Tables over datasets, from made-up records: averages by hand, λ chosen on test beside the fair choice."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_report_tables import base_to_novel, few_shot, record, zero_shot

from cma_tune.config import BaseToNovelConfig, FewShotConfig, LossConfig, OptimConfig, ZeroShotConfig
from cma_tune.metrics import harmonic_mean
from cma_tune.predictions import save_predictions
from cma_tune.records import Record, save_record
from cma_tune.report import build_tables, report
from cma_tune.report.methods import places
from cma_tune.report.overview import overview_sheets
from cma_tune.report.paired import paired_sheets
from cma_tune.report.sheets import Entry, Sheet, Span, format_sheets, shown
from cma_tune.run import expand

RELEASE = LossConfig("mean", True)


def on(dataset: str) -> FewShotConfig:
    return FewShotConfig(dataset=dataset, loss=RELEASE)


def sheets(records: list[Record]) -> list[Sheet]:
    return overview_sheets(build_tables(records))


def texts(sheet: Sheet) -> list[list[str]]:
    return [[shown(entry) for entry in row] for row in sheet.rows]


def chosen(dataset: str, weight: float, value: float, candidates: list[float]) -> Record:
    (run,) = expand("few-shot", replace(on(dataset), shots=[4], weights=[weight]))
    one = record(run, {"accuracy": value})
    selection = {"on": "few-shot validation images", "candidates": [[w, 1.0] for w in candidates]}
    config = {**one.config, "select_weight": True}
    return replace(one, run=f"chosen {dataset}", selection=selection, config=config)


def test_few_shot_over_datasets_with_averages_by_seed() -> None:
    records = [
        *few_shot({1: [70.0, 72.0], 4: [80.0, 84.0]}, config=on("dtd")),
        *few_shot({1: [50.0, 56.0], 4: [60.0, 60.0]}, config=on("eurosat")),
        *few_shot({1: [71.0, 75.0]}, weight=0.4, config=on("dtd")),  # the release's at 1 shot
        *few_shot({4: [83.0, 83.0]}, weight=0.7, config=on("dtd")),  # and at 4
        *few_shot({1: [51.0, 51.0]}, weight=0.1, config=on("eurosat")),
        zero_shot(40.0, ZeroShotConfig(dataset="dtd")),
        zero_shot(30.0, ZeroShotConfig(dataset="eurosat")),
    ]
    (sheet,) = sheets(records)
    assert sheet.headers == ("dataset", "Zero-shot", "method", "1 shot", "4 shots")
    release = "CoOp + CMA, λ of the release"
    assert texts(sheet) == [
        ["dtd", "40.00", "CoOp", "71.00 ± 1.39", "82.00 ± 2.77"],
        ["", "", release, "73.00 ± 2.77", "83.00 ± 0.00"],
        ["eurosat", "30.00", "CoOp", "53.00 ± 4.16", "60.00 ± 0.00"],
        ["", "", release, "51.00 ± 0.00", "–"],
        # By seed: (70+50)/2 = 60 and (72+56)/2 = 64, so 62 ± 1.96·2/√2; (71+51)/2 = 61 and 63.
        ["average over 2", "35.00", "CoOp", "62.00 ± 2.77", "71.00 ± 1.39"],
        ["", "", release, "62.00 ± 1.39", "83.00 ± 0.00 (1 of 2)"],
    ]
    best = [[isinstance(e, Entry) and e.best for e in row[3:]] for row in sheet.rows]
    # Where all means are equal none is marked, and an average over fewer datasets is not compared.
    nothing = [False, False]
    assert best == [nothing, [True, True], [True, False], nothing, nothing, nothing]
    assert sheet.rules == frozenset({2, 4}) and sheet.averages == frozenset({4, 5})


def test_a_single_dataset_needs_no_table_over_datasets() -> None:
    assert sheets([*few_shot({1: [70.0]}), *few_shot({1: [71.0]}, weight=0.3)]) == []


def test_averages_without_common_seeds_have_no_interval() -> None:
    one = few_shot({1: [70.0, 72.0]}, config=on("dtd"))
    other = few_shot({1: [50.0, 52.0, 60.0]}, config=on("eurosat"))
    (sheet,) = sheets([*one, *other])
    assert texts(sheet)[-1] == ["average over 2", "CoOp", "62.50"]


def test_h_of_the_averages_is_of_average_base_and_novel() -> None:
    records = [
        *base_to_novel([(80, 60), (90, 50)], 0.5, BaseToNovelConfig(dataset="dtd")),
        *base_to_novel([(70, 70), (60, 40)], 0.5, BaseToNovelConfig(dataset="eurosat")),
    ]
    (sheet,) = sheets(records)
    assert sheet.headers == ("dataset", "method", "base", "novel", "H")
    values = [entry.value for entry in sheet.rows[-1] if isinstance(entry, Entry)]
    assert values == pytest.approx([75.0, 55.0, harmonic_mean(75, 55)])
    last = sheet.rows[-1][-1]
    by_seed = harmonic_mean(75, 65), harmonic_mean(75, 45)
    assert isinstance(last, Entry)
    assert last.interval == pytest.approx(1.96 * (by_seed[0] - by_seed[1]) / 2 / 2**0.5)


def test_both_halves_among_all_names_have_a_table_over_datasets_and_tests(tmp_path: Path) -> None:
    records = []
    for dataset, weight, right in (
        ("dtd", 0.0, 4),
        ("dtd", 0.5, 7),
        ("eurosat", 0.0, 2),
        ("eurosat", 0.5, 2),
    ):
        (one,) = base_to_novel([(80, 60)], weight, BaseToNovelConfig(dataset=dataset))
        # Four classes of five images each; the first half is base. All base images are right.
        true = torch.arange(4).repeat_interleave(5)
        seen = true.clone()
        seen[10 + right :] = 0
        among = {"base_accuracy": 100.0, "novel_accuracy": 10.0 * right}
        among["harmonic_mean"] = harmonic_mean(*among.values())
        figures = {**one.figures, **{f"{name}_among_all": value for name, value in among.items()}}
        per_class: dict[str, dict[str, float | None]] = {
            "base": {"a": 1.0, "b": 1.0},
            "novel": {"c": 1.0, "d": None},
        }
        records.append(replace(one, figures=figures, per_class=per_class))
        save_predictions(tmp_path / one.run, {"all": torch.stack([seen, true], dim=1)})
    over = next(one for one in sheets(records) if one.title.startswith("Generalised base-to-novel"))
    assert over.headers == ("dataset", "method", "base", "novel", "H")
    assert texts(over)[-2:] == [  # H of (100, 30) and of (100, 45)
        ["average over 2", "CoOp", "100.00", "30.00", f"{6000 / 130:.2f}"],
        ["", "CoOp + CMA, λ=0.5", "100.00", "45.00", f"{9000 / 145:.2f}"],
    ]
    folders = {one.run: tmp_path / one.run for one in records}
    (paired,) = paired_sheets(build_tables(records), ("coop", "coop+cma-0.5"), folders)
    rows = [
        row for row in texts(paired) if row[:3] == ["dtd", "novel among all, 16 shots", "McNemar, seed 1"]
    ]
    assert [row[3:7] for row in rows] == [["10", "40.00", "70.00", "+30.00"]]
    assert rows[0][-1] == "0.2500"  # three images, all for the second: 2·2⁻³
    rows = [row for row in texts(paired) if row[:3] == ["dtd", "base among all, 16 shots", "McNemar, seed 1"]]
    assert [row[3:7] for row in rows] == [["10", "100.00", "100.00", "+0.00"]]


def test_h_by_lambda_is_averaged_and_chosen_as_in_the_other_tables() -> None:
    # The mean of H is 45 at λ=0.1 and 50 at 0.5; H of the averages, (60, 60) and (50, 50), is 60 and 50.
    halves = {0.1: {"dtd": (90, 30), "eurosat": (30, 90)}, 0.5: {"dtd": (50, 50), "eurosat": (50, 50)}}
    records = [
        one
        for weight, by_dataset in halves.items()
        for dataset, pair in by_dataset.items()
        for one in base_to_novel([pair], weight, BaseToNovelConfig(dataset=dataset))
    ]
    over, _, by_weight = sheets(records)
    assert [row[-1] for row in texts(over)[-2:]] == ["60.00", "50.00"]
    assert by_weight.headers == ("dataset", "λ=0.1", "λ=0.5", "best single λ=0.1", "best λ per dataset")
    assert texts(by_weight)[-1] == ["average over 2", "60.00", "50.00", "60.00", "50.00"]
    said = "Average H: the harmonic mean of average base and average novel accuracy, as in the literature."
    assert said in over.notes and said in by_weight.notes
    (paired,) = paired_sheets(build_tables(records), ("coop+cma-0.1", "coop+cma-0.5"), {})
    (row,) = [
        row
        for row in texts(paired)
        if row[0] == "all 2" and row[1:3] == ["H, 16 shots", "paired t over datasets"]
    ]
    assert (
        row[4:7] == ["45.00", "50.00", "+5.00"]
        and "pair the seeds' own H, and over datasets its means" in paired.notes[-1]
    )


def test_lambda_best_single_best_per_dataset_and_fair() -> None:
    accuracy = {"dtd": {0.0: 70.0, 0.3: 75.0, 0.6: 74.0}, "eurosat": {0.0: 50.0, 0.3: 40.0, 0.6: 49.0}}
    records = [
        one
        for dataset, by_weight in accuracy.items()
        for weight, value in by_weight.items()
        for one in few_shot({4: [value]}, weight=weight, config=on(dataset))
    ]
    records += [chosen("dtd", 0.6, 74.0, [0.0, 0.3, 0.6]), chosen("eurosat", 0.6, 49.0, [0.0, 0.3, 0.6])]
    _, sheet = sheets(records)
    assert sheet.headers == (
        *("dataset", "λ=0", "λ=0.3", "λ=0.6", "best single λ=0.6", "best λ per dataset", "λ by validation"),
    )
    assert texts(sheet) == [
        ["dtd", "70.00", "75.00", "74.00", "74.00", "75.00 (λ=0.3)", "74.00 (λ=0.6)"],
        ["eurosat", "50.00", "40.00", "49.00", "49.00", "50.00 (λ=0)", "49.00 (λ=0.6)"],
        ["average over 2", "60.00", "57.50", "61.50", "61.50", "62.50", "61.50"],
    ]
    assert "chosen on the test images" in sheet.notes[0] and "fair" in sheet.notes[1]
    (_, bare) = sheets(records[:-2])
    assert bare.headers[-1] == "best λ per dataset" and "--select-weight" in bare.notes[1]


def test_a_lambda_that_did_not_run_everywhere_is_no_single_choice() -> None:
    records = [
        one
        for dataset, weights in {"dtd": (0.0, 0.3, 0.9), "eurosat": (0.0, 0.3)}.items()
        for weight in weights
        for one in few_shot({4: [50 + weight]}, weight=weight, config=on(dataset))
    ]
    _, sheet = sheets(records)
    assert "best single λ=0.3" in sheet.headers
    assert texts(sheet)[-1][3] == "–" and texts(sheet)[1][3] == "–"


def test_a_sweep_keeps_its_lambda_beside_the_releases() -> None:
    records = [
        one
        for dataset in ("caltech101", "eurosat")  # the release's λ are 0.8 and 0.1
        for weight in (0.0, 0.1, 0.8)
        for one in few_shot({4: [50.0]}, weight=weight, config=on(dataset))
    ]
    (place,) = places(build_tables(records))
    keys = [method.key for method in place.methods]
    assert keys == ["coop", "coop+cma-0.1", "coop+cma-0.8", "coop+cma-release"]
    # Where one λ is the release's everywhere, it is not there twice.
    (place,) = places(build_tables([one for one in records if one.config["dataset"] == "caltech101"]))
    assert [(m.key, m.release) for m in place.learned] == [
        ("coop", False), ("coop+cma-0.1", False), ("coop+cma-0.8", True)
    ]  # fmt: skip


def test_base_to_novel_has_one_row_for_the_releases_lambda_instead_of_one_a_dataset() -> None:
    def novel(weight: float, dataset: str) -> list[Record]:
        config = BaseToNovelConfig(dataset=dataset, loss=RELEASE)
        return base_to_novel([(60.0, 40.0)], weight, config)

    release = {"caltech101": 0.8, "eurosat": 0.1}
    plain = [one for dataset in release for one in novel(0.0, dataset)]
    penalised = [one for dataset, weight in release.items() for one in novel(weight, dataset)]
    (sheet,) = sheets([*plain, *penalised])
    assert [row[1] for row in texts(sheet)] == ["CoOp", "CoOp + CMA, λ of the release"] * 3
    assert "λ of the release: those of its few-shot runs." in sheet.notes
    # A λ beside them makes a table by λ, in which each is what it is.
    third = [one for dataset in release for one in novel(0.5, dataset)]
    titles = {sheet.title.split(" at ")[0]: sheet for sheet in sheets([*plain, *penalised, *third])}
    headers = titles["Base-to-novel novel accuracy (%) by λ"].headers
    assert headers[1:5] == ("λ=0", "λ=0.1", "λ=0.5", "λ=0.8")
    # A sweep, which holds them anyway, is not given another row.
    others = [*novel(0.1, "caltech101"), *novel(0.8, "eurosat")]
    (place,) = places(build_tables([*plain, *penalised, *others]))
    assert [method.key for method in place.methods] == ["coop", "coop+cma-0.1", "coop+cma-0.8"]


def test_datasets_with_zero_shot_alone_are_left_out_and_named() -> None:
    alone = zero_shot(30.0, ZeroShotConfig(dataset="eurosat"))
    beside = zero_shot(40.0, ZeroShotConfig(dataset="dtd"))
    on_dtd = few_shot({1: [70.0]}, config=on("dtd"))
    assert sheets([*on_dtd, beside, alone]) == []  # one dataset is none to average over
    (sheet,) = sheets([*on_dtd, *few_shot({1: [50.0]}, config=on("food101")), beside, alone])
    assert texts(sheet)[-1] == ["average over 2", "40.00 (1 of 2)", "CoOp", "60.00"]
    assert "Without a learned method, and so left out: eurosat." in sheet.notes
    (sheet,) = sheets([beside, alone])
    assert texts(sheet) == [["dtd", "40.00"], ["eurosat", "30.00"], ["average over 2", "35.00"]]


def test_settings_that_differ_between_datasets_are_said() -> None:
    other = replace(on("eurosat"), optim=OptimConfig(lr=0.5))
    (sheet,) = sheets([*few_shot({1: [70.0]}, config=on("dtd")), *few_shot({1: [50.0]}, config=other)])
    assert "CoOp: settings differ between datasets (lr)." in sheet.notes


def test_every_form_of_a_sheet() -> None:
    sheet = Sheet(
        "A_b",
        ("dataset", "x & y"),
        (
            ("one", Entry(1.0, 0.5, best=True)),
            ("two", Entry(-2.5, note="(λ=1)", signed=True)),
            ("three", None),
        ),
        ("100 %.",),
        frozenset({1}),
        bold="Bold is best.",
    )
    text = format_sheets([sheet], "text").splitlines()
    assert [line for line in text if not line.startswith("─")] == [
        "A_b", "dataset  x & y", "one      1.00 ± 0.50", "two      −2.50 (λ=1)", "three    –", "100 %."
    ]  # fmt: skip
    assert sum(line.startswith("─") for line in text) == 4
    markdown = format_sheets([sheet], "markdown")
    assert "| one | **1.00 ± 0.50** |" in markdown and "Bold is best." in markdown and r"A\_b" in markdown
    latex = format_sheets([sheet], "latex")
    assert latex.count(r"\midrule") == 2 and r"\textbf{1.00 $\pm$ 0.50}" in latex and latex.isascii()
    assert r"x \& y" in latex and r"\toprule" in latex and r"100~\%." in latex
    rows = list(csv.reader(io.StringIO(format_sheets([sheet], "csv"))))
    assert rows == [
        ["table", "dataset", "x & y", "x & y interval", "x & y note"],
        ["A_b", "one", "1.0", "0.5", ""],
        ["A_b", "two", "-2.5", "", "(λ=1)"],
        ["A_b", "three", "", "", ""],
    ]
    small = [Entry(value, digits=4).text() for value in (0.0, 1e-9, 0.00006, 0.5)]
    assert small == ["0.0000", "<0.0001", "0.0001", "0.5000"]


def test_csv_of_tables_with_other_columns_stands_below_with_a_header_of_its_own() -> None:
    one = Sheet("A", ("x", "y"), (("one", Entry(1.0)),))
    other = Sheet("B", ("x", "95 % interval"), (("two", Span(-1.5, 0.0)), ("three", None)))
    assert shown(other.rows[0][1]) == "−1.50 to +0.00"
    assert format_sheets([one, other, replace(one, title="C")], "csv").splitlines() == [
        *("table,x,y", "A,one,1.0", "C,one,1.0"),
        "",
        *("table,x,95 % interval low,95 % interval high", "B,two,-1.5,0.0", "B,three,,"),
    ]


def test_the_report_prints_them_below_the_tables_of_each_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset in ("dtd", "eurosat"):
        for number, one in enumerate(few_shot({1: [70.0, 71.0]}, config=on(dataset))):
            save_record(tmp_path / dataset / str(number), one)
    report(str(tmp_path), figures=str(tmp_path / "figures"))
    printed = capsys.readouterr().out
    assert 0 < printed.index("dataset eurosat, backbone embedded") < printed.index("over datasets: backbone")
    report(str(tmp_path), "csv", figures=str(tmp_path / "figures"))
    assert "over datasets" not in capsys.readouterr().out
