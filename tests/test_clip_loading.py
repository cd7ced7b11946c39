"""Where backbones come from: names and files, refusals before and while loading."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import urllib.request
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from families import FAMILIES, TEXTS, model_config, own_text_features, tiny_backbone, tiny_model
from safetensors.torch import save_file
from tiny_tokenizers import tiny_tokenizer

from cma_tune.clip.backbone import Backbone, check_backbone_name, load_backbone
from cma_tune.errors import UserError
from cma_tune.learners import CoOp, from_pretrained, save_prompt
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)


def write_model(folder: Path, family: str, name: str = "tiny-own") -> tuple[Path, Path]:
    """A model config of our own, ``NAME.json``, and a checkpoint for it."""
    kind = FAMILIES[family]
    tokenizer = tiny_tokenizer(kind.tokenizer, folder)
    config = model_config(kind, tokenizer, folder)
    config["custom_text"] = kind.model != "clip"
    config_file, weights = folder / f"{name}.json", folder / "weights.safetensors"
    config_file.write_text(json.dumps(config))
    save_file(tiny_model(kind, tokenizer, folder).state_dict(), str(weights))
    return config_file, weights


def write_folder(folder: Path, family: str) -> Path:
    """A folder as open_clip's ``local-dir:`` reads it."""
    config_file, weights = write_model(folder, family)
    preprocessing = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    content = {"model_cfg": json.loads(config_file.read_text()), "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    weights.rename(folder / "open_clip_model.safetensors")
    config_file.unlink()
    return folder


def same_weights(backbone: Backbone, family: str) -> bool:
    return backbone.weights_digest == tiny_backbone(family, torch.float32).weights_digest


@pytest.mark.parametrize("family", ["clip-vit", "custom-text"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_own_config_and_checkpoint(family: str, suffix: str, tmp_path: Path) -> None:
    config, weights = write_model(tmp_path, family, f"tiny-{family}")
    if suffix == ".pt":
        state = tiny_backbone(family, torch.float32).model.state_dict()
        weights = tmp_path / "weights.pt"
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, weights)
    backbone = load_backbone(f"tiny-{family}", str(weights), str(config))
    assert same_weights(backbone, family)
    expected = {"name": f"tiny-{family}", "pretrained": str(weights), "model_config": str(config)}
    assert expected.items() <= backbone.describe().items()
    ids = backbone.tokenizer.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(backbone.tower.encode_ids(ids), own_text_features(backbone, ids))


@pytest.mark.parametrize("family", ["clip-resnet", "siglip", "hf-roberta-mean", "hf-mt5-mean"])
def test_folder(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(f"local-dir:{write_folder(tmp_path, family)}")
    assert same_weights(backbone, family)
    assert backbone.preprocessing.size == (32, 32)
    assert backbone.preprocessing.std == (0.25, 0.25, 0.25)
    assert (backbone.preprocessing.interpolation, backbone.preprocessing.resize_mode) == (
        "bilinear",
        "squash",
    )
    torch.testing.assert_close(
        backbone.encode_texts(TEXTS), tiny_backbone(family, torch.float32).encode_texts(TEXTS)
    )


def test_a_folder_brings_its_weights_and_the_card_says_so(tmp_path: Path) -> None:
    backbone = load_backbone(f"local-dir:{write_folder(tmp_path, 'clip-vit')}", "openai")
    assert backbone.pretrained is None and backbone.describe()["pretrained"] is None


def test_preprocessing_digest_tells_every_field(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "clip-vit")
    config_file = folder / "open_clip_config.json"
    digests = {load_backbone(f"local-dir:{folder}").preprocessing.digest()}
    for field, value in {"mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bicubic"}.items():
        content = json.loads(config_file.read_text())
        content["preprocess_cfg"][field] = value
        config_file.write_text(json.dumps(content))
        digests.add(load_backbone(f"local-dir:{folder}").preprocessing.digest())
    assert len(digests) == 4


def test_weights_digest_tells_one_changed_number() -> None:
    import copy

    backbone = tiny_backbone("clip-vit", torch.float32)
    model: Any = copy.deepcopy(backbone.model)
    tokenizer: Any = backbone.tokenizer._tokenizer

    def digest() -> str:
        return Backbone(model, tokenizer, backbone.transform, "copy").weights_digest

    assert digest() == backbone.weights_digest
    with torch.no_grad():
        model.positional_embedding[3, 2] += 1e-6
    assert digest() != backbone.weights_digest


@pytest.mark.parametrize(
    ("name", "pretrained", "sentence"),
    [
        ("ViT-B/16", "openai", "did you mean 'ViT-B-16'"),
        ("RN5O", "openai", "did you mean 'RN50'"),
        ("embeded", None, "did you mean 'embedded'"),
        ("RN50", "opnai", "did you mean 'openai'"),
        ("RN50", "/nowhere/weights.pt", "got '/nowhere/weights.pt'"),
        ("RN50", None, "tags: .*openai"),
        ("local-dir:/nowhere", None, "open_clip_config.json at /nowhere"),
        ("hf-hub:", None, "hf-hub:ORG/REPO"),
        ("hf-hub:one", None, "hf-hub:ORG/REPO"),
    ],
)
def test_unknown_names_are_refused_before_loading(name: str, pretrained: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_backbone_name(name, pretrained)


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [
        ("RN50", "openai"),
        ("ViT-B-32", "laion2b-s34b-b79k"),
        ("ViT-B-32", "OpenAI"),
        ("hf-hub:org/repo", None),
    ],
)
def test_known_names_pass(name: str, pretrained: str | None) -> None:
    check_backbone_name(name, pretrained)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, weights = write_model(tmp_path, "clip-vit")
    here = load_backbone("tiny-own", f"~/{weights.name}", "~/tiny-own.json")
    assert here.weights_digest == load_backbone("tiny-own", str(weights), None).weights_digest
    for prefix in ("local-dir:", "transformers-dir:"):
        with pytest.raises(UserError, match=rf"json at {tmp_path}/clip, but"):
            check_backbone_name(f"{prefix}~/clip")


def test_a_folder_of_the_other_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"none; use 'transformers-dir:{tmp_path}'\."):
        check_backbone_name(f"local-dir:{tmp_path}")
    (tmp_path / "config.json").rename(tmp_path / "open_clip_config.json")
    with pytest.raises(UserError, match=rf"none; use 'local-dir:{tmp_path}', or use"):
        check_backbone_name(f"transformers-dir:{tmp_path}")


def test_a_missing_or_unfit_model_config_is_refused(tmp_path: Path) -> None:
    config, weights = write_model(tmp_path, "clip-vit")
    with pytest.raises(UserError, match="no such file"):
        load_backbone("tiny-own", str(weights), str(tmp_path / "other.json"))
    with pytest.raises(UserError, match=r"backbone 'RN50' and file 'tiny-own.json'"):
        load_backbone("RN50", str(weights), str(config))
    known = open_clip.list_models()
    for content, sentence in (
        ("{", "JSON"),
        ("[]", "embed_dim"),
        ('{"embed_dim": 3}', "vision_cfg, text_cfg"),
    ):
        bad = tmp_path / "bad.json"
        bad.write_text(content)
        with pytest.raises(UserError, match=sentence):
            load_backbone("bad", str(weights), str(bad))
    # open_clip reads its configs anew with each one added, so an unreadable one must never get in.
    assert open_clip.list_models() == known


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """open_clip would go on with random weights and a warning."""
    folder = write_folder(tmp_path, "clip-vit")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"Expected weights .* but there are none"):
        load_backbone(f"local-dir:{folder}")


def test_an_unfit_folder_config_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "clip-vit")
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="'model_cfg'"):
        load_backbone(f"local-dir:{folder}")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    config, weights = write_model(tmp_path, "clip-vit")
    state = tiny_backbone("clip-vit", torch.float32).model.state_dict()
    state["text_projection"] = torch.zeros(3, 3)
    save_file({name: value.contiguous() for name, value in state.items()}, str(weights))
    with pytest.raises(UserError, match=r"'tiny-own' with .*weights.safetensors.*text_projection") as error:
        load_backbone("tiny-own", str(weights), str(config))
    assert "\n" not in str(error.value)


