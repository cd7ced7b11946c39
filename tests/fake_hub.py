"""A Hub that keeps what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import cma_tune.hub


class Api:
    """The Hub's, as far as we use it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.token: str | None = None
        self.options: dict[str, Any] = {}

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append(("create", (name, options)))
        return f"https://example.org/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        self.calls.append(("upload", repo_id))
        self.options = options
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}


def fake_api(monkeypatch: pytest.MonkeyPatch) -> Api:
    """Put one in the place of the Hub."""
    made = Api()

    def make(token: str | None = None) -> Api:
        made.token = token
        return made

    monkeypatch.setattr(huggingface_hub, "HfApi", make)
    monkeypatch.setattr(cma_tune.hub, "hub_found", lambda: True)
    return made
