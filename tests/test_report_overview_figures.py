"""Figures over datasets show the averages of the tables and a point for each dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report_tables import base_to_novel, few_shot, zero_shot

from cma_tune.config import BaseToNovelConfig, FewShotConfig, ZeroShotConfig
from cma_tune.records import Record
from cma_tune.report import build_tables, draw_figures
from cma_tune.report.overview_figures import overview_figures


def figures(records: list[Record]) -> dict[str, Any]:
    return dict(overview_figures(build_tables(records)))


def curves() -> list[Record]:
    """dtd and eurosat at 1 and 4 shots; the second method ran on caltech101 as well, the first did not."""
    first = {"dtd": {1: [50.0, 52.0], 4: [60.0, 64.0]}, "eurosat": {1: [40.0, 44.0], 4: [70.0, 70.0]}}
    second = {"dtd": {1: [51.0]}, "eurosat": {1: [45.0]}, "caltech101": {1: [99.0]}}
    return [
        *(one for name, by in first.items() for one in few_shot(by, config=FewShotConfig(dataset=name))),
        *(
            r
            for name, by in second.items()
            for r in few_shot(by, weight=0.3, config=FewShotConfig(dataset=name))
        ),
        *(
            zero_shot(value, ZeroShotConfig(dataset=name))
            for name, value in (("dtd", 30.0), ("eurosat", 20.0))
        ),
    ]


def test_average_curves_are_over_the_datasets_that_all_methods_have() -> None:
    figure = figures(curves())["few_shot-average-embedded.png"]
    (axes,) = figure.axes
    (first, _, (bars,)), (second, _, _) = axes.containers
    assert list(first.get_ydata()) == [46.5, 66.0]  # (50+52)/2 and (40+44)/2; 62 and 70
    assert list(second.get_ydata()) == [48.0]  # without caltech101
    # By seed 45 and 48 at 1 shot, 65 and 67 at 4.
    ends = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert ends == [pytest.approx(2 * 1.96 * 1.5 / 2**0.5), pytest.approx(2 * 1.96 * 1 / 2**0.5)]
    (reference,) = (one for one in axes.lines if one.get_label() == "Zero-shot")
    assert list(reference.get_ydata()) == [25.0, 25.0]
    assert figure.get_suptitle() == "Few-shot: average over 2 datasets, backbone embedded"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]


def test_a_method_of_one_dataset_does_not_take_the_average_from_the_others(tmp_path: Path) -> None:
    partial = few_shot({1: [90.0]}, weight=0.9, config=FewShotConfig(dataset="dtd"))
    figure = figures([*curves(), *partial])["few_shot-average-embedded.png"]
    (axes,) = figure.axes
    assert [list(bars[0].get_ydata()) for bars in axes.containers] == [[46.5, 66.0], [48.0]]
    assert figure.get_suptitle() == "Few-shot: average over 2 datasets, backbone embedded"
    said = figure.legends[0].get_title().get_text()
    assert said.endswith("\nleft out, not on all datasets: CoOp + CMA, λ=0.9")
    # Two methods are a comparison: it does not end for the datasets that only one of them has.
    names = ["caltech101", "dtd", "eurosat", "food101", "sun397"]
    one = [r for name in names for r in few_shot({1: [50.0]}, config=FewShotConfig(dataset=name))]
    two = [
        r for name in names[:2] for r in few_shot({1: [60.0]}, weight=0.3, config=FewShotConfig(dataset=name))
    ]
    (axes,) = figures([*one, *two])["few_shot-average-embedded.png"].axes
    assert len(axes.containers) == 2


def test_a_point_for_each_dataset_and_a_large_one_for_their_mean() -> None:
    pairs = {"dtd": (80.0, 60.0), "eurosat": (90.0, 40.0)}
    records = [
        one
        for name, (base, novel) in pairs.items()
        for weight in (0.0, 0.5)
        for one in base_to_novel([(base + weight, novel)], weight, BaseToNovelConfig(dataset=name))
    ]
    drawn = figures(records)
    assert set(drawn) == {"base_novel-embedded.png", "similarity-base_to_novel-embedded.png"}
    (axes,) = drawn["base_novel-embedded.png"].axes
    shown = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
    assert shown == [[(80, 60), (90, 40)], [(85, 50)], [(80.5, 60), (90.5, 40)], [(85.5, 50)]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("base accuracy (%)", "novel accuracy (%)")


def test_similarities_stand_against_each_other_at_the_most_shots() -> None:
    records = []
    for name, change in (("dtd", 0.0), ("eurosat", 0.1)):
        for shots in (1, 4):
            for one in few_shot({shots: [50.0]}, config=FewShotConfig(dataset=name)):
                values = {"class_similarity": 0.3 + change + shots / 100, "modal_similarity": 0.2 + change}
                records.append(replace(one, figures={**one.figures, **values}))
    (axes,) = figures(records)["similarity-few_shot-embedded.png"].axes
    points = [list(map(float, line.get_xdata())) for line in axes.lines]
    assert points == [pytest.approx([0.34, 0.44]), pytest.approx([0.39])]


def test_one_dataset_has_none_and_the_files_are_written_with_the_others(tmp_path: Path) -> None:
    alone = [*few_shot({1: [50.0], 4: [60.0]}), *base_to_novel([(80, 60)], 0.5)]
    assert figures(alone) == {}
    names = {path.name for path in draw_figures(curves(), tmp_path)}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert {"few_shot-average-embedded.png", "few_shot-dtd-embedded.png"} <= names
