"""Datasets of one's own by name, from a YAML file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
from made_images import make_images
from PIL import Image

from cma_tune.cli import CATALOG_VARIABLE, main
from cma_tune.data.catalog import check_dataset_name
from cma_tune.data.inventory import check_dataset
from cma_tune.data.own_catalog import VARIABLE, own_weights
from cma_tune.data.sources import SourceOptions, load_dataset
from cma_tune.errors import UserError

NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def catalog(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    os.utime(path, ns=(0, len(text)))  # another text is another time, however fast the tests are
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_a_folder_and_a_csv_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "pictures", {"robin": 10, "wren": 10})
    rows = [f"pictures/robin/{n:02d}.png,r,{'train' if n < 6 else 'test'}" for n in range(10)]
    (tmp_path / "birds.csv").write_text("\n".join(["path,kind,part", *rows]))
    (tmp_path / "names.txt").write_text("r\n")
    text = """
birds:
  source: folder:pictures
  template: a photo of a {}, a type of bird.
robins:
  source: csv:birds.csv
  templates: ["one {}", "two {}"]
  label_column: kind
  split_column: part
  class_names: names.txt
"""
    catalog(tmp_path, text, monkeypatch)
    birds = load_dataset("birds", NOWHERE)
    assert birds.name == "birds" and birds.split.class_names == ("robin", "wren")
    assert birds.templates == ("a photo of a {}, a type of bird.",)
    assert birds.images.load(birds.split.test[0].key).size == (6, 6)
    assert birds.split == load_dataset(f"folder:{tmp_path}/pictures", NOWHERE).split
    robins = load_dataset("robins", NOWHERE)
    assert (len(robins.split.train) + len(robins.split.val), len(robins.split.test)) == (6, 4)
    assert robins.templates == ("one {}", "two {}")
    assert load_dataset("robins", NOWHERE, templates=["x {}"]).templates == ("x {}",)
    with pytest.raises(UserError, match=r"column 'path2'"):  # a flag comes before the file
        load_dataset("robins", NOWHERE, SourceOptions(image_column="path2"))


def test_a_hub_table_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(8)]
    feature = datasets.Features({"img": datasets.Image(), "fine": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"img": pictures, "fine": ["a", "b"] * 4}, features=feature)
    datasets.DatasetDict({"learn": table, "exam": table}).save_to_disk(tmp_path / "table")
    columns = "image_column: img, label_column: fine, train_split: learn, test_split: exam"
    text = f"toys: {{source: 'hub:table', {columns}}}"
    catalog(tmp_path, text, monkeypatch)
    assert len(load_dataset("toys", NOWHERE).split.test) == 8
    catalog(tmp_path, "far: {source: 'hub:some/where'}", monkeypatch)
    check_dataset_name("far")


def test_several_sources_of_one_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {part: [[f"{bird}/{n:02d}.png", label, bird] for label, bird in enumerate(("wren", "robin"))]
            for n, part in enumerate(("train", "val", "test"))}  # fmt: skip
    (tmp_path / "split.json").write_text(json.dumps(rows))
    pictures = [Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(4)]
    feature = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": pictures, "label": ["robin", "wren"] * 2}
    table = datasets.Dataset.from_dict(columns, features=feature)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "table")
    text = """
birds:
  sources: [folder:pictures, hub:table, hub:some/where]
  split_file: split.json
  template: a photo of a {}, a type of bird.
  weight: {1: 0.4, 16: 0.75}
