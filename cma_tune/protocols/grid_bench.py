"""What the runs of one process of a grid share, and the locks between processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cma_tune.build import Setup
from cma_tune.config import BaseToNovelConfig, FewShotConfig
from cma_tune.options import CrossDatasetConfig, GridConfig
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.cross_dataset import cross_dataset, target_setup
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.grid_plan import Task, run_config
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import Record


@contextmanager
def only_one_at(config: GridConfig, name: str, timeout: float = 0) -> Iterator[bool]:
    """Whether no other process is at the same; one that dies lets go."""
    path = Path(config.output) / "grid" / "locks" / f"{name[:32]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        yield True  # the file system knows no locks: runs may be done twice, with the same result
        return
    try:
        yield True
    finally:
        lock.release()


class Bench:
    """What the runs of one process share: the dataset at hand, the targets, the backbone for all of them."""

    def __init__(self, config: GridConfig) -> None:
        self._config = config
        self._dataset: str | None = None
        self._setup: Setup | Exception | None = None
        self._shared: dict[str, Any] = {}
        self._targets: dict[str, Setup] = {}

    def do(self, task: Task) -> Record:
        """Run one task to its end."""
        setup, config = self._setup_for(task.dataset), task.run.config
        if isinstance(config, CrossDatasetConfig):
            return cross_dataset(config, setup, self._targets_for(config, setup))[-1]
        if isinstance(config, BaseToNovelConfig):
            return base_to_novel(config, setup)[-1]  # a choice stands behind what it was made among
        if isinstance(config, FewShotConfig):
            return few_shot(config, setup)[-1]
        return zero_shot(config, setup)

    def _targets_for(self, config: CrossDatasetConfig, setup: Setup) -> dict[str, Setup]:
        if not self._targets:
            targets = {name: target_setup(config, name) for name in config.targets}
            for name, target in targets.items():
                target.backbone = setup.backbone
                with self._alone_with(name):
                    target.test_features()
            self._targets = targets
        return self._targets

    def _alone_with(self, dataset: str) -> AbstractContextManager[bool]:
        """One process encodes the test images, the others read what it stored."""
        return only_one_at(self._config, hashlib.sha256(dataset.encode()).hexdigest(), timeout=-1)

    def _setup_for(self, dataset: str) -> Setup:
        if dataset != self._dataset:
            self._dataset, self._setup = dataset, None  # let go of one before the next is loaded
            self._setup = self._load(dataset)
        if isinstance(self._setup, Exception):
            raise self._setup
        assert self._setup is not None
        return self._setup

    def _load(self, dataset: str) -> Setup | Exception:
        """The mistake is kept, so that it is not made again for every run of the dataset."""
        try:
            setup = _Quiet(run_config(self._config, dataset), **self._shared)
            with self._alone_with(dataset):
                setup.test_features()
        except Exception as error:
            return error
        self._shared = {"backbone": setup.backbone}
        return setup


class _Quiet(Setup):
    """Leaves it to the grid to say how runs went."""

    def say(self, text: str) -> None:
        """Print what was encoded."""
        if text.startswith("encoded"):
            super().say(text)
