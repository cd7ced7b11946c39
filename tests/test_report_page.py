"""The HTML page: complete in itself, well-formed, and sorting in a real browser where there is one."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from test_report_tables import base_to_novel, few_shot

from cma_tune.cli import main
from cma_tune.config import FewShotConfig
from cma_tune.records import save_record
from cma_tune.report.page import write_page
from cma_tune.report.sheets import Entry, Sheet

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Open tags, links to elsewhere, and the tables as rows of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two datasets with curves."""
    folder: Path = tmp_path_factory.mktemp("page")
    for dataset in ("dtd", "eurosat"):
        config = FewShotConfig(dataset=dataset)
        records = [
            *few_shot({1: [50.0, 52.0], 4: [70.0, 71.0]}, config=config),
            *few_shot({1: [51.0, 53.0]}, weight=0.3, config=config),
        ]
        for one in records:
            save_record(folder / one.run, one)
    for one in base_to_novel([(80, 60)], 0.5):
        save_record(folder / one.run, replace(one, config={**one.config, "dataset": '<b>&"x"</b>'}))
    main(["report", str(folder), "--html", str(folder / "new" / "page.html"), "--compare", "coop,cma"])
    return folder / "new" / "page.html"


def test_the_page_needs_nothing_else_and_holds_every_table_and_figure(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    assert read.open == []  # everything that was opened was closed
    inside = [source for source in read.sources if source.startswith("data:image/png;base64,")]
    pictures = sorted(path.read_bytes() for path in page.parent.parent.glob("*.png"))
    assert len(pictures) >= 2
    assert sorted(base64.b64decode(source.partition(",")[2]) for source in inside) == pictures
    assert all(source.startswith(("data:", "#t")) for source in read.sources)
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp", text.replace("data:image", ""))
    first = read.tables[0]
    assert first[0] == ["dataset", "method", "1 shot", "4 shots"]
    assert first[1] == ["dtd", "CoOp", "51.00 ± 1.39", "70.50 ± 0.69"]
    assert any("paired t over seeds" in row for row in read.tables[2])
    assert (
        "&lt;b&gt;&amp;&quot;x&quot;&lt;/b&gt;" in text and "<b>&" not in text
    )  # names are text, not markup
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def small_page(folder: Path, after: str) -> Path:
    """A table of four rows and two averages, and the script in `after` acts on it."""
    rows = (
        ("b", "one", Entry(9.0)),
        ("", "two", Entry(10.0, 0.5)),
        ("a", "one", None),
        ("", "two", Entry(-3.0)),
        ("average over 2", "one", Entry(5.0)),
        ("", "two", Entry(6.0)),
    )
    path = folder / "small.html"
    averages = frozenset({4, 5})
    sheet = Sheet("t", ("dataset", "method", "value"), rows, (), averages - {5}, 2, averages=averages)
    write_page(path, [], [sheet], [])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", f"<script>{after}</script></body>"), encoding="utf-8")
    return path


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")
@pytest.mark.parametrize(
    ("clicks", "order"),
    [
        ([], ["9.00", "10.00 ± 0.50", "–", "−3.00"]),
        ([2], ["10.00 ± 0.50", "9.00", "−3.00", "–"]),  # by number, not by letter; nothing stands last
        ([2, 2], ["−3.00", "9.00", "10.00 ± 0.50", "–"]),
        ([0], ["–", "−3.00", "9.00", "10.00 ± 0.50"]),  # rows below a name belong to it
    ],
)
def test_a_browser_sorts_by_a_click_on_the_head(clicks: list[int], order: list[str], tmp_path: Path) -> None:
    script = "".join(f'document.querySelectorAll("th button")[{column}].click();' for column in clicks)
    page = small_page(tmp_path, script)
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
            ),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *rows, first, second = Page(done.stdout).tables[0][1:]
    # The averages stay below, in their order, whatever the others do.
    assert (first[2], second[2], first[0]) == ("5.00", "6.00", "average over 2")
    assert [row[2] for row in rows] == order
    names = {"9.00": "b", "10.00 ± 0.50": "b", "–": "a", "−3.00": "a"}
    # In its own order a name stands once; sorted, every row has its name.
    assert [row[0] for row in rows] == ([names[row[2]] for row in rows] if clicks else ["b", "", "a", ""])


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")
def test_a_browser_draws_tables_and_figures(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    assert BROWSER is not None
    subprocess.run(
        [
            *(
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
            ),
            *(f"--screenshot={picture}", "--window-size=1200,2400", page.as_uri()),
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    with Image.open(picture) as image:
        colors = image.convert("RGB").getcolors(maxcolors=2**24) or []
    count = {color: number for number, color in colors}
    assert count[(0, 0x72, 0xB2)] > 200  # the first curve of an embedded figure
