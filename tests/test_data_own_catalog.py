"""Datasets of one's own by name, from a YAML file."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest
from made_images import make_images
from PIL import Image

from cma_tune.cli import CATALOG_VARIABLE, main
from cma_tune.data.catalog import check_dataset_name
from cma_tune.data.own_catalog import VARIABLE
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
    main(["data", "list"])
    assert f"birds: folder:{tmp_path}/pictures" in capsys.readouterr().out
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


def test_templates_and_the_file_itself_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "pictures", {"robin": 10})
    catalog(tmp_path, "birds: {source: 'folder:pictures', template: 'no place'}", monkeypatch)
    with pytest.raises(UserError, match=r"one '{}' for the class name .*got 'no place'"):
        load_dataset("birds", NOWHERE)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"YAML file of datasets at .*none.yaml, but there is none"):
        load_dataset("digits", NOWHERE)
