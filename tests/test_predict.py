"""Labels for images from a learned prompt: right ones, and mistakes told before any weights load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import backbone

from cma_tune.clip.backbone import load_backbone
from cma_tune.errors import UserError
from cma_tune.learners import CoOp, MaPLe, from_pretrained, save_prompt
from cma_tune.learners.coop import ContextOptions
from cma_tune.predict import class_probabilities, predict, words
from cma_tune.serving import predictors

NAMES = ["zero", "one", "two"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is computed on the CPU, so the other side has to be too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    save_prompt(CoOp(backbone(), NAMES, ContextOptions(2), seed=1), tmp_path / "prompt")
    return tmp_path / "prompt"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "a.png", tmp_path / "b, c.png"]
    for number, path in enumerate(paths):
        Image.effect_noise((40, 50), 30 + 90 * number).convert("RGB").save(path)
    return [str(path) for path in paths]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights would be loaded."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(predictors, "from_pretrained", fail)


@pytest.mark.parametrize("names", [None, ["red", "striped triangle", "one", "blue"]])
def test_probabilities_are_those_of_the_learner(
    names: list[str] | None, prompt: Path, images: list[str]
) -> None:
    got, probabilities = class_probabilities(images, prompt, names, batch_size=1)
    learner = from_pretrained(prompt)
    chosen = learner if names is None else learner.for_classes(names)
    assert list(got) == (names or NAMES)
    for path, row in zip(images, probabilities, strict=True):
        with Image.open(path) as image, torch.no_grad():
            pixels = learner.backbone.transform(image.convert("RGB"))[None]
            logits = chosen(learner.backbone.encode_image(pixels)).logits[0]
        torch.testing.assert_close(row, logits.exp() / logits.exp().sum(), rtol=1e-5, atol=1e-6)


def test_the_most_probable_labels_are_printed_in_order(
    prompt: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("red\n\nstriped triangle\none\n")
    predict(images, str(prompt), str(classes), top=2)
    names, probabilities = class_probabilities(images, prompt, ["red", "striped triangle", "one"])
    lines = capsys.readouterr().out.splitlines()
    for line, path, row in zip(lines, images, probabilities.tolist(), strict=True):
        first, second, _ = sorted(zip(row, names, strict=True), reverse=True)
        assert line == f"{path}\t{first[1]} {first[0]:.4f}  {second[1]} {second[0]:.4f}"


@pytest.mark.usefixtures("no_weights")
def test_names_that_stand_there_twice_are_refused(prompt: Path, images: list[str], tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\ncat \na cow\nbird\na cow\n")
    message = "Expected every class name once, got 'cat', 'a cow' more than once; remove the repetitions."
    with pytest.raises(UserError) as by_file:
        predict(images, str(prompt), str(classes))
    with pytest.raises(UserError) as by_names:
        class_probabilities(images, prompt, ["cat", "a cow", "cat", "a cow"])
    assert str(by_file.value) == str(by_names.value) == message


@pytest.mark.usefixtures("no_weights")
def test_the_prompt_is_looked_at_first_then_the_names_then_the_images(
    prompt: Path, images: list[str], tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent.png")
    with pytest.raises(UserError, match=r"the card of a learned prompt at .*nowhere"):
        predict([absent], str(tmp_path / "nowhere"), "no names.txt")
    with pytest.raises(UserError, match=r"the card of a learned prompt at .*nowhere"):
        class_probabilities([absent], tmp_path / "nowhere", ["cat", "cat"])
    with pytest.raises(UserError, match=r"no names\.txt"):
        predict([absent], str(prompt), "no names.txt")
    with pytest.raises(UserError, match=r"Expected an image at .*absent\.png, but there is no such file"):
        predict([images[0], absent], str(prompt))
    with pytest.raises(UserError, match=r"Expected at least one image, got none"):
        class_probabilities([], prompt)
    with pytest.raises(UserError, match=r"Expected --top of at least 1, got 0"):
        predict(images, str(prompt), top=0)


@pytest.mark.usefixtures("no_weights")
def test_what_is_near_a_prompt_is_told_from_it(prompt: Path, images: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"got the folder {tmp_path}; name {prompt}\."):
        predict(images, str(tmp_path))
    weights = prompt / "prompt.safetensors"
    with pytest.raises(UserError, match=rf"got the file {weights}; name the folder {prompt}\."):
        predict(images, str(weights))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "classifier.json").write_text("{}")
    with pytest.raises(UserError, match=r"got the export .*export, which holds no prompt"):
        from_pretrained(tmp_path / "export")
    (tmp_path / "export" / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"Expected the folder of an exported model, got the file"):
        predict(images, str(tmp_path / "export" / "model.safetensors"))


@pytest.mark.usefixtures("no_weights")
def test_where_labels_can_not_be_written_is_told_first(
    prompt: Path, images: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"Expected a file for --output, got the folder"):
        predict(images, str(prompt), output=str(tmp_path))
    with pytest.raises(UserError, match=r"Expected a folder that can be written to for --output, got /proc"):
        predict(images, str(prompt), output="/proc/labels.csv")


def test_a_damaged_image_is_named_without_a_word_of_splits(prompt: Path, images: list[str]) -> None:
    Path(images[1]).write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        predict(images, str(prompt))
    message = str(caught.value)
    assert message.startswith(f"Expected an image at {images[1]}, but it can't be decoded")
    assert message.endswith("; replace it or leave it out (--skip-unreadable does).")
    assert "split" not in message


@pytest.mark.parametrize("depth", [1, 3])
def test_words_say_that_further_layers_are_left_out(
    depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = MaPLe(load_backbone("embedded"), NAMES, ContextOptions(2), depth=depth)
    save_prompt(learner, tmp_path)
    words(str(tmp_path), 1)
    lines = capsys.readouterr().out.splitlines()
    if depth > 1:
        assert lines.pop(0).startswith(f"Of {depth} layers with learned tokens, the first alone")
    assert [line.split()[0] for line in lines] == ["1", "2"]
