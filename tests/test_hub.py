"""Names of the Hub and local folders, what is fetched, and what is said where the Hub gives nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny_runs import backbone, coop

import cma_tune.hub
from cma_tune.errors import UserError
from cma_tune.hub import hub_name, local_folder, upload
from cma_tune.learners import from_pretrained, save_prompt
from cma_tune.serving.predictors import find


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cma_tune.hub, "hub_found", lambda: True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", "org/name"),
        ("hf-hub:org/name", "org/name"),
        ("org/na.me-2_x", "org/na.me-2_x"),
        ("name", None),
        ("a/b/c", None),
        ("/org/name", None),
        ("./name", None),
        ("~/name", None),
        ("here/prompt", None),  # a local folder
        ("hf-hub:here/prompt", "here/prompt"),
    ],
)
def test_what_names_a_repository(
    source: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "prompt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name(source) == expected
    assert hub_name(Path(source)) is None


@pytest.mark.usefixtures("reachable")
def test_a_prompt_comes_from_the_hub_and_nothing_else_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_prompt(coop(), tmp_path)
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    learner = from_pretrained("org/name", backbone())
    assert learner.class_names == coop().class_names
    files = ["card.json", "prompt.safetensors", "adapter_config.json", "adapter_model.safetensors"]
    assert asked
    for name, options in asked:
        assert name == "org/name" and sorted(options.pop("allow_patterns")) == sorted(files)
        assert options == {"local_files_only": False}
    asked.clear()
    assert find("org/name").form == "prompt"
    patterns = asked[0][1]["allow_patterns"]
    assert all(name.endswith((".json", ".safetensors", ".onnx", ".onnx.data")) for name in patterns)


def _refused(status: int, kind: type[Exception]) -> Exception:
    made: Any = kind
    error: Exception = made("no", response=SimpleNamespace(headers={}, request=None, status_code=status))
    return error


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_refused(404, errors.RepositoryNotFoundError), r"but there is no such repository, or it is private"),
        (_refused(403, errors.HfHubHTTPError), r"but the Hub knows no right to do so; log in"),
        (_refused(500, errors.HfHubHTTPError), r"but the Hub refused: "),
        (errors.LocalEntryNotFoundError("no"), r"the Hub can't be reached and nothing is here"),
        (errors.OfflineModeIsEnabled("no"), r"the Hub can't be reached and nothing is here"),
        (errors.LocalTokenNotFoundError("no"), r"nobody is logged in"),
        (errors.HTTPError("too\nslow"), r"it failed \(HTTPError: too slow\)"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=message) as caught:
        local_folder("org/name", ["card.json"], "a learned prompt")
    assert str(caught.value).startswith("Expected a learned prompt in a folder org/name or in the repository")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("reachable")
def test_a_mistake_of_our_own_is_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(PermissionError):
        local_folder("org/name", ["card.json"], "a learned prompt")


def test_without_network_the_cache_is_read_at_once_and_nothing_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cma_tune.hub, "hub_found", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "HfApi", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    with pytest.raises(UserError, match="the Hub can't be reached and nothing is here"):
        from_pretrained("org/surely-no-such-prompt")
    with pytest.raises(UserError, match="Expected to write to the repository org/name of the Hub, but"):
        upload(tmp_path, "org/name", private=False)
