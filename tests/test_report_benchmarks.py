"""The scripts of benchmarks/paper: one for each of the eleven, from the recipes, and quick on a miniature."""

from __future__ import annotations

import runpy
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from cma_tune.data.catalog import CATALOG

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "paper"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the scripts share."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import paper_rows

    return paper_rows


def test_there_is_a_script_for_each_of_the_eleven_and_it_runs_its_own(
    rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(rows, "main", ran.append)
    scripts = sorted(path for path in FOLDER.glob("*.py") if path.stem != "paper_rows")
    for script in scripts:
        runpy.run_path(str(script), run_name="__main__")
    assert ran == [script.stem for script in scripts] == sorted(CATALOG)


def test_the_recipes_are_the_papers(rows: Any) -> None:
    def recipes(protocol: str) -> list[Any]:
        chosen = {"data_root": "data", "output": "runs", "workers": 3, "seeds": None}
        options = Namespace(**chosen, dry_run=False, quick=False)
        return [rows.recipe(protocol, name, "dtd", options) for name in rows.RECIPES[protocol]]

    coop, cma = recipes("few-shot")
    for config in (coop, cma):
        assert (config.backbone, config.shots, config.seeds) == (
            "RN50-quickgelu",
            [1, 2, 4, 8, 16],
            [1, 2, 3],
        )
        assert (config.dataset, config.data_root, config.output) == ("dtd", "data", "runs")
        assert (config.workers, config.protocol) == (3, "few-shot")
    assert (coop.weights, cma.weights) == ([0.0], ["recipe"]) and coop.zero_shot > cma.zero_shot
    (novel,) = recipes("base-to-novel")
    assert novel.protocol == "base-to-novel" and novel.backbone == "ViT-B-16-quickgelu"
    assert len(novel.weights) == 11 and novel.shots == [16]


def test_quick_runs_everything_on_a_miniature(
    rows: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["eurosat.py", "--quick", "--seeds", "1", "--format", "csv"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "eurosat.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert "two training images per class whatever the shots" in printed.err
    lines = [line for line in printed.out.splitlines() if "eurosat," in line]
    methods = [line.split("eurosat,", 1)[1].rsplit(",", 1)[0].replace('"', "") for line in lines]
    names = [method.split(",")[0] + ("," + method.split(",")[1]) * ("CMA" in method) for method in methods]
    assert names == [
        *("Zero-shot", "CoOp", "CoOp", *["CoOp + CMA, λ of the release"] * 2),  # 1 and 16 shots each
        *("CoOp", "CoOp + CMA, λ=1"),
    ]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_quick_keeps_what_it_drew_where_an_output_is_named(
    rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places: list[tuple[str, str]] = []

    def run(dataset: str, options: Namespace) -> bool:
        places.append((options.data_root, options.output))
        return (Path(options.data_root) / dataset / "miniature.json").is_file()

    monkeypatch.setattr(rows, "run", run)
    for name in ("eurosat", "dtd", "eurosat"):
        rows.main(name, ["--quick", "--output", str(tmp_path)])
    assert set(places) == {(str(tmp_path / "miniature"), str(tmp_path))}
    with pytest.raises(SystemExit, match="2"):
        rows.main("dtd", ["--quick", "--data-root", str(tmp_path)])
    assert "Expected no --data-root with --quick" in capsys.readouterr().err


def test_mistakes_are_sentences_and_a_dry_run_says_what_is_missing(
    rows: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = ["--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="2"):
        rows.main("dtd", [*place, "--seeds", "-"])
    assert capsys.readouterr().err.startswith("dtd.py: Expected")
    with pytest.raises(SystemExit, match="1"):
        rows.main("dtd", [*place, "--dry-run", "--seeds", "1,2"])
    out = capsys.readouterr().out
    # Five shots and two seeds, with zero-shot; then those of CoOp + CMA, and eleven λ base-to-novel.
    for runs in (11, 10, 22):
        assert f"{runs} runs: 0 done, 0 to do, {runs} that can't run" in out
    assert out.count("dtd can't run: Expected") == 3 and not (tmp_path / "runs").exists()
