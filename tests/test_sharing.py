"""What goes to the Hub: files, model card, and nothing of this machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from fake_hub import Api, fake_api
from tiny_runs import backbone, coop, few_shot_config, tiny_clip
from transformers_folders import write_pair

from cma_tune.cli import main
from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.clip.transformers_text import features_of
from cma_tune.config import ZeroShotConfig
from cma_tune.errors import UserError
from cma_tune.learners import Lora, from_pretrained, save_prompt, saving
from cma_tune.learners.adapted import LoraOptions
from cma_tune.learners.cards import SHARED
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import load_record, save_record
from cma_tune.sharing import push_to_hub
from cma_tune.sharing.measured import figure_table

BACKBONE = "hf-hub:org/tiny-clip"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with a prompt."""
    output = tmp_path_factory.mktemp("runs")
    few_shot(few_shot_config(output, weights=[0.3]))
    return next(output.rglob("record.json")).parent


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    return fake_api(monkeypatch)


def read(text: str) -> tuple[dict[str, Any], str]:
    """Header and body of a model card."""
    _, header, body = text.split("---\n", 2)
    content = yaml.safe_load(header)
    assert isinstance(content, dict)
    return content, body


def test_a_prompt_is_pushed_with_a_card_of_its_record(
    run: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["push", str(run / "prompt"), "--repo", "org/my-digits", "--private", "--backbone", BACKBONE])
    assert api.calls == [
        ("create", ("org/my-digits", {"private": True, "exist_ok": True})),
        ("upload", "org/my-digits"),
    ]
    assert capsys.readouterr().out.startswith("pushed to https://example.org/org/my-digits: ")
    assert sorted(api.files) == ["README.md", "card.json", "prompt.safetensors"]
    assert api.files["prompt.safetensors"] == (run / "prompt" / "prompt.safetensors").read_bytes()
    assert str(tiny_clip()).encode() not in b"".join(api.files.values())

    record = load_record(run / "record.json")
    header, body = read(api.files["README.md"].decode())
    assert header["library_name"] == "cma_tune" and header["base_model"] == "org/tiny-clip"
    assert header["pipeline_tag"] == "zero-shot-image-classification"
    assert {"clip", "few-shot", "coop"} <= set(header["tags"]) and "datasets" not in header
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["type"] == "digits"
    assert [metric["value"] for metric in result["metrics"]] == [round(record.figures["accuracy"], 4)]
    for row in (
        "| λ of the CMA loss | 0.3 (mean over classes, normalised) |",
        "| images per class (shots) | 3 |",
        "| seed | 1 |",
        "| dataset | digits |",
        "| context tokens M | 3 |",
        "| optimiser | SGD, learning rate 0.05 (cosine), batches of 7, weight decay 0.0005, momentum 0.9 |",
        "| epochs | 3 |",
        "| steps | 12 |",
        "| figure | images | learned |",
        f"| accuracy | validation | {record.figures['validation_accuracy']:.2f} % |",
        f"| accuracy | test | {record.figures['accuracy']:.2f} % |",
        f"| mean cosine of an image and its class's text | test | {record.figures['class_similarity']:.4f} |",
        f"| expected calibration error (15 bins) | test | {record.figures['ece']:.2f} points |",
    ):
        assert f"\n{row}\n" in body
    assert 'CoOp.from_pretrained("org/my-digits")' in body and "license" not in header


