"""The command line: quick to answer, forgiving in spelling, one sentence for a mistake."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cma_tune.arguments import normalize
from cma_tune.cli import main, parse
from cma_tune.commands import COMMANDS, Command
from cma_tune.config import BaseToNovelConfig, FewShotConfig
from cma_tune.errors import UserError
from cma_tune.options import QuickstartConfig


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from cma_tune.cli import main\n"
        "main(['--help'])\n"
        "try:\n    main(['few-shot', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'datasets', 'accelerate', 'numpy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize(
    ("command", "usage", "lines", "hidden"),
    [
        (
            "data",
            "data ACTION [NAME] [OUT] [options]",
            ["list [NAME] ", "status ", "check NAME ", "fetch NAME ", "miniature NAME OUT "],
            "--words",
        ),
        ("report", "report FOLDER [options]", ["FOLDER  folder with records."], "--folder"),
        ("export", "export PROMPT OUTPUT [options]", ["PROMPT  folder or Hub", "OUTPUT  new f"], "--output"),
        (
            "features",
            "features ACTION [options]",
            ["ACTION  what to do: build, list, verify, prune\n"],
            "--action",
        ),
    ],
)
def test_help_shows_positional_arguments_as_they_are_typed(
    command: str, usage: str, lines: list[str], hidden: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: cma-tune {usage}\n")
    for line in lines:
        assert f"\n  {line}" in out
    assert f" {hidden} " not in out and "--catalog FILE.yaml" in out


def test_what_is_logged_is_a_plain_sentence_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("cma_tune.data.features")

    def warn(config: Any) -> None:
        # As libraries do, some of which set up the root logger by the way.
        with mock.patch.object(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)]):
            log.warning("Stored features %s are damaged.", "a.safetensors")

    monkeypatch.setitem(COMMANDS, "quickstart", Command(QuickstartConfig, warn))
    for _ in range(2):
        main(["quickstart"])
        assert capsys.readouterr().err == "cma-tune: Stored features a.safetensors are damaged.\n"
    assert logging.getLogger("cma_tune").propagate and not logging.getLogger("cma_tune").handlers


def test_module_and_script_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("cma-tune")
    by_script = subprocess.run([str(script), "--help"], capture_output=True, text=True)
    by_module = python("-m", "cma_tune", "--help")
    assert by_script.returncode == by_module.returncode == 0
    assert by_script.stdout == by_module.stdout != ""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--shots", "1,2,4"], {"shots": [1, 2, 4]}),
        (["--shot", "8"], {"shots": [8]}),
        (["--shots=[1, 16]"], {"shots": [1, 16]}),
        (["--seed", "0"], {"seeds": [0]}),
        (["--cma-weight", "0.5"], {"weights": [0.5]}),
        (["--weights", "0,.3,1"], {"weights": [0.0, 0.3, 1.0]}),
        (["--data-root", "somewhere"], {"data_root": "somewhere"}),
        (["--select-weight", "--dataset", "shapes"], {"select_weight": True, "dataset": "shapes"}),
        (["--select-weight", "false"], {"select_weight": False}),
        (["--no-resume"], {"resume": False}),
        (["--resume"], {"resume": True}),
        (
            ["--template", "a photo of a {}, a type of pet."],
            {"templates": ["a photo of a {}, a type of pet."]},
        ),
        (["--template", "a {}.", "--templates", "the {}."], {"templates": ["a {}.", "the {}."]}),
        (["--mixed-precision", "bf16"], {"mixed_precision": "bf16"}),
    ],
)
def test_flags_as_people_write_them(typed: list[str], expected: dict[str, Any]) -> None:
    config = parse("few-shot", typed)
    assert isinstance(config, FewShotConfig)
    assert {name: getattr(config, name) for name in expected} == expected


def test_nested_options_and_config_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("shots: [2]\noptim:\n  lr: 0.01\n  epochs: 7\nweights: [recipe, 0]\n")
    config = parse("base-to-novel", ["--config", str(path), "--optim.epochs", "9", "--context.per-class"])
    assert isinstance(config, BaseToNovelConfig)
    assert (config.shots, config.optim.lr, config.optim.epochs) == ([2], 0.01, 9)
    assert config.weights == ["recipe", 0.0]
    assert config.context.per_class


def test_positional_arguments() -> None:
    assert parse("report", ["runs", "--format", "csv"]).folder == "runs"
    predict = parse("predict", ["a.jpg", "--prompt", "p", "b, c.jpg"])
    assert predict.images == ["a.jpg", "b, c.jpg"]
    assert normalize(["-1"], COMMANDS["report"].config, "report", "folder") == ["--folder=-1"]


@pytest.mark.parametrize(
    ("command", "typed", "parts"),
    [
        ("few-shot", ["--weigts", "3"], ["--weigts", "did you mean '--weights'"]),
        ("few-shot", ["--epochs", "3"], ["--epochs", "did you mean '--optim.epochs'"]),
        (
            "few-shot",
            ["--optim", "3"],
            ["such as --optim.optimizer, got '3' for all of --optim; name the one"],
        ),
        ("few-shot", ["--optim.lr", "fast"], ["Expected a number for --optim.lr, got 'fast'."]),
        (
            "few-shot",
            ["--learner", "cop"],
            ["one of coop, cocoop, kgcoop, ", " for --learner, got 'cop' (did you mean 'coop'?)"],
        ),
        ("few-shot", ["--weights", "much"], ["Expected a number or recipe for --weights, got 'much'."]),
        ("few-shot", ["--shots", "1,one"], ["Expected a whole number for --shots, got 'one'."]),
        ("report", ["a", "--against", "papers"], ["Expected paper for --against, got 'papers'"]),
        ("few-shot", ["caltech101"], ["'caltech101' without one"]),
        (
            "few-shot",
            ["--tip.search", "maybe", "--shots", "1"],
            ["Expected true or false after --tip.search, got 'maybe'."],
        ),
        ("few-shot", ["--resume", "false", "caltech101"], ["'caltech101' without one"]),
        (
            "few-shot",
            ["--weights", "0", "--cma-weight", "0.3"],
            ["Expected one of --weights and --cma-weight, which are the same, got both."],
        ),
        ("few-shot", ["--dataset"], ["value after --dataset"]),
        ("few-shot", ["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        ("report", [], ["Expected FOLDER for 'report', got none"]),
        ("grid", ["--shots=1"], ["Expected PROTOCOL after 'cma-tune grid', got none"]),
        ("grid", ["few_shot"], ["for PROTOCOL, got 'few_shot' (did you mean 'few-shot'?)"]),
        ("lab", [], ["Expected EXPERIMENT after 'cma-tune lab'"]),
        ("supervised", ["--interplay.order=3"], ["Expected one of 1, 2 for --interplay.order, got '3'"]),
        ("report", ["a", "b"], ["one folder", "got 2"]),
        ("report", ["a", "--format", "html"], ["--format", "html", "latex"]),
        ("predict", ["a.jpg"], ["--prompt", "got none"]),
    ],
)
def test_a_wrong_option_is_one_sentence(command: str, typed: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(command, typed)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("shotz: [1]\n", ["'shotz'", "did you mean 'shots'"]),
        ("optim: 3\n", ["such as --optim.optimizer, got '3' for all of --optim"]),
        ("optim:\n  lrr: 1\n", ["'optim.lrr'", "did you mean 'optim.lr'"]),
        ("shots: {a: 1}\n", ["shots"]),
        ("shots: 1\n", ["Expected a list such as [a, b] for --shots, got '1'."]),
        ("lora:\n  layers: 2\n", ["Expected a text for --lora.layers, got '2' (put it in quotes)."]),
        ("shots: [1\n", ["YAML", "--config", "line 1"]),
    ],
)
def test_a_wrong_config_file_is_one_sentence(content: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        parse("few-shot", ["--config", str(path)])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (["fewshot"], "did you mean 'few-shot'"),
        (["few-shot", "--dataset", "caltech"], "did you mean 'caltech101'"),
        (["few-shot", "--weights", "1.5"], "between 0 and 1"),
        (["few-shot", "--backbone", "ViT-B16", "--dataset", "digits"], "did you mean"),
        (["few-shot", "--backbone", "ViT-B-16"], "--pretrained"),
        (["few-shot", "--dataset", "caltech101", "--data-root", "nowhere"], "nowhere"),
        (["zero-shot", "--dataset", "folder:nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["predict", "nothing.jpg", "--prompt", "nowhere"], "nowhere"),
        (["words", "--prompt", "nowhere"], "nowhere"),
        (["few-shot", "--weights", "recipe", "--dataset", "digits"], "release"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(
    typed: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(typed)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("cma-tune: Expected ")
    assert captured.err.count("\n") == 1
    assert part in captured.err


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("few-shot", ["--shots", "1,2", "--optim.lr", "0.5", "--print_config"])
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert parse("few-shot", ["--config", str(path)]) == parse(
        "few-shot", ["--shots", "1,2", "--optim.lr", "0.5"]
    )


def test_options_of_another_method_are_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "few-shot", replace(COMMANDS["few-shot"], run=lambda config: None))
    main(["few-shot", "--kgcoop.weight", "3", "--maple.depth=2"])
    said = capsys.readouterr().err
    assert said == "cma-tune: nothing of --learner coop is changed by --kgcoop.weight, --maple.depth\n"
    main(["few-shot", "--learner", "kgcoop", "--kgcoop.weight", "3", "--context.tokens", "4"])
    assert not capsys.readouterr().err
    main(["few-shot", "--learner", "linear_probe", "--context.tokens", "4"])
    assert capsys.readouterr().err.endswith("of --learner linear_probe is changed by --context.tokens\n")
    main(["few-shot", "--learner", "tip_adapter", "--weights", "0", "--optim.epochs", "5"])
    assert capsys.readouterr().err.endswith("of --learner tip_adapter is changed by --optim.epochs\n")


def test_choices_that_are_hardly_meant_are_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "few-shot", replace(COMMANDS["few-shot"], run=lambda config: None))
    main(["few-shot", "--learner", "linear_probe", "--weights", "0,0.3"])
    assert "--learner linear_probe_text starts from the class names" in capsys.readouterr().err
    main(["few-shot", "--learner", "linear_probe", "--weights", "0"])
    main(["few-shot", "--learner", "linear_probe_text", "--weights", "0.3"])
    main(["few-shot", "--optim.steps_per_shot", "10"])
    main(["few-shot", "--learner", "lp_plus_plus", "--train-features", "stored"])
    main(["few-shot", "--context.words", "a photo of a"])
    assert not capsys.readouterr().err
    main(["few-shot", "--optim.steps_per_shot", "10", "--optim.epochs", "3"])
    assert "--optim.steps-per-shot takes the place of --optim.epochs" in capsys.readouterr().err
    for features in (["--train-features", "stored", "--views", "2"], ["--train-features", "live"]):
        main(["few-shot", "--learner", "lp_plus_plus", *features])
        assert "--train-features stored without --views is what they are for" in capsys.readouterr().err
    main(["few-shot", "--context.words", "a photo of a", "--context.tokens", "8"])
    assert "nothing is changed by --context.tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbone", "kept"), [("embedded", None), ("transformers-dir:x", None), ("RN50", "openai")]
)
def test_weights_beside_a_backbone_that_brings_its_own(
    backbone: str,
    kept: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got: list[FewShotConfig] = []
    monkeypatch.setitem(COMMANDS, "few-shot", replace(COMMANDS["few-shot"], run=got.append))
    main(["few-shot", "--backbone", backbone, "--pretrained", "openai"])
    assert got[0].pretrained == kept
    said = (
        f"cma-tune: --backbone {backbone} brings its own weights: nothing of it is changed by --pretrained\n"
    )
    assert capsys.readouterr().err == ("" if kept else said)
