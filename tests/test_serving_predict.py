"""Predicting: every form alike, every image once and in order, in three formats."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import coop

from cma_tune.cli import main
from cma_tune.clip.backbone import load_backbone
from cma_tune.errors import UserError
from cma_tune.learners import CoOp, save_prompt
from cma_tune.learners.coop import ContextOptions
from cma_tune.predict import class_probabilities
from cma_tune.serving.description import Form
from cma_tune.serving.export import export
from cma_tune.serving.image_files import image_files
from cma_tune.serving.predictors import find

NAMES = ("cat", "red dog", 'a "big", ship')


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is computed on the CPU, so the other side has to be too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt")
    save_prompt(coop(NAMES, seed=3), folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Images below the working directory, in the order of their paths."""
    monkeypatch.chdir(tmp_path)
    paths = ["photos/a.png", "photos/b/c.jpg", "photos/b/d, e.PNG", "photos/f.webp"]
    for number, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 50), 30 + 50 * number).convert("RGB").save(path)
    for other in ("photos/notes.txt", "photos/.hidden.png", "photos/.git/x.png"):
        Path(other).parent.mkdir(exist_ok=True)
        Path(other).write_text("no image")
    return paths


def test_all_forms_predict_alike(prompt: Path, photos: list[str], tmp_path: Path) -> None:
    names, expected = class_probabilities(photos, prompt, batch_size=3)
    assert names == NAMES and len(expected) == 4
    for form in ("classifier", "model", "onnx"):
        export(prompt, form, tmp_path / form)
        got, probabilities = class_probabilities(photos, tmp_path / form, batch_size=3)
        assert got == NAMES and find(tmp_path / form).form == form
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)
    for file in ("onnx/model.onnx", "classifier/classifier.safetensors"):
        _, probabilities = class_probabilities(photos, tmp_path / file)
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="no class names of your own with an exported onnx"):
        class_probabilities(photos, tmp_path / "onnx", ["cat"])
    for damaged, message in (
        ("onnx/model.onnx", "Expected an ONNX file at .*can't be opened"),
        ("classifier/classifier.safetensors", "Expected an exported classifier at .*can't be read"),
        (
            "model/open_clip_model.safetensors",
            "Expected a model of .*can't be loaded",
        ),
    ):
        (tmp_path / damaged).write_bytes(b"something else")
        with pytest.raises(UserError, match=message) as caught:
            class_probabilities(photos, (tmp_path / damaged).parent)
        assert "\n" not in str(caught.value)
    (tmp_path / "model" / "classifier.json").write_text("{}")
    with pytest.raises(UserError, match="Expected the description of an exported classifier"):
        find(tmp_path / "model")


def test_files_folders_and_patterns_each_once_in_order(photos: list[str]) -> None:
    assert image_files(["photos"]) == photos
    assert image_files(["photos/f.webp", "photos"]) == [photos[3], *photos[:3]]
    assert image_files(["photos/b/../a.png", "photos/*.png"]) == ["photos/b/../a.png"]
    assert image_files(["photos/**/*.[jw]*"]) == ["photos/b/c.jpg", "photos/f.webp"]
    Path("photos/[a].png").write_bytes(Path("photos/a.png").read_bytes())
    assert image_files(["photos/[a].png"]) == ["photos/[a].png"]
    os.symlink(Path("photos/a.png").resolve(), "photos/z.png")
    assert "photos/z.png" not in image_files(["photos"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected at least one image, got none"),
        (["empty"], "Expected images below the folder empty, got none"),
        (["photos/*.gif"], r"Expected images for the pattern photos/\*\.gif, got none"),
    ],
)
def test_what_names_no_image_is_told(arguments: list[str], message: str, photos: list[str]) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        image_files(arguments)


def test_standard_input_is_a_dash(
    prompt: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"{photos[2]}\n\n{photos[0]}\r\n{photos[2]}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    main(["predict", "-", "--prompt", str(prompt), "--top", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [photos[2], photos[0]]


def test_standard_input_may_stand_between_nul_characters(
    photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos[1]}\0{photos[0]}\0"))
    assert image_files(["-"]) == [photos[1], photos[0]]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"  \n{photos[1]}\n"))
    assert image_files(["-"]) == [photos[1]]