class Executes:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_a_checkpoint_that_would_run_code_is_refused(suffix: str, tmp_path: Path) -> None:
    config, _ = write_model(tmp_path, "clip-vit")
    trap, checkpoint = tmp_path / "executed", tmp_path / f"weights{suffix}"
    torch.save({"state_dict": {"x": Executes(trap)}}, checkpoint)
    with pytest.raises(UserError, match=r"failed: .*[Ww]eights"):
        load_backbone("tiny-own", str(checkpoint), str(config))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Executes(trap)))
    assert trap.exists(), "the trap works, had anybody stepped into it"


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    config, weights = write_model(tmp_path, "clip-vit")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="Expected to load backbone 'tiny-own'"):
        load_backbone("tiny-own", str(weights), str(config))


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network: the hosts whose address was asked for, in vain."""
    asked: list[str] = []

    def without_answer(host: Any, *rest: Any, **more: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", without_answer)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    return asked


@pytest.mark.parametrize(("name", "pretrained"), [("hf-hub:nobody/absent", None), ("RN50", "openai")])
def test_without_a_network_the_hub_is_given_up_at_once(
    name: str,
    pretrained: str | None,
    looked_up: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    offline = constants.HF_HUB_OFFLINE
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="Hub can't be reached") as error:
        load_backbone(name, pretrained)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert len(looked_up) == 1, "the Hub's client would try six times, half a minute in all"
    assert not caplog.records, "the error says it all"
    assert offline == constants.HF_HUB_OFFLINE


def test_a_local_folder_needs_no_network(looked_up: list[str], tmp_path: Path) -> None:
    load_backbone(f"local-dir:{write_folder(tmp_path, 'clip-vit')}")
    assert not looked_up


def test_a_checkpoint_takes_the_place_of_one_that_was_moved(tmp_path: Path) -> None:
    config, weights = write_model(tmp_path, "clip-vit")
    names = ("cat", "red dog")
    learner = CoOp(load_backbone("tiny-own", str(weights), str(config)), names, ContextOptions(2), seed=1)
    save_prompt(learner, tmp_path / "prompt")
    other = weights.rename(tmp_path / f"other{weights.suffix}")
    with pytest.raises(UserError, match="--backbone names where it lies now"):
        from_pretrained(tmp_path / "prompt")
    again = from_pretrained(tmp_path / "prompt", str(other))
    assert again.text_features().equal(learner.text_features())
