"""The table of methods: rows as files, and what the page makes of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest
from scipy import stats

SCRIPTS = Path(__file__).parents[1] / "benchmarks/methods"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """The scripts: rows, page and runs."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import method_page
    import method_rows
    import method_runs

    return method_rows, method_page, method_runs


PLAIN, PENALISED = [50.0, 51.0, 53.0], [52.0, 51.5, 54.0]
"""Accuracy (%) of three seeds at λ = 0 and at λ = 0.3."""


def made_up(rows: ModuleType, path: Path) -> None:
    """Three seeds at two λ; validation chose 0.3, 0 and 0.3."""
    cell = rows.Cell("coop", "few-shot", 16)
    written = []
    for seed, (before, after) in enumerate(zip(PLAIN, PENALISED, strict=True), start=1):
        written.append(rows.Row(cell, seed, 0.0, False, {"accuracy": before}))
        written.append(rows.Row(cell, seed, 0.3, False, {"accuracy": after}))
        weight = 0.0 if seed == 2 else 0.3
        accuracy = before if seed == 2 else after
        written.append(rows.Row(cell, seed, weight, True, {"accuracy": accuracy}))
    rows.write_rows(path, written)
    assert rows.read_rows(path) == written


def test_rows_read_back_and_the_page_compares_them(
    modules: tuple[ModuleType, ModuleType, ModuleType], tmp_path: Path
) -> None:
    rows, page, _ = modules
    made_up(rows, tmp_path / "t.csv")
    cells: dict[object, list[object]] = {}
    for row in rows.read_rows(tmp_path / "t.csv"):
        cells.setdefault(row.cell, []).append(row)
    line = page.comparison(cells, "few-shot", 16, "accuracy").splitlines()[2]
    p = stats.ttest_rel([52.0, 51.0, 54.0], PLAIN).pvalue
    assert line == (f"| CoOp | 51.33 ± 1.41 | 52.50 ± 1.22 | 52.33 ± 1.41 | 0.3, 0, 0.3 | +1.00 | {p:.3f} |")
    p = stats.ttest_rel(PENALISED, PLAIN).pvalue
    assert page.fixed(cells).splitlines()[2] == f"| CoOp | +1.17 | 3/3 | {p:.3f} |"
    certain = page.paired_t_test([1.0, 2.0, 3.0], [11.0, 12.001, 12.999])
    assert page.p_text(certain) == "<0.001" and page.p_text(page.paired_t_test([1.0, 2.0], [2.0, 3.0])) == "–"
    costs = [
        rows.Cost("coop", 20.0, 2.0, 3.0, 45.0, 900.0),
        rows.Cost("tip_adapter", 0.0, 0.0, None, 1.5, 800.0),
    ]
    rows.write_costs(tmp_path / "costs.csv", costs)
    assert rows.read_costs(tmp_path / "costs.csv") == costs
    cells[rows.Cell("tip_adapter", "few-shot", 1)] = [
        rows.Row(rows.Cell("tip_adapter", "few-shot", 1), 1, 0.0, False, {"accuracy": 60.0})
    ]
    p = stats.ttest_rel([52.0, 51.0, 54.0], PLAIN).pvalue
    head, _, *lines = page.overview(cells, costs).splitlines()
    assert "| accuracy, 1 shot | accuracy, 16 shots | epochs | s an epoch, λ = 0 |" in head
    assert lines == [
        f"| CoOp | – | 51.33 → 52.33 (p {p:.3f}) | 20 | 2.000 | 3.000 | 45.0 | 900 |",
        "| Tip-Adapter | 60.00 | – | 0 | 0.000 | – | 1.5 | 800 |",
    ]


