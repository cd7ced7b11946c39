"""What must never be averaged together, and how the names of rows say so."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from test_report_tables import accuracy, cells, few_shot, record, zero_shot

from cma_tune.config import ContextConfig, FewShotConfig, LossConfig, OptimConfig
from cma_tune.run import expand


def epochs(number: int) -> FewShotConfig:
    return FewShotConfig(optim=OptimConfig(epochs=number))


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (FewShotConfig(), epochs(30), ["CoOp (epochs=200)", "CoOp (epochs=30)"]),
        (
            FewShotConfig(),
            FewShotConfig(context=ContextConfig(tokens=4, words="a photo of a")),
            ["CoOp (tokens=16, words=default)", "CoOp (tokens=4, words=a photo of a)"],
        ),
        (
            FewShotConfig(),
            FewShotConfig(train_features="stored", views=8),
            ["CoOp (train_features=live, views=0)", "CoOp (train_features=stored, views=8)"],
        ),
    ],
)
def test_runs_that_differ_in_a_setting_are_not_averaged(
    first: FewShotConfig, second: FewShotConfig, names: list[str]
) -> None:
    one = few_shot({16: [70.0, 72.0, 74.0]}, config=first)[:2]
    two = few_shot({16: [1.0, 1.0, 90.0]}, config=second)[2:]
    table = accuracy([*one, *two])
    by_name = cells(table)
    assert sorted(by_name) == sorted(names)
    assert [by_name[name] for name in names] == [["71.00 ± 1.39"], ["90.00 (n=1)"]]


def test_every_setting_of_a_run_keeps_runs_apart() -> None:
    """Whatever field of a config decides a result splits a row; where it is computed does not."""
    (run,) = expand("few-shot", FewShotConfig(weights=[0.5]))
    one = record(run, {"accuracy": 70.0})
    axes = {
        "dataset",
        "backbone",
        "pretrained",
        "model_config",
        "templates",
    }  # tables, or the record's entries
    axes |= {"shots", "weights", "select_weight", "learner", "seeds", "protocol"}
    decides = set(run.identity()) - axes
    tried = 0
    for name, value in asdict(run.config).items():
        for inner, entry in value.items() if isinstance(value, dict) else [(None, value)]:
            other: Any = (
                (entry + 1) if isinstance(entry, int | float) and not isinstance(entry, bool) else "other"
            )
            config = {**one.config, "seeds": [2], name: other if inner is None else {**value, inner: other}}
            if name in axes:
                continue
            rows = len(accuracy([one, replace(one, config=config, run="2")]).rows)
            if name == "mixed_precision":
                assert rows == 1  # the training's own entry is what counts
            else:
                assert rows == (2 if name in decides else 1), (name, inner)
            tried += 1
    assert tried > 25


@pytest.mark.parametrize(
    ("part", "key", "name"),
    [
        ("dataset", "split", "split=12121212"),
        ("backbone", "weights", "weights=12121212"),
        ("backbone", "preprocessing", "preprocessing=12121212"),
        ("training", "mixed_precision", "mixed_precision=bf16"),
    ],
)
def test_other_data_weights_or_precision_are_not_averaged(part: str, key: str, name: str) -> None:
    one, two = few_shot({1: [70.0, 80.0]})
    value = name.partition("=")[2] if part == "training" else "12" * 32
    changed: dict[str, Any] = {part: {**getattr(two, part), key: value}}
    table = accuracy([one, replace(two, **changed)])
    assert len(table.rows) == 2
    assert any(row.name == f"CoOp ({name})" for row in table.rows)
    assert {row.cells[0].values for row in table.rows if row.cells[0]} == {(70.0,), (80.0,)}


def test_a_different_split_is_named_across_methods_too() -> None:
    other = zero_shot(60.0)
    other = replace(other, dataset={**other.dataset, "split": "12" * 32})
    names = [row.name for row in accuracy([other, *few_shot({1: [70.0]})]).rows]
    assert names == ["Zero-shot (split=12121212)", "CoOp (split=abababab)"]


def test_zero_shot_runs_with_other_templates_have_rows_of_their_own() -> None:
    other = zero_shot(50.0)
    other = replace(other, dataset={**other.dataset, "templates": ["a {}.", "the {}."]})
    names = {row.name: row.cells[0].mean for row in accuracy([zero_shot(60.0), other]).rows if row.cells[0]}
    assert names == {
        "Zero-shot (templates=a photo of a {}.)": 60.0,
        "Zero-shot (templates=a {}. | the {}.)": 50.0,
    }


def test_default_epochs_follow_the_shots_in_one_row_and_reduced_ones_have_their_own() -> None:
    default = few_shot({1: [70.0], 4: [75.0], 16: [80.0]})
    assert [row.name for row in accuracy(default).rows] == ["CoOp"]
    reduced = few_shot({1: [60.0], 16: [65.0]}, config=epochs(30))
    table = accuracy([*default, *reduced])
    assert cells(table) == {
        "CoOp (epochs=50/100/200)": ["70.00", "75.00", "80.00"],
        "CoOp (epochs=30)": ["60.00", "–", "65.00"],
    }
    assert not any(note.startswith("Epochs") for note in table.notes)


def test_epochs_that_differ_between_lambdas_are_in_both_names() -> None:
    table = accuracy([*few_shot({16: [70.0]}), *few_shot({16: [71.0]}, weight=0.8, config=epochs(30))])
    assert [row.name for row in table.rows] == ["CoOp (epochs=200)", "CoOp + CMA, λ=0.8 (epochs=30)"]


def test_epochs_and_settings_that_differ_between_methods_are_noted() -> None:
    cocoop = FewShotConfig(learner="cocoop", optim=OptimConfig(epochs=10, batch_size=1))
    table = accuracy([*few_shot({16: [70.0]}), *few_shot({16: [71.0]}, config=cocoop)])
    assert [row.name for row in table.rows] == ["CoOp", "CoCoOp"]
    assert (
        "Settings that differ between methods: epochs (CoOp 200, CoCoOp 10); batch_size (CoOp 32, CoCoOp 1)."
        in table.notes
    )


def test_the_form_of_the_loss_matters_only_with_a_penalty() -> None:
    release = FewShotConfig(loss=LossConfig("mean", True))
    plain = [*few_shot({1: [70.0, 71.0]})[:1], *few_shot({1: [70.0, 71.0]}, config=release)[1:]]
    penalised = few_shot({1: [72.0]}, weight=0.5)
    table = accuracy([*plain, *penalised])
    assert cells(table) == {"CoOp": ["70.50 ± 0.69"], "CoOp + CMA, λ=0.5": ["72.00 (n=1)"]}
    both = accuracy([*penalised, *few_shot({1: [73.0]}, weight=0.5, config=release)])
    assert {row.name for row in both.rows} == {
        "CoOp + CMA, λ=0.5 (normalize=false, reduction=sum)",
        "CoOp + CMA, λ=0.5 (normalize=true, reduction=mean)",
    }


def test_the_same_number_of_epochs_is_one_row_whether_by_default_or_by_choice() -> None:
    # 50 epochs are the default at 1 shot only; at 4 shots they stand beside the default 100.
    records = [
        *few_shot({1: [70.0]}),
        *few_shot({4: [75.0]}, config=epochs(50)),
        *few_shot({4: [60.0]}, config=epochs(30)),
    ]
    assert cells(accuracy(records)) == {
        "CoOp (epochs=50)": ["70.00", "75.00"],
        "CoOp (epochs=30)": ["–", "60.00"],
    }


def test_a_record_without_a_setting_that_others_have_is_kept_apart_by_its_run() -> None:
    one, two = few_shot({1: [70.0, 80.0]})
    older = {name: value for name, value in two.config.items() if name != "views"}
    names = [row.name for row in accuracy([one, replace(two, config=older)]).rows]
    assert len(names) == 2 and sorted(names)[0] == "CoOp"
    assert sorted(names)[1] in (f"CoOp (run={one.run[:8]})", f"CoOp (run={two.run[:8]})")


def test_weights_of_two_files_of_one_name_are_told_apart_by_their_paths_alone() -> None:
    records = []
    for number, path in enumerate(("/a/best.pt", "/b/best.pt")):
        (one,) = few_shot({1: [70.0]}, config=FewShotConfig(backbone="RN50", pretrained=path))
        records.append(replace(one, backbone={**one.backbone, "weights": f"{number}a" * 32}))
    assert [row.name for row in accuracy(records).rows] == [
        "CoOp (pretrained=/a/best.pt)",
        "CoOp (pretrained=/b/best.pt)",
    ]
