"""The release's λ in one row where they go with the shots, and apart where they belong to a sweep."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from test_report_tables import accuracy, cells, few_shot

from cma_tune.config import ContextConfig, FewShotConfig, LossConfig, OptimConfig
from cma_tune.records import Record
from cma_tune.report import build_tables, comparison_sentence, format_tables
from cma_tune.report.methods import places
from cma_tune.report.paired import paired_sheets

DTD = FewShotConfig(dataset="dtd", loss=LossConfig("mean", True))
NAME = "CoOp + CMA, λ of the release"


def release(config: FewShotConfig = DTD) -> list[Record]:
    """DTD's λ is 0.4 at 1 and 2 shots and 0.7 from 4 on."""
    early = few_shot({1: [50.0, 52.0], 2: [53.0, 55.0]}, weight=0.4, config=config)
    return [*few_shot({4: [60.0, 62.0], 16: [70.0, 72.0]}, weight=0.7, config=config), *early]


def test_the_releases_weights_are_one_row_that_names_them() -> None:
    plain = few_shot({1: [49.0, 51.0], 16: [70.0, 70.0]}, config=DTD)
    table = accuracy([*release(), *plain])
    assert cells(table) == {
        "CoOp": ["50.00 ± 1.39", "–", "–", "70.00 ± 0.00"],
        NAME: ["51.00 ± 1.39", "54.00 ± 1.39", "61.00 ± 1.39", "71.00 ± 1.39"],
    }
    assert f"{NAME}: 0.4 at 1, 2 shots; 0.7 at 4, 16 shots." in table.notes
    assert "Epochs: 50 at 1 shot; 100 at 2, 4 shots; 200 at 16 shots." in table.notes
    sentence = comparison_sentence([*release(), *plain])
    assert sentence is not None and "λ of the release at 1 shot +1.00" in sentence


def test_a_dataset_of_ones_own_has_what_its_catalogue_says() -> None:
    config = FewShotConfig(dataset="birds", loss=LossConfig("mean", True))
    own = [
        *few_shot({1: [70.0]}, weight=0.4, config=config),
        *few_shot({2: [80.0]}, weight=0.7, config=config),
    ]
    (table, *_) = build_tables([replace(r, training={**r.training, "recipe_weight": r.weight}) for r in own])
    (row,) = table.rows
    assert row.name == "CoOp + CMA, λ of the release" and all(row.cells)
    said = f"{row.name}: 0.4 at 1 shot; 0.7 at 2 shots, of the dataset's entry in the user's catalogue."
    assert said in table.notes
    assert len(build_tables(own)[0].rows) == 2


def test_csv_gives_the_weight_of_every_cell() -> None:
    frame = pd.read_csv(io.StringIO(format_tables([accuracy(release())], "csv")))
    assert dict(zip(frame.shots, frame.weight, strict=True)) == {1: 0.4, 2: 0.4, 4: 0.7, 16: 0.7}
    assert set(frame.method) == {NAME}


def test_a_weight_of_a_sweep_keeps_its_row() -> None:
    other = few_shot({1: [1.0], 16: [2.0]}, weight=0.3, config=DTD)
    assert list(cells(accuracy([*release(), *other]))) == ["CoOp + CMA, λ=0.3", NAME]
    beyond = few_shot({16: [3.0]}, weight=0.4, config=DTD)  # the release's at 16 shots is 0.7
    assert list(cells(accuracy([*release(), *beyond]))) == ["CoOp + CMA, λ=0.4", "CoOp + CMA, λ=0.7"]


@pytest.mark.parametrize(
    "config",
    [
        FewShotConfig(dataset="sun397"),  # one λ at all shots
        FewShotConfig(dataset="digits"),  # none
    ],
)
def test_other_datasets_show_their_numbers(config: FewShotConfig) -> None:
    weight = 0.2
    table = accuracy(few_shot({1: [50.0], 16: [70.0]}, weight=weight, config=config))
    assert [row.name for row in table.rows] == [f"CoOp + CMA, λ={weight}"]


@pytest.mark.parametrize("form", [("sum", False), ("mean", False), ("sum", True)])
def test_the_releases_numbers_in_another_form_of_the_loss_are_not_its_weights(form: Any) -> None:
    other = release(replace(DTD, loss=LossConfig(*form)))
    assert list(cells(accuracy(other))) == ["CoOp + CMA, λ=0.4", "CoOp + CMA, λ=0.7"]
    (place,) = places(build_tables(other))
    assert [(method.key, method.release) for method in place.methods] == [
        ("coop+cma-0.4", False), ("coop+cma-0.7", False)
    ]  # fmt: skip


def test_one_weight_that_is_the_releases_is_said_below() -> None:
    records = few_shot({16: [50.0]}, weight=0.7, config=DTD)
    table = accuracy([*records, *few_shot({16: [51.0]}, weight=0.4, config=DTD)])
    assert "CoOp + CMA, λ=0.7: λ of the release." in table.notes
    assert not any("λ=0.4" in note for note in table.notes)
    paired = [*records, *few_shot({16: [51.0]}, config=DTD)]
    (sheet,) = paired_sheets(build_tables(paired), ("coop", "cma"), {})
    assert "CoOp + CMA, λ=0.7: λ of the release." in sheet.notes


def test_other_settings_stay_apart() -> None:
    longer = replace(DTD, context=ContextConfig(tokens=4))
    table = accuracy([*release(), *release(longer)])
    assert [row.name for row in table.rows] == [f"{NAME} (tokens=16)", f"{NAME} (tokens=4)"]
    # Two numbers of epochs at the same shots leave the λ in rows of their own.
    short = FewShotConfig(dataset="dtd", loss=DTD.loss, optim=OptimConfig(epochs=3))
    rows = accuracy([*release(), *few_shot({4: [1.0]}, weight=0.7, config=short)]).rows
    values = [cell.values for row in rows for cell in row.cells if cell and cell.shots == 4]
    assert sorted(values) == [(1.0,), (60.0, 62.0)]
