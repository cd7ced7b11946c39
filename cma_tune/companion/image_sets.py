"""Small images as tensors in memory: labelled, unlabelled, validation and test, from every source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cma_tune.companion.image_tables import KNOWN_TABLES, is_table, read_table
from cma_tune.companion.pools import Pool, Pools, pixels_of, resized
from cma_tune.companion.published_files import READERS
from cma_tune.companion_options import SemiSupervisedConfig, SupervisedConfig
from cma_tune.data.catalog import SOURCE_PREFIXES, known_names
from cma_tune.data.sources import load_dataset
from cma_tune.data.splits import Item
from cma_tune.errors import UserError, nearest
from cma_tune.source_options import source_options

HUB = "hub:"
"""A data root that begins so means the Hub's form."""

SIDES = {"stl10": 96}
"""Pixels a side of the images; 32 elsewhere."""

SMOOTH = 127.5
"""Mean and deviation of sources without published ones: values from −1 to 1."""

NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "stl10": ((112.4, 109.1, 98.6), (68.4, 66.6, 68.5)),
}
"""The references' mean and standard deviation of red, green, blue, of 0…255."""

ROWS_AT_ONCE = 1000
"""Images that are hashed together: unlabelled ones may be in a file, not in memory."""


@dataclass(frozen=True)
class ImageSet:
    """What a run trains and is tested on.

    Attributes:
        name: of the dataset.
        origin: where it came from.
        class_names: C names, position = label.
        train: every image that may be labelled.
        extra: further images without a label, ``[M, 3, H, W]``, uint8, if any.
        val: for choices; empty where the dataset has none.
        test: the test images.
        mean, std: of the channels, of 0…255.
        folds: STL-10's ten choices of labelled images.
    """

    name: str
    origin: str
    class_names: tuple[str, ...]
    train: Pool
    extra: Tensor | None
    val: Pool
    test: Pool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folds: tuple[tuple[int, ...], ...] = ()

    def digest(self) -> str:
        """SHA-256 over all images, labels and class names."""
        content = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        for pool in (self.train, self.val, self.test):
            _add(content, pool.images)
            content.update(pool.labels.contiguous().numpy().data)
        if self.extra is not None:
            _add(content, self.extra)
        return content.hexdigest()


def _add(content: hashlib._Hash, images: Tensor) -> None:
    content.update(str(tuple(images.shape)).encode())
    for rows in images.split(ROWS_AT_ONCE):
        content.update(rows.contiguous().numpy().data)


def load_image_set(config: SupervisedConfig) -> ImageSet:
    """The dataset of a config.

    CIFAR-10, CIFAR-100 and STL-10 are looked for below `data_root` as the authors' files that torchvision
    unpacks, then as a folder of parquet files of that name (``DATA_ROOT/cifar10``). A data root of ``hub:``
    takes them from the Hub, ``hub:REPOSITORY`` from another repository. STL-10's unlabelled images are only
    read for algorithms that use them. Everything else is a source of the few-shot protocols.

    Raises:
        UserError: the dataset can't be had, has no images to train or test on, or one can't be read.
    """
    side = config.image_size or SIDES.get(config.dataset, 32)
    pools = _known(config, side) if config.dataset in READERS else _general(config, side)
    for part, pool in (("train", pools.train), ("test", pools.test)):
        if not len(pool):
            raise UserError(
                f"Expected {part} images of {config.dataset}, got none ({pools.origin}); check the source."
            )
    mean, std = NORMALIZATION.get(config.dataset, ((SMOOTH,) * 3, (SMOOTH,) * 3))
    return ImageSet(
        config.dataset,
        pools.origin,
        pools.class_names,
        pools.train,
        pools.unlabelled,
        pools.val,
        pools.test,
        mean,
        std,
        pools.folds,
    )


def _known(config: SupervisedConfig, side: int) -> Pools:
    """CIFAR-10, CIFAR-100 or STL-10."""
    name, root = config.dataset, config.data_root
    unlabelled = (
        name == "stl10" and isinstance(config, SemiSupervisedConfig) and config.algorithm != "supervised"
    )
    base = Path(root.removeprefix(HUB)).expanduser()
    if root.startswith(HUB):
        place = root.removeprefix(HUB) or KNOWN_TABLES[name].repository
        place = str(base / name) if root != HUB and is_table(base / name) else place
    else:
        folder, read = READERS[name]
        if (base / folder).is_dir():
            return _sized(read(base / folder, unlabelled), side)
        if not is_table(base / name):
            raise UserError(
                f"Expected {name} below {base} as {folder} (what torchvision unpacks) or as parquet files "
                f"in {name}, got neither; put one there or use --data-root hub: for the Hub."
            )
        place = str(base / name)
    options = source_options(config.source)
    return read_table(name, place, options, side, unlabelled, config.fold is not None)


def _sized(pools: Pools, side: int) -> Pools:
    def sized(pool: Pool) -> Pool:
        return Pool(resized(pool.images, side), pool.labels)

    return replace(
        pools,
        train=sized(pools.train),
        val=sized(pools.val),
        test=sized(pools.test),
        unlabelled=None if pools.unlabelled is None else resized(pools.unlabelled, side),
    )


def _general(config: SupervisedConfig, side: int) -> Pools:
    """A source of the few-shot protocols, decoded."""
    names = (*READERS, *known_names())
    if config.dataset not in names and not config.dataset.startswith(SOURCE_PREFIXES):
        raise UserError(
            f"Expected a dataset out of {', '.join(names)}, or folder:PATH, csv:FILE, hub:REPO, "
            f"got '{config.dataset}'{nearest(config.dataset, names)}."
        )
    dataset = load_dataset(config.dataset, Path(config.data_root), source_options(config.source))

    def pool(items: Sequence[Item]) -> Pool:
        pictures = (dataset.images.load(item.key) for item in items)
        labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        return Pool(pixels_of(pictures, len(items), side), labels)

    split = dataset.split
    return Pools(pool(split.train), pool(split.val), pool(split.test), split.class_names, dataset.origin)