def test_formats_say_the_same(prompt: Path, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    names, expected = class_probabilities(photos, prompt)
    ranked = [sorted(zip(row.tolist(), names, strict=True), reverse=True)[:2] for row in expected]

    def printed(*options: str) -> str:
        main(["predict", "photos", "--prompt", str(prompt), "--top", "2", "--batch-size", "3", *options])
        return capsys.readouterr().out

    lines = [json.loads(line) for line in printed("--format", "json").splitlines()]
    assert [line["image"] for line in lines] == photos
    for line, best in zip(lines, ranked, strict=True):
        assert [one["label"] for one in line["labels"]] == [name for _, name in best]
        assert [one["probability"] for one in line["labels"]] == pytest.approx([p for p, _ in best], rel=1e-4)
    head, *rows = csv.reader(io.StringIO(printed("--format", "csv")))
    assert head == ["image", "rank", "label", "probability"]
    flat = [
        [line["image"], str(rank), one["label"], one["probability"]]
        for line in lines
        for rank, one in enumerate(line["labels"], start=1)
    ]
    assert [[*row[:3], float(row[3])] for row in rows] == flat
    text = printed().splitlines()
    assert text[0] == f"{photos[0]}\t" + "  ".join(f"{name} {p:.4f}" for p, name in ranked[0])


def test_unreadable_images_are_skipped_on_request_and_named(
    prompt: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/b/c.jpg").write_bytes(Path("photos/b/c.jpg").read_bytes()[:200])
    command = ["predict", "photos", "absent.png", "--prompt", str(prompt), "--output", "out/labels.csv"]
    command += ["--format", "csv", "--top", "1", "--batch-size", "2", "--workers", "1"]
    with pytest.raises(SystemExit):
        main(command)
    told = capsys.readouterr().err
    assert "Expected an image at absent.png, but there is no such file; check the path." in told
    with pytest.raises(SystemExit):
        main([command[0], command[1], *command[3:]])
    error = capsys.readouterr().err
    assert "photos/b/c.jpg, but it can't be decoded" in error and "--skip-unreadable" in error
    assert not Path("out").exists()  # all or nothing
    main([*command, "--skip-unreadable"])
    said = capsys.readouterr()
    assert said.out == "out/labels.csv: labels of 3 images\n"
    assert "photos/b/c.jpg" in said.err and "absent.png" in said.err and "2 of 5 images left out" in said.err
    assert said.err.count("or do without its labels.") == 2 and "--skip-unreadable" not in said.err
    rows = list(csv.DictReader(io.StringIO(Path("out/labels.csv").read_text())))
    kept = [path for path in photos if path != "photos/b/c.jpg"]
    assert [row["image"] for row in rows] == kept
    names, probabilities = class_probabilities(kept, prompt)
    best = probabilities.max(dim=1)
    assert [row["label"] for row in rows] == [names[int(i)] for i in best.indices]
    with pytest.raises(SystemExit):
        main(["predict", "photos/b/c.jpg", "--prompt", str(prompt), "--skip-unreadable"])
    assert "Expected at least one image that can be read, got none among 1" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--top", "--batch-size", "--workers"])
def test_numbers_are_checked(option: str, prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "x.png", "--prompt", str(prompt), option, "-1"])
    assert f"Expected {option} of at least" in capsys.readouterr().err


def test_a_backbone_that_was_moved_is_named(
    prompt: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(prompt, tmp_path / "moved")
    card = json.loads((moved / "card.json").read_text())
    here, card["backbone"]["name"] = card["backbone"]["name"], "local-dir:gone"
    (moved / "card.json").write_text(json.dumps(card))
    arguments = [*photos, "--prompt", str(moved), "--format", "csv"]
    with pytest.raises(SystemExit):
        main(["predict", *arguments])
    told = capsys.readouterr().err
    assert f"json at gone, but there is none; check the path. It is the backbone that {moved} was" in told
    main(["predict", *photos, "--prompt", str(prompt), "--format", "csv"])
    expected = capsys.readouterr().out
    main(["predict", *arguments, "--backbone", here])
    assert capsys.readouterr().out == expected
    for form in ("classifier", "onnx"):
        main(["export", str(moved), str(tmp_path / form), "--to", form, "--backbone", here])
        assert find(tmp_path / form).form == form
    main(["words", "--prompt", str(moved), "--count", "1", "--backbone", here])
    with pytest.raises(SystemExit):
        main(["predict", *photos, "--prompt", str(moved), "--backbone", "embedded"])
    assert "was learned on (local-dir:gone, weights" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", *photos, "--prompt", str(tmp_path / "onnx"), "--backbone", here])
    assert "Expected no --backbone with an exported onnx, which brings its own" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["classifier", "onnx"])
def test_an_export_that_was_edited_is_told(
    form: Form, prompt: Path, photos: list[str], tmp_path: Path
) -> None:
    """The weights hold the names too, and would win without a word."""
    export(prompt, form, tmp_path / form)
    description = json.loads((tmp_path / form / "classifier.json").read_text())
    description["class_names"] = ["horse", *NAMES[1:]]
    (tmp_path / form / "classifier.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="got other entries; export again, with --classes for"):
        class_probabilities(photos, tmp_path / form)


def test_names_that_a_backbone_can_not_tell_apart_are_told(
    photos: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The embedded backbone has a few words alone."""
    save_prompt(CoOp(load_backbone("embedded"), NAMES, ContextOptions(2), seed=1), tmp_path / "prompt")
    _, probabilities = class_probabilities(photos, tmp_path / "prompt", ["cat", "red circle", "dog"])
    torch.testing.assert_close(probabilities[:, 0], probabilities[:, 2])
    assert "the backbone knows no difference between the class names cat, dog" in caplog.text
