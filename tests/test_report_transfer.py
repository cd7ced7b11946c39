"""Tables of what was learned on one dataset and tested on others, and of both halves among all names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from scipy import stats
from test_report_tables import base_to_novel, cells, few_shot, zero_shot

from cma_tune.predictions import save_predictions
from cma_tune.records import Record
from cma_tune.report import build_tables, draw_figures
from cma_tune.report.paired import paired_sheets
from cma_tune.report.sheets import shown

TARGETS = ["dtd", "eurosat"]


def transfer(values: list[tuple[float, float]], weight: float = 0.0, **changes: object) -> list[Record]:
    """A record a seed with these accuracies on the two targets; 80 on the source; zero-shot 40 and 20."""
    records = []
    for one, (first, second) in zip(few_shot({16: [0.0] * len(values)}, weight=weight), values, strict=True):
        figures = {
            "accuracy: dtd": first,
            "zero_shot_accuracy: dtd": 40.0,
            "class_similarity: dtd": 0.3,
            "accuracy: eurosat": second,
            "zero_shot_accuracy: eurosat": 20.0,
            "mean_accuracy": (first + second) / 2,
            "zero_shot_mean_accuracy": 30.0,
            "source_accuracy": 80.0,
        }
        config = {**one.config, "targets": TARGETS, "prompt": None, **changes}
        run = f"transfer {one.run} {changes}"
        records.append(replace(one, run=run, protocol="cross-dataset", config=config, figures=figures))
    return records


def test_targets_stand_side_by_side_with_zero_shot_above() -> None:
    (table,) = build_tables([*transfer([(50.0, 30.0), (52.0, 34.0)]), *transfer([(60.0, 10.0)], 0.3)])
    assert table.title == "Cross-dataset accuracy (%) at 16 shots: dataset digits, backbone embedded"
    assert table.columns == ("digits (source)", "dtd", "eurosat", "mean of targets")
    assert cells(table) == {
        "Zero-shot": ["–", "40.00", "20.00", "30.00"],
        "CoOp": ["80.00 ± 0.00", "51.00 ± 1.39", "32.00 ± 2.77", "41.50 ± 2.08"],
        "CoOp + CMA, λ=0.3": ["80.00 (n=1)", "60.00 (n=1)", "10.00 (n=1)", "35.00 (n=1)"],
    }


def test_zero_shot_of_the_source_is_its_own_record() -> None:
    learned = transfer([(50.0, 30.0)])

    def shown(*beside: Record) -> str:
        tables = build_tables([*beside, *learned])
        return next(cells(table) for table in tables if table.protocol == "cross-dataset")["Zero-shot"][0]

    own = zero_shot(70.0)
    assert shown() == "–" and shown(own) == "70.00"
    other = {**own.dataset, "templates": ["{}"]}
    elsewhere = replace(own, run="other", figures={"accuracy": 9.0}, dataset=other)
    assert shown(own, elsewhere) == "70.00"  # the templates that the run had
    assert shown(elsewhere) == "–"
    learned = [replace(one, dataset={"split": one.dataset["split"]}) for one in learned]  # a saved prompt
    assert shown(elsewhere) == "9.00" and shown(own, elsewhere) == "–"
    # Other weights under the same name, or other test images.
    assert shown(replace(own, backbone={**own.backbone, "weights": "ff" * 32})) == "–"
    assert shown(replace(own, dataset={**own.dataset, "split": "ff" * 32})) == "–"


def test_saved_prompts_of_known_runs_are_seeds_and_other_targets_another_table(tmp_path: Path) -> None:
    first, second = transfer([(50.0, 30.0), (52.0, 34.0)])
    second = replace(second, config={**second.config, "prompt": "digest"})
    (table,) = build_tables([first, second])
    assert [len(cell.values) for cell in table.rows[1].cells if cell] == [2, 2, 2, 2]
    titles = [t.title for t in build_tables([first, *transfer([(50.0, 30.0)], targets=["dtd"])])]
    assert [title.partition(", backbone embedded")[2] for title in titles] == [
        ", targets dtd",
        ", targets dtd, eurosat",
    ]
    assert draw_figures([first, second], tmp_path) == []


def test_both_halves_among_all_names_have_a_table_of_their_own() -> None:
    records = base_to_novel([(80, 60), (82, 60)], 0.5)
    among = {
        "base_accuracy_among_all": 70.0,
        "novel_accuracy_among_all": 30.0,
        "harmonic_mean_among_all": 42.0,
    }
    records = [replace(one, figures={**one.figures, **among}) for one in records]
    usual, generalised, alignment = build_tables(records)
    assert (usual.protocol, alignment.kind) == ("base-to-novel", "alignment")
    assert generalised.title.startswith("Generalised base-to-novel accuracy (%) at 16 shots")
    assert cells(generalised) == {"CoOp + CMA, λ=0.5": ["70.00 ± 0.00", "30.00 ± 0.00", "42.00 ± 0.00"]}


def test_methods_are_compared_on_the_targets(tmp_path: Path) -> None:
    plain = transfer([(50.0, 30.0), (51.0, 30.0), (52.0, 34.0)])
    penalty = transfer([(52.0, 30.0), (54.0, 32.0), (53.0, 30.0)], 0.3)
    true = torch.arange(20) % 4
    for one, right in ((plain[0], 10), (penalty[0], 14)):
        seen = true.clone()
        seen[right:] = (seen[right:] + 1) % 4
        one.figures["accuracy: dtd"] = 5.0 * right
        save_predictions(tmp_path / one.run, {"dtd": torch.stack([seen, true], dim=1)})
    tables = build_tables([*plain, *penalty])
    folders = {one.run: tmp_path / one.run for one in (*plain, *penalty)}
    (sheet,) = paired_sheets(tables, ("coop", "cma"), folders)
    assert sheet.title == (
        "Cross-dataset, paired tests: CoOp + CMA, λ=0.3 against CoOp learned on digits, backbone embedded"
    )
    rows = {(row[0], row[2]): [shown(entry) for entry in row] for row in sheet.rows}
    p = stats.ttest_rel([50.0, 51.0, 52.0], [70.0, 54.0, 53.0]).pvalue
    assert rows["dtd", "paired t over seeds"][4:7] == ["51.00", "59.00", "+8.00"]
    assert rows["dtd", "paired t over seeds"][-1] == f"{p:.4f}"
    assert rows["dtd", "McNemar, seed 1"][3:7] == ["20", "50.00", "70.00", "+20.00"]
    assert rows["all 2", "sign over datasets"][-1] == "1.0000"  # eurosat: 31.33 and 30.67
    assert ("eurosat", "McNemar, seed 1") not in rows
    (beside,) = paired_sheets(tables, ("zero-shot", "coop"), folders)
    rows = {(row[0], row[2]): [shown(entry) for entry in row] for row in beside.rows}
    assert rows["eurosat", "paired t over seeds"][3:7] == ["3", "20.00", "31.33", "+11.33"]
    assert not any(str(kind).startswith("McNemar") for _, kind in rows)


def test_targets_of_drawn_images_are_named() -> None:
    drawn = {"dtd": {"origin": "miniature of drawn images"}, "eurosat": {"origin": "split.json"}}
    records = [replace(one, dataset={**one.dataset, "targets": drawn}) for one in transfer([(50.0, 30.0)])]
    (table,) = build_tables(records)
    assert "On miniatures, which are drawn images: dtd." in table.notes
    assert not any("miniature" in note for note in build_tables(transfer([(50.0, 30.0)]))[0].notes)