def test_zero_shot_of_the_same_images_stands_beside(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    shutil.copytree(run, output / run.relative_to(run.parents[5]))
    prompt = output / run.relative_to(run.parents[5]) / "prompt"
    learned, same = load_record(run / "record.json"), few_shot_config(output)
    plain = zero_shot(
        ZeroShotConfig("digits", backbone=same.backbone, output=same.output, features_dir=same.features_dir)
    )

    def body() -> str:
        push_to_hub(prompt, "org/name", backbone=BACKBONE, dry_run=tmp_path / "dry", license="apache-2.0")
        return (tmp_path / "dry" / "README.md").read_text()

    text, mine, its = body(), learned.figures, plain.figures
    calibration = "expected calibration error (15 bins)"
    assert read(text)[0]["license"] == "apache-2.0"
    for row in (
        "| figure | images | learned | zero-shot |",
        f"| accuracy | validation | {mine['validation_accuracy']:.2f} % |  |",
        f"| accuracy | test | {mine['accuracy']:.2f} % | {its['accuracy']:.2f} % |",
        f"| {calibration} | test | {mine['ece']:.2f} points | {its['ece']:.2f} points |",
    ):
        assert f"\n{row}\n" in text
    assert "with `a photo of the digit {}.` for its prompts" in text
    other = replace(plain, dataset={**plain.dataset, "split": "0" * 64})
    save_record(next(output.glob("zero-shot/*/*/zero_shot")), other)
    assert "zero-shot |" not in body()


def test_zero_shot_of_all_classes_is_not_set_beside_figures_of_the_base_classes(run: Path) -> None:
    halves = {"base_accuracy": 60.0, "novel_accuracy": 50.0, "ece": 3.0, "class_similarity": 0.25}
    among_all = {"accuracy": 40.0, "base_accuracy": 45.5, "novel_accuracy": 35.25, "ece": 7.0}
    plain = replace(load_record(run / "record.json"), figures=among_all | {"class_similarity": 0.125})
    assert figure_table({**halves, "novel_ece": 4.0}, plain) == [
        ("figure", "images", "learned", "zero-shot"),
        ("accuracy", "test, base classes", "60.00 %", "45.50 %"),
        ("accuracy", "test, novel classes", "50.00 %", "35.25 %"),
        ("expected calibration error (15 bins)", "test, base classes", "3.00 points", ""),
        ("mean cosine of an image and its class's text", "test, base classes", "0.2500", ""),
        ("expected calibration error (15 bins)", "test, novel classes", "4.00 points", ""),
    ]


def test_what_was_pushed_loads_with_the_backbone_of_its_card(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(run / "prompt", "org/name", backbone=BACKBONE, dry_run=tmp_path / "dry")
    asked: list[Any] = []

    def load(*arguments: Any) -> Backbone:
        asked.append(arguments)
        return backbone()

    monkeypatch.setattr(saving, "load_backbone", load)
    again = from_pretrained(tmp_path / "dry").text_features()
    assert asked == [(BACKBONE, None, None, "cpu")]
    assert again.equal(from_pretrained(run / "prompt", backbone()).text_features())


def test_a_dry_run_asks_nobody_and_can_be_repeated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "HfApi", fail)
    folder = tmp_path / "dry"
    for _ in range(2):
        assert push_to_hub(run / "prompt", "org/name", backbone=BACKBONE, dry_run=folder) == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "card.json", "prompt.safetensors"]
    (folder / "photo.jpg").touch()
    with pytest.raises(UserError, match="Expected a new or empty folder for --dry-run"):
        push_to_hub(run / "prompt", "org/name", backbone=BACKBONE, dry_run=folder)
    with pytest.raises(UserError, match="can be written to for --dry-run, got /proc/"):
        push_to_hub(run / "prompt", "org/name", backbone=BACKBONE, dry_run="/proc/dry")


@pytest.mark.parametrize("kind", ["local-dir", "transformers-dir", "embedded"])
def test_the_snippet_of_peft_loads_the_adapter(kind: str, tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    folder = {"local-dir": str(tiny_clip())}
    if kind == "transformers-dir":
        folder[kind] = write_pair(tmp_path / "pair")[1].partition(":")[2]
    name = f"{kind}:{folder[kind]}" if kind in folder else kind
    learner = Lora(load_backbone(name), ("cat", "dog"), ["a {}."], LoraOptions())
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05)
    learner.save_pretrained(tmp_path / "prompt")
    _, body = read((tmp_path / "prompt/README.md").read_text())
    snippet = body.rpartition("```python\n")[2].partition("```")[0]
    assert "PeftModel" in snippet
    if kind in folder:  # the card says no path of this machine
        path = Path(folder[kind])
        snippet = snippet.replace(f"local-dir:{path.name}", name).replace(f'"{path.name}"', f'"{path}"')
    snippet = snippet.replace("FOLDER", str(tmp_path / "prompt"))
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    image = torch.rand(2, 3, *learner.backbone.preprocessing.size, generator=torch.Generator().manual_seed(1))
    learner.eval()
    with torch.no_grad():
        model = scope["model"].eval()
        if kind == "transformers-dir":
            theirs = features_of(model.get_image_features(pixel_values=image))
        else:
            theirs = model.encode_image(image)
        theirs = torch.nn.functional.normalize(theirs, dim=-1)
        ours = learner.encode_images(image)
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(ours, learner.backbone.encode_image(image), atol=1e-3)


