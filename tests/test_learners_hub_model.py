"""huggingface_hub's mixin on learners: the files of `save_prompt`, and nothing else written or read."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from fake_hub import Api, fake_api
from huggingface_hub import ModelHubMixin
from tiny_runs import FEATURES, backbone, coop, random_features, tiny_clip

import cma_tune.hub
from cma_tune.errors import UserError
from cma_tune.learners import CoOp, KgCoOp, Learner, LinearProbe, Lora, ZeroShot, saving
from cma_tune.learners.adapted import LoraOptions
from cma_tune.learners.cards import SHARED
from cma_tune.learners.coop import ContextLearner

BACKBONE = "hf-hub:org/tiny-clip"
NAMES = ("cat", "red dog", "ship")


def lora() -> Lora:
    """With changes that change something."""
    learner = Lora(backbone(), NAMES, ["a {}."], LoraOptions())
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.add_(0.05 * (number % 3 + 1))
    return learner


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    return fake_api(monkeypatch)


@pytest.mark.parametrize("make", [coop, lora, lambda: LinearProbe(backbone(), NAMES)])
def test_what_is_saved_is_what_save_prompt_writes_and_loads_to_equal_logits(
    make: Callable[[], Learner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    learner = make()
    assert isinstance(learner, ModelHubMixin)
    assert learner.save_pretrained(tmp_path / "mixin") is None
    saving.save_prompt(learner, tmp_path / "ours")
    written = {path.name: path.read_bytes() for path in (tmp_path / "mixin").iterdir()}
    text = written.pop("README.md").decode()
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    assert f"{type(learner).__name__}.from_pretrained(" in text and str(tiny_clip().parent) not in text
    features, _ = random_features(5, 3)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    learner.eval()
    with torch.no_grad():
        for kind in (type(learner), Learner):
            again = kind.from_pretrained(str(tmp_path / "mixin"), backbone=backbone())
            assert type(again) is type(learner) and again.class_names == NAMES
            again.eval()
            for given in (features[0], images):
                assert again(given).logits.equal(learner(given).logits)


def test_a_prompt_of_another_method_is_refused(tmp_path: Path) -> None:
    coop().save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        KgCoOp.from_pretrained(tmp_path, backbone=backbone())
    message = f"Expected a prompt of KgCoOp in {tmp_path}, got one of CoOp; load it with CoOp.from_pretrained"
    assert str(caught.value).startswith(message)
    assert type(ContextLearner.from_pretrained(tmp_path, backbone=backbone())) is CoOp

    class Mine(CoOp):
        """A user's own."""

    assert type(Mine.from_pretrained(tmp_path, backbone=backbone())) is Mine
    with pytest.raises(UserError, match="Expected a prompt of LinearProbe"):
        LinearProbe.from_pretrained(tmp_path)
    (tmp_path / "prompt.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="damaged"):
        CoOp.from_pretrained(tmp_path, backbone=backbone())


def test_a_config_of_another_model_is_neither_deleted_nor_read(tmp_path: Path) -> None:
    learner = coop()
    learner.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"class_names": ["boat"]}')
    again = CoOp.from_pretrained(tmp_path, backbone=backbone())
    assert again.class_names == NAMES
    with pytest.raises(UserError, match=r"Expected a folder without the config\.json of a model"):
        learner.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_what_has_learned_nothing_is_not_saved(tmp_path: Path) -> None:
    learner = ZeroShot(backbone(), NAMES, ["a {}."])
    with pytest.raises(UserError, match="Expected a method that learns, got 'zero_shot'"):
        learner.save_pretrained(tmp_path / "folder")


def test_the_mixin_changes_no_signature_and_no_state() -> None:
    learner = coop()
    assert list(inspect.signature(CoOp).parameters)[:3] == ["backbone", "class_names", "options"]
    assert list(learner.state_dict()) == ["context"]
    assert not [name for name in vars(learner) if "hub" in name]
    twin = copy.copy(learner)
    assert twin.context is learner.context and twin.class_names == learner.class_names
    state = json.loads(json.dumps(saving.describe(learner)))
    assert state["learner"] == "coop" and state["context"]["shape"] == [3, 16]
    assert learner(random_features(2, 3)[0][0]).image_features.shape == (2, FEATURES)


def test_a_learner_is_pushed_under_a_backbone_that_others_can_load(api: Api, tmp_path: Path) -> None:
    learner = coop()
    with pytest.raises(UserError, match="backbone that others can load, got 'local-dir:"):
        learner.push_to_hub("org/name")
    with pytest.raises(UserError, match="Hub's short name"):
        learner.push_to_hub("org/name", backbone=BACKBONE, license="MIT License")
    with pytest.raises(UserError, match="form ORG/NAME"):
        learner.push_to_hub("name", backbone=BACKBONE)
    assert api.calls == []
    url = learner.push_to_hub(
        "org/name", backbone=BACKBONE, license="mit", token="secret", branch="new", commit_message="First"
    )
    assert url == "https://example.org/org/name" and api.token == "secret"
    assert api.calls == [
        ("create", ("org/name", {"private": None, "exist_ok": True})),
        ("upload", "org/name"),
    ]
    assert api.options == {"revision": "new", "commit_message": "First", "create_pr": None}
    assert sorted(api.files) == ["README.md", "card.json", "prompt.safetensors"]
    text = api.files["README.md"].decode()
    assert "\nlicense: mit\n" in text and "\n# name\n" in text and 'CoOp.from_pretrained("org/name")' in text
    assert json.loads(api.files["card.json"])["backbone"]["name"] == BACKBONE
    assert str(tiny_clip()).encode() not in b"".join(api.files.values())

    api.calls.clear()
    learner.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/other", backbone=BACKBONE, private=True)
    assert api.calls[0] == ("create", ("org/other", {"private": True, "exist_ok": True}))
    for readme in (api.files["README.md"].decode(), (tmp_path / "README.md").read_text()):
        assert "\n# other\n" in readme and "license" not in readme


def test_from_the_hub_a_prompts_files_alone_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coop().save_pretrained(tmp_path)
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(cma_tune.hub, "hub_found", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    CoOp.from_pretrained("org/name", revision="v1", token="secret", backbone=backbone())
    [(name, options)] = asked
    assert name == "org/name" and sorted(options.pop("allow_patterns")) == sorted(SHARED)
    download = {"revision": "v1", "token": "secret", "cache_dir": None, "force_download": False}
    assert options == {**download, "local_files_only": False}
    CoOp.from_pretrained("org/name", local_files_only=True, backbone=backbone())
    assert asked[1][1]["local_files_only"] is True
