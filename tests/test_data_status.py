"""`cma-tune data status` of the Hub's form: what lies in a folder, and what is on the Hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import datasets
import pytest

from cma_tune.cli import main
from cma_tune.data.catalog import ENTRIES
from cma_tune.data.miniature_hub import write_hub_miniature


def test_status_of_the_hubs_form_asks_nothing_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets.disable_progress_bars()

    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.create_connection", refused)

    def rows(root: str) -> dict[str, list[str]]:
        main(["data", "status", "--data-root", root])
        lines = capsys.readouterr().out.splitlines()[1:]
        return {line.split()[0]: re.split(" {2,}", line) for line in lines}

    for name in ("eurosat", "dtd", "ucf101"):
        write_hub_miniature(name, tmp_path / "tables", (1, 0, 1))
    dtd = tmp_path / "tables/dtd"
    table = datasets.load_from_disk(dtd)
    datasets.DatasetDict({**table, "test": table["test"].select(range(40))}).save_to_disk(tmp_path / "less")
    shutil.rmtree(dtd)
    (tmp_path / "less").rename(dtd)
    (dtd / "miniature.json").write_text('{"train": 47, "val": 0, "test": 47}')
    (tmp_path / "tables/eurosat/miniature.json").unlink()
    found = rows(f"hub:{tmp_path}/tables")
    assert set(found) == set(ENTRIES)
    assert found["ucf101"][1:] == ["miniature", "101/0/101", f"{tmp_path}/tables/ucf101"]
    assert (
        found["dtd"][1] == "incomplete"
        and "test images: 40, 0 to 1 per class instead of 47" in found["dtd"][3]
    )
    assert "images in all parts: 20 instead of 27000" in found["eurosat"][3]
    assert found["food101"][1:] == ["on the Hub", "ethz/food101"]
    alone = rows("hub:")
    assert alone["dtd"][1:] == ["on the Hub", "tanganke/dtd"]
    assert alone["ucf101"][1:] == ["absent", "no repository on the Hub is known"]
    assert rows("hub:someone/dtd")["dtd"][1:] == ["on the Hub", "someone/dtd"]
    one = rows(f"hub:{tmp_path}/tables/ucf101")
    assert one["ucf101"][1] == "miniature" and one["dtd"][1] == "unknown"
    with pytest.raises(SystemExit):
        main(["data", "status", "--data-root", "hub:nowhere"])
    assert (
        "Expected a folder or a repository after --data-root hub:, got 'nowhere'" in capsys.readouterr().err
    )
