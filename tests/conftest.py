"""What the tests have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from web_server import CONTENT, Server

from cma_tune.data import download as download_module
from cma_tune.data.catalog import CATALOG
from cma_tune.data.splits import Split, read_coop_split

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Datasets and backbones that lie beside the repository; tests that need them skip without."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def published_splits(shared: Path) -> dict[str, Split]:
    """The published splits that are at hand, by dataset."""
    splits = {}
    for name, entry in CATALOG.items():
        for folder in (shared / "data/splits", shared / "data" / entry.folder):
            if entry.split_file is not None and (folder / entry.split_file).is_file():
                splits[name] = read_coop_split(folder / entry.split_file, name)
    return splits


@pytest.fixture
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no bars, and a cache of one's own for `datasets`."""
    import datasets  # heavy, and few tests need it

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate's state is one for the process; a test of other settings needs its own."""
    from accelerate.state import AcceleratorState, GradientState  # heavy, and few tests need it

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Descriptions of the fits there were."""
    import cma_tune.protocols.runs  # heavy, and few tests need it

    made: list[str] = []
    fit = cma_tune.protocols.runs.fit

    def counted(*arguments: Any) -> Any:
        made.append(arguments[-1])
        return fit(*arguments)

    monkeypatch.setattr(cma_tune.protocols.runs, "fit", counted)
    return made


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server with one file, and downloads that lose no time over a break."""
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server = Server()
    server.files["/file"] = CONTENT
    yield server
    server.http.shutdown()
    server.http.server_close()
