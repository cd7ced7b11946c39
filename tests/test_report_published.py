"""The paper's figures beside ours."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from test_report_tables import base_to_novel, few_shot, zero_shot

from cma_tune.cli import main
from cma_tune.config import BaseToNovelConfig, FewShotConfig, LossConfig, ZeroShotConfig
from cma_tune.data.catalog import CATALOG
from cma_tune.errors import UserError
from cma_tune.records import Record, save_record
from cma_tune.report import build_tables, report
from cma_tune.report.published import against_paper, published
from cma_tune.report.sheets import shown

RN50 = {"backbone": "RN50-quickgelu", "pretrained": "openai"}


def rows(records: list[Record]) -> list[list[str]]:
    return [
        [shown(entry) for entry in row]
        for sheet in against_paper(build_tables(records))
        for row in sheet.rows
    ]


def dtd() -> FewShotConfig:
    return FewShotConfig(dataset="dtd", loss=LossConfig("mean", True), **RN50)  # type: ignore[arg-type]


def test_all_figures_of_table_one_are_there_and_average_to_the_papers_averages() -> None:
    few = published("few-shot")
    assert {one.dataset for one in few} == {*CATALOG, "average"}
    for method, shots in [("zero_shot", (0,)), ("coop", (1, 2, 4, 8, 16)), ("coop_cma", (1, 2, 4, 8, 16))]:
        for number in shots:
            found = {o.dataset: o.accuracy for o in few if (o.method, o.shots) == (method, number)}
            assert len(found) == 12
            mean = sum(value for name, value in found.items() if name != "average") / 11
            # The paper's averages of CoOp + CMA are up to 0.06 off its rows' means (73.14 at 16 shots).
            assert found["average"] == pytest.approx(mean, abs=0.061), (method, number)
    novel = published("base-to-novel")
    stated = [69.24, 69.48, 71.31, 69.92, 71.46, 70.88, 70.00, 70.57, 69.27, 63.53, 57.73]
    for tenth, average in enumerate(stated):
        found = {one.dataset: one.accuracy for one in novel if one.method == f"{tenth / 10:g}"}
        assert set(found) == set(CATALOG)
        assert sum(found.values()) / 11 == pytest.approx(average, abs=0.011), tenth


def test_differences_outside_both_intervals_are_marked() -> None:
    # The paper's CoOp on DTD: 45.13 ± 1.52 at 1 shot, 63.20 ± 0.58 at 16; CoOp + CMA 44.60 ± 1.62 at 1.
    records = [
        zero_shot(42.32, ZeroShotConfig(dataset="dtd", **RN50)),  # type: ignore[arg-type]
        *few_shot({1: [46.0, 47.0, 48.0], 16: [62.5, 62.6, 62.7], 4: [50.0]}, config=dtd()),
        *few_shot({2: [30.0, 31.0], 8: [20.0, 20.0, 20.0]}, config=dtd()),
        *few_shot({1: [40.0, 44.5, 49.0]}, weight=0.4, config=dtd()),
        *few_shot({1: [10.0]}, weight=0.3, config=dtd()),  # not the release's: no counterpart
    ]
    assert rows(records) == [
        ["dtd", "Zero-shot", "42.32", "42.32", "+0.00", "equal"],
        ["dtd", "CoOp, 1 shot", "47.00 ± 0.92", "45.13 ± 1.52", "+1.87", "yes"],
        ["dtd", "CoOp, 2 shots", "30.50 ± 0.69", "47.40 ± 1.44", "−16.90", "–"],  # two seeds
        ["dtd", "CoOp, 4 shots", "50.00", "53.63 ± 0.96", "−3.63", "–"],
        ["dtd", "CoOp, 8 shots", "20.00 ± 0.00", "58.90 ± 0.73", "−38.90", "–"],  # three that agree
        ["dtd", "CoOp, 16 shots", "62.60 ± 0.09", "63.20 ± 0.58", "−0.60", "yes"],
        ["dtd", "CoOp + CMA, λ of the release, 1 shot", "44.50 ± 4.16", "44.60 ± 1.62", "−0.10", "no"],
    ]
    # Within one of the two is not outside both.
    near = few_shot({1: [46.0, 46.5, 47.0]}, config=dtd())  # 1.37 away, within the paper's 1.52
    assert rows(near)[0][-1] == "no"


def test_zero_shot_without_an_interval_is_equal_or_differs() -> None:
    # The paper's on DTD is 42.32: one image of the 1,692 more is 42.38.
    def verdict(accuracy: float, **backbone: str) -> tuple[str, ...]:
        config = ZeroShotConfig(dataset="dtd", **{**RN50, **backbone})  # type: ignore[arg-type]
        (sheet,) = against_paper(build_tables([zero_shot(accuracy, config)]))
        assert any("Zero-shot has no seeds" in note for note in sheet.notes)
        return tuple(map(shown, sheet.rows[0][-2:]))

    assert verdict(42.3249) == ("+0.00", "equal") and verdict(42.3168) == ("+0.00", "equal")
    assert verdict(42.38) == ("+0.06", "differs") and verdict(42.31) == ("−0.01", "differs")
    assert verdict(42.32, backbone="RN101") == ("+0.00", "–")  # another backbone's is not judged


def test_novel_accuracy_by_lambda_and_a_word_on_other_backbones() -> None:
    config = BaseToNovelConfig(
        dataset="eurosat", backbone="ViT-B-16-quickgelu", pretrained="openai", loss=LossConfig("mean", True)
    )
    records = [*base_to_novel([(90, 60), (90, 61), (90, 62)], 0.2, config)]
    records += base_to_novel([(90, 10)], 0.25, config)
    assert rows(records) == [
        ["eurosat", "CoOp + CMA, λ=0.2, 16 shots", "61.00 ± 0.92", "61.13 ± 1.52", "−0.13", "no"]
    ]
    beside = zero_shot(50.0, ZeroShotConfig(dataset="eurosat", backbone=config.backbone, pretrained="openai"))
    (sheet,) = against_paper(build_tables([*records, beside]))  # none of few-shot, which nobody ran
    assert not any("backbone" in note for note in sheet.notes)
    assert any("judged in the release's form of the loss (reduction=mean, norm" in n for n in sheet.notes)
    summed = base_to_novel(
        [(90, 60), (90, 61), (90, 62)], 0.2, replace(config, loss=LossConfig("sum", False))
    )
    assert [row[-1] for row in rows(summed)] == ["–"]
    (other,) = against_paper(build_tables(few_shot({1: [70.0, 71.0]}, config=FewShotConfig(dataset="dtd"))))
    assert shown(other.rows[0][-1]) == "–"  # nothing is judged
    assert any("paper's backbone is RN50" in note for note in other.notes)


def test_lambda_in_another_form_of_the_loss_is_no_counterpart() -> None:
    summed = replace(dtd(), loss=LossConfig("sum", False))
    records = few_shot({1: [40.0, 44.5, 49.0]}, weight=0.4, config=summed)
    with pytest.raises(UserError, match="CoOp \\+ CMA few-shot with --weights recipe"):
        against_paper(build_tables(records))
    (sheet,) = against_paper(build_tables([*records, *few_shot({1: [45.0]}, config=dtd())]))
    assert [row[1] for row in sheet.rows] == ["CoOp, 1 shot"]
    assert "Left out, in another form of the loss: CoOp + CMA, λ=0.4." in sheet.notes
    released = few_shot({1: [46.0]}, weight=0.4, config=dtd())
    (sheet,) = against_paper(build_tables([*records, *released]))
    assert [shown(row[2]) for row in sheet.rows] == ["46.00"]
    assert any("release in its form of the loss (reduction=mean, normalize=true)" in n for n in sheet.notes)


@pytest.mark.parametrize(
    "origin", ["miniature of drawn images; …", "the source's own train, not the published split"]
)
def test_other_images_than_the_papers_are_not_judged(origin: str) -> None:
    records = [
        zero_shot(42.32, ZeroShotConfig(dataset="dtd", **RN50)),  # type: ignore[arg-type]
        *few_shot({1: [46.0, 47.0, 48.0]}, config=dtd()),
    ]
    records = [replace(one, dataset={**one.dataset, "origin": origin}) for one in records]
    assert [row[-1] for row in rows(records)] == ["–", "–"]
    (sheet,) = against_paper(build_tables(records))
    assert "Not judged, on a miniature or another split than the published one: dtd." in sheet.notes


def test_averages_are_compared_over_all_eleven_alone() -> None:
    eleven = [
        one
        for name in CATALOG
        for one in few_shot({16: [73.0, 74.0]}, config=FewShotConfig(dataset=name, **RN50))  # type: ignore[arg-type]
    ]
    assert rows(eleven)[-1] == ["average", "CoOp, 16 shots", "73.50 ± 0.69", "73.07", "+0.43", "–"]
    assert all(row[0] != "average" for row in rows(eleven[2:]))


def test_nothing_of_the_papers_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"Expected few-shot or base-to-novel records .* got none"):
        against_paper(build_tables(few_shot({1: [70.0]})))


def test_the_command_line_puts_them_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, one in enumerate(few_shot({1: [46.0, 47.0, 48.0]}, config=dtd())):
        save_record(tmp_path / str(number), one)
    main(["report", str(tmp_path), "--against", "paper", "--format", "csv"])
    _, beside = capsys.readouterr().out.split("\n\n")
    (line,) = csv.DictReader(io.StringIO(beside))
    assert (line["dataset"], line["ours"], line["paper"], line["paper interval"]) == (
        "dtd",
        "47.0",
        "45.13",
        "1.52",
    )
    assert (line["outside both"], float(line["difference"])) == ("yes", pytest.approx(1.87))
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path), "--against", "papre"])
    with pytest.raises(UserError, match="Expected 'paper'"):
        report(str(tmp_path), against="papre")
