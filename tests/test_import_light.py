"""``import cma_tune`` loads nothing, and its public names load torch and nothing heavier."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cma_tune

HEAVY = [
    "PIL",
    "accelerate",
    "datasets",
    "matplotlib",
    "open_clip",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "torchmetrics",
    "torchvision",
    "transformers",
]


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter once ``code`` has run."""
    script = (
        f"{code}\nimport json, sys; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_import_alone_does_not_load_torch() -> None:
    loaded = modules_after("import cma_tune; cma_tune.__version__; dir(cma_tune)")
    assert "cma_tune" in loaded
    assert not loaded & {"torch", "numpy", *HEAVY}


def test_touching_every_public_name_loads_torch_and_nothing_heavier() -> None:
    loaded = modules_after("import cma_tune\nfor name in cma_tune.__all__: getattr(cma_tune, name)")
    assert "torch" in loaded
    assert loaded & set(HEAVY) == set()


def test_names_come_from_where_they_live_and_others_are_refused() -> None:
    from cma_tune import losses, metrics

    for name in [*losses.__all__, *metrics.__all__]:
        home = losses if name in losses.__all__ else metrics
        assert getattr(cma_tune, name) is getattr(home, name)
    assert {*losses.__all__, *metrics.__all__, "__version__"} == set(cma_tune.__all__)
    assert set(cma_tune.__all__) <= set(dir(cma_tune))
    with pytest.raises(AttributeError, match="module 'cma_tune' has no attribute 'nothing'"):
        cma_tune.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_that_of_the_project_file() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    stated = re.search(r'^version = "(.+)"$', project.read_text(), re.MULTILINE)
    assert stated is not None and cma_tune.__version__ == stated[1]
