"""Tables as text, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_report_tables import accuracy, base_to_novel, few_shot, zero_shot

from cma_tune.cli import main
from cma_tune.config import BaseToNovelConfig, ContextConfig, FewShotConfig, ZeroShotConfig
from cma_tune.errors import UserError
from cma_tune.records import save_record
from cma_tune.report import build_tables, format_tables, report
from cma_tune.report.formats import CSV_COLUMNS
from cma_tune.report.sheets import Entry, Sheet, Span, format_sheets


def test_csv_is_tidy_and_holds_every_figure() -> None:
    config = FewShotConfig(dataset="folder:/data/a_b, c")
    records = [
        *few_shot({1: [70.0, 71.0, 72.0], 2: [80.0]}, weight=0.8, config=config),
        zero_shot(60.0, ZeroShotConfig(dataset=config.dataset)),
        *base_to_novel([(80, 60), (90, 50)], 0.5),
    ]
    frame = pd.read_csv(io.StringIO(format_tables(build_tables(records), "csv")))
    assert tuple(frame.columns) == CSV_COLUMNS
    assert (
        len(frame) == (2 + 1) * 3 + 3 + 4
    )  # (few-shot, zero-shot) × (accuracy, similarities), base-to-novel's
    one = frame[(frame.metric == "accuracy") & (frame.shots == 1)].iloc[0]
    assert (one.protocol, one.dataset, one.weight, one.seeds) == ("few-shot", "folder:/data/a_b, c", 0.8, 3)
    assert one["mean"] == 71.0 and one.interval == pytest.approx(1.96 * (2 / 3) ** 0.5 / 3**0.5)
    single = frame[(frame.metric == "accuracy") & (frame.shots == 2)].iloc[0]
    assert single["mean"] == 80.0 and pd.isna(single.interval)
    baseline = frame[(frame.protocol == "zero-shot") & (frame.metric == "accuracy")].iloc[0]
    assert baseline["mean"] == 60.0 and baseline.shots == 0 and pd.isna(baseline.weight)
    assert set(frame[frame.protocol == "base-to-novel"].metric) >= {"harmonic_mean", "novel_class_similarity"}
    assert not frame.duplicated(["protocol", "dataset", "backbone", "method", "shots", "metric"]).any()


def test_csv_ends_with_the_averages_over_datasets() -> None:
    def on(dataset: str) -> FewShotConfig:
        return FewShotConfig(dataset=dataset)

    records = [
        *few_shot({1: [70.0, 72.0], 4: [80.0, 84.0]}, config=on("dtd")),
        *few_shot({1: [50.0, 56.0]}, config=on("eurosat")),
        *base_to_novel([(80, 60)], 0.5, BaseToNovelConfig(dataset="dtd")),
        *base_to_novel([(60, 40)], 0.5, BaseToNovelConfig(dataset="eurosat")),
    ]
    frame = pd.read_csv(io.StringIO(format_tables(build_tables(records), "csv")))
    over = frame[frame.dataset.str.startswith("average")]
    few, halves = over[over.protocol == "few-shot"], over[over.protocol == "base-to-novel"]
    assert list(zip(few.dataset, few.shots, few["mean"], few.seeds, strict=True)) == [
        ("average over 2", 1, 62.0, 2),  # by seed 60 and 64
        ("average over 1 of 2", 4, 82.0, 2),
    ]
    assert few.interval.iloc[0] == pytest.approx(1.96 * 2 / 2**0.5)
    by_metric = dict(zip(halves.metric, halves["mean"], strict=True))
    assert by_metric == {
        "base_accuracy": 70.0,
        "novel_accuracy": 50.0,
        "harmonic_mean": pytest.approx(7000 / 120),
    }
    assert set(halves.weight) == {0.5}


def test_markdown_marks_the_best_of_several_methods_only() -> None:
    lone = few_shot({1: [70.0]})
    assert "**" not in format_tables([accuracy(lone)], "markdown")
    text = format_tables([accuracy([*lone, *few_shot({1: [71.0], 2: [50.0]}, weight=0.8)])], "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| method | 1 shot | 2 shots |",
        "| :-- | --: | --: |",
        "| CoOp | 70.00 | – |",
        "| CoOp + CMA, λ=0.8 | **71.00** | 50.00 |",
    ]
    assert "no test of significance" in text
    tie = [*lone, *few_shot({1: [70.001]}, weight=0.8)]
    assert "**" not in format_tables([accuracy(tie)], "markdown")  # nothing stands out
    tied = format_tables([accuracy([*tie, *few_shot({1: [69.0]}, weight=0.5)])], "markdown")
    assert tied.count("**70.00**") == 2  # what reads the same is marked the same


def test_latex_is_booktabs_with_special_characters_escaped() -> None:
    config = FewShotConfig(
        dataset="folder:a_b&50%#{x}~^$", context=ContextConfig(words="a_b"), backbone=r"local-dir:C:\clip"
    )
    table = accuracy(few_shot({1: [70.0, 72.0], 2: [80.0, 80.0]}, weight=0.8, config=config))
    needed, *lines = format_tables([table], "latex").splitlines()
    assert needed == r"% \usepackage{booktabs,graphicx,textcomp}"
    assert lines[:4] == [
        r"\begin{table}",
        r"\centering",
        r"\small",
        r"\setlength{\belowcaptionskip}{4pt}",
    ]
    assert r"folder:a\_b\&50\%\#\{x\}\textasciitilde{}\textasciicircum{}\$" in lines[4]
    assert r"C:\textbackslash{}clip" in lines[4] and r"95~\% interval" in lines[4]
    assert lines[5:11] == [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & 1 shot & 2 shots \\",
        r"\midrule",
        r"CoOp + CMA, $\lambda$=0.8 & 71.00 $\pm$ 1.39 & 80.00 $\pm$ 0.00 \\",
    ]
    assert lines[11:] == [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    assert format_tables([table], "latex").isascii() and format_tables([], "latex") == ""


def long_sheet() -> Sheet:
    """As wide and long as a comparison over eleven datasets at five shots."""
    method = "CoOp + CMA, λ of the release (normalize=true, reduction=mean)"
    headers = (
        "dataset",
        "figure",
        "test",
        "n",
        "CoOp (tokens=16)",
        method,
        "difference",
        "95 % interval",
        "p",
    )
    rows = [
        (
            f"dataset {i}",
            "accuracy, 16 shots",
            "paired t over datasets",
            "3",
            *[Entry(71.0)] * 3,
            span,
            Entry(0.5),
        )
        for i in range(60)
        for span in (Span(-1.5, 0.25), None)
    ]
    return Sheet("<A> − B", headers, tuple(rows), ("√n · 2. " * 40,), frozenset(range(2, 120, 2)), labels=3)


def test_a_latex_table_longer_than_a_page_goes_on_in_others_of_the_same_number() -> None:
    floats = format_sheets([long_sheet()], "latex").split(r"\begin{table*}")[1:]
    assert len(floats) > 2
    bodies = [one.split("\\midrule\n", 1)[1].split("\\bottomrule")[0].splitlines() for one in floats]
    assert all(not body[0].startswith(r"\midrule") for body in bodies)
    names = [line.split(" & ")[0] for body in bodies for line in body if line != r"\midrule"]
    assert names == [f"dataset {i}" for i in range(60) for _ in range(2)]  # every row, once, in order
    assert all(len(body) % 3 == 2 for body in bodies)  # a page ends at a rule
    again = [r"\addtocounter{table}{-1}" in one for one in floats]
    assert again == [False, *[True] * (len(floats) - 1)]
    assert r"\caption{\textless{}A\textgreater{} $-$ B (continued).}" in floats[1]
    # A long name takes lines of its own where what is below it is short.
    assert r"\begin{tabular}[b]{@{}r@{}}CoOp + CMA," in floats[0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_latex_compiles_and_fits_however_many_tables_there_are(columns: str, tmp_path: Path) -> None:
    long = FewShotConfig(dataset="folder:a_b&5 %~^$", context=ContextConfig(words="a photo of a"))
    one = accuracy(
        [
            *few_shot({1: [70.0], 2: [1.0], 4: [1.0]}, config=FewShotConfig(dataset=long.dataset)),
            *few_shot({1: [70.0, 72.0], 16: [5.0, 6.0]}, weight=0.8, config=long),
        ]
    )
    sheet = Sheet("<A> − B", ("x", "λ"), (("é", Entry(1.0, 0.5, best=True)), ("", None)), ("√n · 2.",))
    sheets = [long_sheet(), *[sheet] * 60]
    tables = format_tables([one] * 60, "latex") + "\n" + format_sheets(sheets, "latex")
    (tmp_path / "report.tex").write_text(tables, encoding="utf-8")
    (tmp_path / "page.tex").write_text(
        f"\\documentclass[{columns}]{{article}}\n\\usepackage{{booktabs,graphicx,textcomp}}\n"
        "\\begin{document}\n\\input{report.tex}\n\\end{document}\n"
    )
    line = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").is_file()
    assert "Overfull" not in done.stdout and "too large" not in done.stdout


def test_text_is_aligned() -> None:
    table = accuracy([*few_shot({1: [70.0, 72.0]}), *few_shot({1: [5.0, 5.0]}, weight=0.8)])
    lines = format_tables([table], "text").splitlines()
    assert lines[0] == "Few-shot accuracy (%): dataset digits, backbone embedded"
    assert lines[2].index("1 shot") == lines[4].index("71.00") == lines[5].index("5.00 ±")
    assert lines[7].startswith("Mean ± 95 % interval")


def test_an_unknown_form_is_refused_with_the_nearest_and_nothing_is_a_header_alone() -> None:
    with pytest.raises(UserError, match="got 'markdwon' \\(did you mean 'markdown'\\?\\)"):
        format_tables([], "markdwon")
    assert format_tables([], "text") == ""
    assert list(csv.reader(io.StringIO(format_tables([], "csv")))) == [list(CSV_COLUMNS)]


def test_report_prints_tables_alone_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, one in enumerate(few_shot({1: [70.0, 72.0]})):
        save_record(tmp_path / "runs" / str(number), one)
    report(str(tmp_path / "runs"), "csv", str(tmp_path / "figures"))
    printed = capsys.readouterr()
    assert len(pd.read_csv(io.StringIO(printed.out))) == 3
    (figure,) = (tmp_path / "figures").iterdir()
    assert printed.err == f"figure: {figure}\n"
    with pytest.raises(UserError, match="Expected a file for --html, got the folder"):
        report(str(tmp_path / "runs"), html=str(tmp_path))
    with pytest.raises(UserError, match="Expected a folder that can be written to for --figures, got"):
        report(str(tmp_path / "runs"), figures=str(figure))
    with pytest.raises(UserError, match="Expected a folder that can be written to for --html, got"):
        report(str(tmp_path / "runs"), html=str(figure / "page.html"))
    with pytest.raises(UserError, match="there is no such folder"):
        report(str(tmp_path / "nowhere"))


def test_importing_the_report_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'matplotlib', 'pandas', 'numpy'}"
    code = f"import sys, cma_tune.report; print({heavy} & {{*sys.modules}} or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_report_goes_on_past_the_record_of_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "other" / "record.json"
    foreign.parent.mkdir()
    foreign.write_text('{"format": 1, "name": "a record of something else", "values": [1, 2]}')
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path)])
    assert stop.value.code == 2
    warning, mistake = capsys.readouterr().err.splitlines()
    assert warning.startswith("skipped: ") and str(foreign) in warning
    assert mistake.startswith(f"cma-tune: Expected record.json files of cma-tune below {tmp_path}, got none")
    save_record(tmp_path / "mine", zero_shot(60.0))
    main(["report", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [warning]  # zero-shot alone has no curve
    assert "Zero-shot  60.00" in printed.out
