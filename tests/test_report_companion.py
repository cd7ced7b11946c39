"""Tables of the companion's runs, from made records."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cma_tune.cli import main
from cma_tune.companion_options import MatchingConfig, ScheduleConfig, SemiSupervisedConfig, SupervisedConfig
from cma_tune.companion_run import CompanionRun, expand_companion
from cma_tune.errors import UserError
from cma_tune.records import Record, save_record
from cma_tune.report.companion import companion_sheets
from cma_tune.report.sheets import Entry, format_sheets

SCHEDULE = ScheduleConfig(steps=100)
COLLAPSE = {"collapse_entropy": 2.1972, "collapse_mutual_information_ratio": 0.95235}


def record_of(run: CompanionRun, accuracy: float, **figures: float) -> Record:
    return Record(
        run=run.digest(),
        protocol=run.protocol,
        config=asdict(run.config),
        dataset={"name": run.config.dataset, "split": "5" * 64},
        backbone={"name": str(run.config.network)},
        figures={"accuracy": accuracy, "best_accuracy": accuracy + 1, **COLLAPSE, **figures},
        per_class={},
    )


def records(config: SemiSupervisedConfig, *accuracies: float) -> list[Record]:
    runs = expand_companion("semi-supervised", config)
    return [record_of(run, accuracy) for run, accuracy in zip(runs, accuracies, strict=True)]


def semi(**entries: object) -> SemiSupervisedConfig:
    return replace(SemiSupervisedConfig(schedule=SCHEDULE, labels=[10], seeds=[1, 2]), **entries)  # type: ignore[arg-type]


def test_methods_are_rows_and_labels_columns() -> None:
    made = [
        *records(semi(labels=[10, 40]), 70.0, 74.0, 80.0, 80.0),
        *records(semi(max_mi=0.1), 71.0, 75.0),
        *records(semi(algorithm="supervised", seeds=[1]), 50.0),
    ]
    accuracy, best, interplay = companion_sheets(made)
    assert accuracy.title == "Semi-supervised accuracy (%): dataset digits, network small-cnn"
    assert accuracy.headers == ("method", "10 labels", "40 labels")
    assert [row[0] for row in accuracy.rows] == ["Supervised", "FreeMatch", "FreeMatch + MI, λ=0.1"]
    assert accuracy.rows[0][2] is None and accuracy.rows[0][1] == Entry(50.0)
    # 1.96·population standard deviation/√n of 70 and 74 is 1.96·2/√2.
    plain, added = accuracy.rows[1][1], accuracy.rows[2][1]
    assert isinstance(plain, Entry) and isinstance(added, Entry)
    assert (plain.value, added.value) == (72.0, 73.0) and (plain.best, added.best) == (False, True)
    assert plain.interval == added.interval == pytest.approx(1.96 * 2 / 2**0.5)
    first = best.rows[1][1]
    assert isinstance(first, Entry) and first.value == 73.0
    assert "optimistic" in best.notes[0]
    assert interplay.rows == (
        ("Supervised", "10", None, None, None, None),
        ("FreeMatch", "10", None, None, None, None),
        ("FreeMatch", "40", None, None, None, None),
        ("FreeMatch + MI, λ=0.1", "10", None, None, None, None),
    )
    assert "at neural collapse H is 2.197, MIR 0.952, HDR 0." in interplay.notes[0]
    assert any(note.startswith("Of all rows: steps 100, ") for note in accuracy.notes)


def test_runs_of_different_settings_are_not_averaged() -> None:
    other = MatchingConfig(fairness_weight=0.5)
    made = [*records(semi(), 70.0, 74.0), *records(semi(matching=other), 60.0, 64.0)]
    accuracy, *_ = companion_sheets(made)
    assert [row[0] for row in accuracy.rows] == [
        "FreeMatch, fairness_weight=0.01",
        "FreeMatch, fairness_weight=0.5",
    ]


def test_details_that_a_method_has_not_tell_no_rows_apart() -> None:
    other = MatchingConfig(fairness_weight=0.5)
    made = [
        *records(semi(algorithm="fixmatch"), 70.0, 74.0),
        *records(semi(algorithm="fixmatch", matching=other, seeds=[3]), 78.0),
        *records(semi(), 60.0, 64.0),
    ]
    accuracy, *_ = companion_sheets(made)
    assert [row[0] for row in accuracy.rows] == ["FixMatch", "FreeMatch"]
    assert isinstance(accuracy.rows[0][1], Entry) and accuracy.rows[0][1].value == 74.0


def test_supervised_runs_and_other_networks_have_tables_of_their_own() -> None:
    supervised = SupervisedConfig(schedule=SCHEDULE)
    wide = replace(supervised, network="wrn-28-2")
    runs = [expand_companion("supervised", config)[0] for config in (supervised, wide)]
    made = [record_of(run, 90.0, feature_entropy=2.0, nc1=0.5) for run in runs]
    sheets = companion_sheets([*made, *records(semi(), 1.0, 2.0)])
    assert len(sheets) == 9 and len({sheet.title for sheet in sheets}) == 9
    assert sheets[6].headers == ("method", "all labels")
    assert "2.000" in format_sheets(sheets[:3] + sheets[6:], "text")


def test_one_run_with_two_results_is_refused() -> None:
    (one, *_) = records(semi(), 70.0, 74.0)
    with pytest.raises(UserError, match="Expected one result for run"):
        companion_sheets([one, replace(one, figures={"accuracy": 3.0})])


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
def test_report_prints_them_in_every_form(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, record in enumerate(records(semi(), 70.0, 74.0)):
        save_record(tmp_path / str(number), record)
    main(["report", str(tmp_path), "--format", form])
    out = capsys.readouterr().out
    assert "Semi-supervised accuracy" in out and "FreeMatch" in out and "72.0" in out