def test_h_is_that_of_the_means(modules: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    rows, page, _ = modules
    cell = rows.Cell("coop", "base-to-novel", 16)
    halves = [(90.0, 50.0), (80.0, 70.0)]
    figures = [
        {"base_accuracy": b, "novel_accuracy": n, "harmonic_mean": 2 * b * n / (b + n)} for b, n in halves
    ]
    runs = [rows.Row(cell, seed, 0.0, False, figure) for seed, figure in enumerate(figures, start=1)]
    spread = 1.96 * abs(figures[0]["harmonic_mean"] - figures[1]["harmonic_mean"]) / 2 / 2**0.5
    expected = f"{2 * 85 * 60 / 145:.2f} ± {spread:.2f}"
    assert page.interval(runs, page.run_with(0), "harmonic_mean") == expected
    assert page.interval(runs, page.run_with(0), "base_accuracy").startswith("85.00 ± ")
    assert page.interval(runs, page.chosen_ones, "harmonic_mean") == "–"


def test_epochs_are_for_the_methods_that_need_them(
    modules: tuple[ModuleType, ModuleType, ModuleType],
) -> None:
    rows, _, runs = modules
    epochs = runs.epochs_by_shots("4:25,16:20")

    def flags(method: str, shots: int) -> tuple[str, ...]:
        found: tuple[str, ...] = runs.own_flags(rows.Cell(method, "few-shot", shots), False, epochs)
        return found

    assert flags("coop", 1) == () and flags("coop", 4) == flags("tcp", 4) == ("--optim.epochs=25",)
    assert flags("vpt", 1) == () and flags("vpt", 4) == ("--optim.epochs=3",)
    assert flags("linear_probe", 16) == ("--optim.epochs=20",)
    assert flags("promptsrc", 16) == ("--optim.epochs=2",)
    assert flags("lora", 16) == ("--optim.steps_per_shot=5",)
    with pytest.raises(argparse.ArgumentTypeError, match="such as 4:25,16:20, got 4-25"):
        runs.epochs_by_shots("4-25")


def test_features_are_those_of_the_recipes(modules: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    rows, _, runs = modules
    folder = SCRIPTS.parents[1] / "configs/few_shot"
    learners = [path for path in folder.glob("*_rn50.yaml") if "views: 0" in path.read_text(encoding="utf-8")]
    without = {path.name.removesuffix("_rn50.yaml") for path in learners}
    assert without == set(runs.UNCROPPED)
    for method, crops in (("lp_plus_plus", 0), ("coop", 10)):
        assert f"--views={crops}" in runs.command(rows.Cell(method, "few-shot", 4), [])
    images = rows.Cell("vpt", "few-shot", 4)
    assert not any(flag.startswith("--views") for flag in runs.command(images, []))
    assert "--views=10" in runs.command(images, [], frozen_images=True)


def test_every_method_is_run_where_it_can_be(modules: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    *_, runs = modules
    cells = list(runs.cells(["coop", "linear_probe"]))
    found = [(cell.method, cell.protocol, cell.shots) for cell in cells]
    assert found == [
        *[(method, "few-shot", shots) for shots in (1, 4, 16) for method in ("coop", "linear_probe")],
        ("coop", "base-to-novel", 16),
    ]


@pytest.mark.parametrize(("dataset", "name"), [("shapes", "shapes"), ("caltech101", "Caltech101")])
def test_the_page_shows_what_was_measured(
    dataset: str, name: str, modules: tuple[ModuleType, ModuleType, ModuleType]
) -> None:
    """Nobody has changed a figure by hand, and no table of a run is missing."""
    rows, page, _ = modules
    folder = SCRIPTS.parent / "results"
    text = (folder / "methods.md").read_text(encoding="utf-8")
    costs = rows.read_costs(folder / f"methods/{dataset}_costs.csv")
    found = page.tables(name, rows.read_rows(folder / f"methods/{dataset}.csv"), costs)
    assert len(found) == 8 and page.with_tables(text, found) == text


def test_tables_replace_those_of_a_page(modules: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    _, page, _ = modules
    text = "# Page\n\n### a (%)\n\n| 1 |\n| 2 |\n\nWords | stay.\n\n### a (%), b\n\n| 3 |\n"
    changed = page.with_tables(text, {"a (%)": "| \\1 |"})
    assert changed == text.replace("| 1 |\n| 2 |", "| \\1 |")
    with pytest.raises(ValueError, match=r'below "### c" on the page, found 0'):
        page.with_tables(text, {"c": "| 4 |"})
