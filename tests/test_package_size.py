"""The package stays small enough to ship its backbone and data inside the wheel."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import cma_tune

PACKAGE = Path(cma_tune.__file__).parent
LIMIT = 15_000_000
"""Bytes of the wheel, at most."""


def shipped_files() -> list[Path]:
    """Every file below the package but compiled Python, which no wheel holds."""
    return sorted(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def test_the_wheel_stays_below_its_limit() -> None:
    buffer = io.BytesIO()
    files = shipped_files()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:  # as wheels are packed
        for path in files:
            wheel.write(path, path.relative_to(PACKAGE))
    assert "open_clip_model.safetensors" in {path.name for path in files}  # the heaviest of them was counted
    assert len(buffer.getvalue()) < LIMIT


def test_the_wheel_holds_every_file_of_the_package() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"\[tool\.setuptools\.package-data\]\s*cma_tune = \[(.*?)\]", project, re.DOTALL)
    assert listed is not None
    patterns = [*re.findall(r'"([^"]+)"', listed[1]), "**/*.py"]
    held = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert [path for path in shipped_files() if path not in held] == []
    assert all(any(PACKAGE.glob(pattern)) for pattern in patterns)