def test_a_lora_is_pushed_in_pefts_files(tmp_path: Path) -> None:
    learner = Lora(backbone(), ("cat", "dog"), ["a {}."], LoraOptions())
    push_to_hub(learner, "org/name", backbone=BACKBONE, dry_run=tmp_path / "dry")
    names = {"README.md", "card.json", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "dry").iterdir()} == names
    assert names - {"README.md"} <= set(SHARED)
    settings = json.loads((tmp_path / "dry" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/tiny-clip" and settings["r"] == 2
    header, body = read((tmp_path / "dry" / "README.md").read_text())
    assert {"lora", "peft"} <= set(header["tags"])
    assert "| blocks | all |" in body
    assert f'open_clip.create_model_and_transforms("{BACKBONE}")' in body
    again = from_pretrained(tmp_path / "dry", backbone())
    assert all(
        ours.equal(theirs) for ours, theirs in zip(again.parameters(), learner.parameters(), strict=True)
    )


def test_a_learner_is_pushed_without_a_record(api: Api) -> None:
    push_to_hub(coop(), "org/name", backbone=BACKBONE)
    header, body = read(api.files["README.md"].decode())
    assert "model-index" not in header and "## Figures" not in body
    assert "| 3 classes | cat, red dog, ship |" in body


def test_a_record_of_another_run_is_left_aside(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = from_pretrained(run / "prompt", backbone())
    save_prompt(prompt, tmp_path / "prompt", {"figures": {"accuracy": 1.5}})
    save_record(tmp_path, load_record(run / "record.json"))
    push_to_hub(tmp_path / "prompt", "org/name", backbone=BACKBONE, dry_run=tmp_path / "dry")
    _, body = read((tmp_path / "dry" / "README.md").read_text())
    assert "| accuracy | test | 1.50 % |" in body and "λ" not in body
    assert "is not that of the prompt" in caplog.text


@pytest.mark.parametrize(
    ("dataset", "shown", "linked"),
    [
        ("caltech101", "caltech101", ["dpdl-benchmark/caltech101"]),
        ("hub:org/birds", "hub:org/birds", ["org/birds"]),
        ("hub:/home/me/birds", "hub:birds", None),
        ("folder:/home/me/birds", "folder:birds", None),
        ("csv:../mine/birds.csv", "csv:birds.csv", None),
    ],
)
def test_no_path_of_this_machine_is_told(
    dataset: str, shown: str, linked: list[str] | None, tmp_path: Path
) -> None:
    save_prompt(coop(), tmp_path / "prompt", {"dataset": dataset})
    push_to_hub(tmp_path / "prompt", "org/name", backbone=BACKBONE, dry_run=tmp_path / "dry")
    header, body = read((tmp_path / "dry" / "README.md").read_text())
    assert header.get("datasets") == linked and f"| dataset | {shown} |" in body
    assert json.loads((tmp_path / "dry" / "card.json").read_text())["dataset"] == shown


def test_mistakes_are_told_before_anything_is_sent(run: Path, tmp_path: Path, api: Api) -> None:
    with pytest.raises(UserError, match=r"--repo of the form ORG/NAME, got 'name'"):
        push_to_hub(run / "prompt", "name")
    with pytest.raises(UserError, match=r"Expected --license by the Hub's short name, .* got 'MIT License'"):
        push_to_hub(run / "prompt", "org/name", backbone=BACKBONE, license="MIT License")
    with pytest.raises(UserError, match=r"backbone that others can load, got 'local-dir:.* local files"):
        push_to_hub(run / "prompt", "org/name")
    with pytest.raises(
        UserError, match=r"--backbone of the form hf-hub:ORG/REPO or transformers:.*, got 'RN50'"
    ):
        push_to_hub(run / "prompt", "org/name", backbone="RN50")
    push_to_hub(run / "prompt", "org/name", backbone="transformers:org/clip", dry_run=tmp_path / "other")
    header, _ = read((tmp_path / "other" / "README.md").read_text())
    assert header["base_model"] == "org/clip"
    with pytest.raises(UserError, match=r"card of a learned prompt at .*record"):
        push_to_hub(run / "record", "org/name", backbone=BACKBONE)
    save_prompt(coop(), tmp_path)
    (tmp_path / "prompt.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="damaged"):
        push_to_hub(tmp_path, "org/name", backbone=BACKBONE)
    assert api.calls == []


def test_a_tag_of_open_clip_says_where_the_base_model_is(tmp_path: Path) -> None:
    save_prompt(coop(), tmp_path / "prompt")
    path = tmp_path / "prompt" / "card.json"
    card = json.loads(path.read_text())
    card["backbone"] |= {"name": "ViT-B-16-quickgelu", "pretrained": "openai"}
    path.write_text(json.dumps(card))
    push_to_hub(tmp_path / "prompt", "org/name", dry_run=tmp_path / "dry")
    header, _ = read((tmp_path / "dry" / "README.md").read_text())
    assert header["base_model"] == "timm/vit_base_patch16_clip_224.openai"
