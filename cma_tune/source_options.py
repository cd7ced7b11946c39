"""Columns and parts of general sources: from a config's entries to what the sources take."""

from __future__ import annotations

from pathlib import Path

from cma_tune.config import SourceConfig
from cma_tune.data.dataset import SourceOptions


def source_options(config: SourceConfig) -> SourceOptions:
    """Options of the general sources."""
    return SourceOptions(
        image_column=config.image_column,
        label_column=config.label_column,
        split_column=config.split_column,
        train_split=config.train_split,
        val_split=config.val_split,
        test_split=config.test_split,
        class_names=Path(config.class_names) if config.class_names else None,
    )