far: {source: 'hub:some/where', weight: 0.3}
"""
    catalog(tmp_path, text, monkeypatch)
    main(["data", "status"])
    assert "absent" not in capsys.readouterr().out.split("birds")[1].split("far")[0]  # the table is there
    assert len(load_dataset("birds", NOWHERE).split.test) == 4
    make_images(tmp_path / "pictures", {"robin": 3, "wren": 3})
    birds = load_dataset("birds", NOWHERE)
    assert birds.split.class_names == ("wren", "robin") and birds.split.val[0].key == "wren/01.png"
    assert len(load_dataset("birds", Path("hub:")).split.test) == 4
    assert own_weights() == {"birds": {1: 0.4, 16: 0.75}, "far": {0: 0.3}}
    main(["data", "list"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("birds"))
    assert row.split(maxsplit=3) == ["birds", "2", "2/2/2", "a photo of a {}, a type of bird."]
    main(["data", "list", "birds"])
    shown = capsys.readouterr().out.split("birds: ")[1]
    assert shown.startswith("2 classes\n  template  a photo of a {}, a type of bird.\n")
    assert f"  source    hub:{tmp_path}/table\n  source    hub:some/where\n" in shown
    assert "0.4 at 1 shot, 0.75 at 16 shots" in shown
    (tmp_path / "pictures/wren/02.png").unlink()
    main(["data", "status"])
    birds_row, far_row = capsys.readouterr().out.splitlines()[-2:]
    assert birds_row.split()[:3] == ["birds", "incomplete", "2/2/2"]
    assert birds_row.endswith("absent images: wren/02.png")
    assert far_row.split() == ["far", "on", "the", "Hub", "hub:some/where"]
    (tmp_path / "split.json").unlink()
    (fault,) = (f for f in check_dataset("birds", NOWHERE) if f.what == "split file")
    assert (fault.state, fault.expected, fault.found) == ("wrong", "split.json", "missing")


def test_the_flag_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "pictures", {"robin": 10, "wren": 10})
    path = catalog(tmp_path, "birds: {source: 'folder:pictures'}", monkeypatch)
    assert CATALOG_VARIABLE == VARIABLE
    for spelling in (["--catalog", str(path)], [f"--catalog={path}"]):
        monkeypatch.setenv(VARIABLE, "")
        main(["data", "check", "birds", *spelling])
        assert "birds: nothing wrong" in capsys.readouterr().out
    main(["data", "list", "birds"])
    assert (
        f"birds: 2 classes\n  template  a photo of a {{}}.\n  source    folder:{tmp_path}/pictures"
        in capsys.readouterr().out
    )
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(SystemExit):
        main(["data", "list", "--catalog"])
    assert "Expected a file after --catalog" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["zero-shot", "--dataset", "birdz", "--catalog", str(path)])
    assert "(did you mean 'birds'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("birds: [", "Expected YAML in .*own.yaml"),
        ("- birds", "Expected names with their entries"),
        ("birds: folder", "Expected names with their entries"),
        ("birds: {sauce: 'folder:x'}", r"got 'sauce' \(did you mean 'source'\?\)"),
        ("birds: {source: 'x'}", "Expected source: folder:PATH, csv:FILE or hub:REPO for 'birds' .*got 'x'"),
        ("birds: {template: 'a {}'}", "Expected source: folder:PATH"),
        ("birds: {source: 'folder:x', template: 3}", "Expected texts as values of 'birds'"),
        ("birds: {source: 'folder:x', label_column: 3}", "Expected texts as values of 'birds'"),
        ("birds: {source: 'folder:x', template: 'a {}', templates: ['b {}']}", "got both"),
        ("birds: {source: 'folder:x', sources: ['hub:x']}", "source or sources for 'birds' .*got both"),
        ("birds: {sources: ['hub:x/y', 'z']}", "Expected source: folder:PATH.*got 'z'"),
        ("birds: {sources: []}", "Expected source: folder:PATH"),
        ("birds: {source: 'hub:x/y', split_file: a.json}", "a source folder:PATH beside split_file"),
        ("birds: {source: 'folder:x', weight: 1.5}", "weight: a number from 0 to 1, .*got 1.5"),
        ("birds: {source: 'folder:x', weight: yes}", "weight: a number from 0 to 1, .*got True"),
        ("birds: {source: 'folder:x', weight: {one: 0.5}}", "weight: a number from 0 to 1"),
        ("dtd: {source: 'folder:x'}", "Expected new names .*got 'dtd'"),
        ("'a:b': {source: 'folder:x'}", "Expected a name without ':'"),
        ("birds: {source: 'folder:x'}", "Expected an image folder at .*/x,"),
    ],
)
def test_mistakes_are_one_sentence(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog(tmp_path, text, monkeypatch)
    with pytest.raises(UserError, match=sentence):
        load_dataset("birds", NOWHERE)


def test_templates_and_the_file_itself_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalog(tmp_path, "birds: {source: 'folder:pictures', template: 'no place'}", monkeypatch)
    sentence = f"other braces in a template of 'birds' in {path}, got 'no place'"
    for words in (["list"], ["list", "birds"], ["status"], ["check", "birds"]):
        with pytest.raises(SystemExit):
            main(["data", *words])
        said = capsys.readouterr()
        assert said.out == "" and sentence in said.err
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"YAML file of datasets at .*none.yaml, but there is none"):
        load_dataset("digits", NOWHERE)
