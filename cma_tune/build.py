"""From a config to objects: the one place that knows both."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from cma_tune.accelerators import make_accelerator
from cma_tune.clip.backbone import Backbone, TextOptions, check_backbone_name, load_backbone
from cma_tune.config import FewShotConfig, Precision, ZeroShotConfig, trains_images
from cma_tune.data.batches import LiveBatches, Share, StoredBatches, TrainBatches, encode_items
from cma_tune.data.cautions import trained_test_images, untested_classes
from cma_tune.data.feature_shards import Space
from cma_tune.data.features import FeatureStore
from cma_tune.data.few_shot import few_shot_split
from cma_tune.data.images import Augmentation, Transform, train_transform
from cma_tune.data.memory import RememberedImages
from cma_tune.data.sources import Dataset, load_dataset
from cma_tune.data.splits import Item, Split
from cma_tune.fitting import gather_in_order
from cma_tune.learners import Learner, Support, ZeroShot
from cma_tune.methods import Given, make_learner
from cma_tune.run import Run
from cma_tune.source_options import source_options
from cma_tune.trackers import check_tracker

log = logging.getLogger(__name__)


def text_options(config: FewShotConfig) -> TextOptions:
    """How the text tower runs."""
    # All processes go through a run alike, so none waits for another's classes for ever.
    return TextOptions(
        chunk=config.text_chunk,
        memory=config.text_memory,
        split_over_processes=True,
        compile=config.compile,
    )


def _augmentation(config: FewShotConfig) -> Augmentation:
    return Augmentation((config.augment.scale_min, 1.0), config.augment.flip)


View = tuple[int, int, Augmentation]
"""One augmented view of every image: seed, epoch, augmentation."""


class Setup:
    """What the runs of one config share: processes, dataset, backbone, stored image features.

    Everything is made on first use, so that a mistake in a later step is not waited for, and a finished run
    loads no weights.

    Attributes:
        config: its output, features folder, precision, batch sizes and workers are the runs'.
        dataset: split, images, templates.

    Raises:
        UserError: the dataset, the backbone's name, the tracker or the precision can't be had.
    """

    def __init__(self, config: ZeroShotConfig, backbone: Backbone | None = None) -> None:
        self.config = config
        if backbone is not None:
            self.backbone = backbone  # loaded before, by another setup of this process
        if isinstance(config, FewShotConfig):
            check_tracker(config.tracker)
        check_backbone_name(config.backbone, config.pretrained, config.model_config)
        # Loading the dataset finds most mistakes, and is cheap beside the weights.
        self.dataset: Dataset = load_dataset(
            config.dataset, Path(config.data_root), source_options(config.source), config.templates
        )

        self._picks: dict[tuple[int, int, bool], Split] = {}
        self._test: tuple[Tensor, Tensor] | None = None
        self._warned: set[str] = set()
        self._again: dict[frozenset[str], int] = {}

    @cached_property
    def accelerator(self) -> Accelerator:
        """Processes, device, precision, trackers.

        Raises:
            UserError: the device can't compute in the precision.
        """
        tracker = self.config.tracker if isinstance(self.config, FewShotConfig) else None
        return make_accelerator(self.config.mixed_precision, tracker, self.config.output)

    @property
    def precision(self) -> Precision:
        """What is computed in, by the config or else by accelerate's setting."""
        return cast(Precision, self.accelerator.mixed_precision)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen model on the device of this process."""
        config = self.config
        backbone = load_backbone(
            config.backbone, config.pretrained, config.model_config, self.accelerator.device
        )
        if config.compile:
            backbone.compile_images()
        return backbone

    @property
    def features_dir(self) -> Path:
        """Folder of stored image features."""
        return Path(self.config.features_dir or Path(self.config.output) / "features")

    @cached_property
    def store(self) -> FeatureStore:
        """Stored image features."""
        return FeatureStore(self.features_dir)

    @cached_property
    def split_digest(self) -> str:
        """Digest of the whole split."""
        return self.dataset.split.digest()

    def picks(self, config: FewShotConfig) -> Split:
        """The few-shot picks of one run over all classes.

        Raises:
            UserError: see `few_shot_split`.
        """
        key = (config.shots[0], config.seeds[0], config.allow_fewer_shots)
        if key not in self._picks:
            self._picks[key] = few_shot_split(self.dataset.split, *key)
        return self._picks[key]

    def checkpoint_identity(self, run: Run, split: Split) -> str:
        """Digest of all that a checkpoint must share with the run that goes on from it."""
        backbone = self.backbone
        content = [run.digest(), split.digest(), backbone.weights_digest, backbone.preprocessing.digest()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features ``[B, D]`` of unit length under the run's precision."""
        with self.accelerator.autocast():
            return self.backbone.encode_image(images).float()

    def test_features(self, learner: Learner | None = None) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` and labels ``[N]`` of the whole test part, as `learner` encodes them.

        Those of the frozen backbone are kept for the runs that follow.
        """
        test = self.dataset.split.test
        self._warn(untested_classes(self.dataset))
        if learner is not None and learner.trains_images:
            return self._learned_features(learner, test)
        if self._test is None:
            self._test = self.features(test, "test images")
        return self._test

    def validation_features(self, items: Sequence[Item], learner: Learner) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` and labels ``[N]`` of the few-shot validation picks, encoded by `learner`."""
        if learner.trains_images:
            return self._learned_features(learner, items)
        return self.features(items, "validation images")

    @torch.no_grad()
    def _learned_features(self, learner: Learner, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` and labels ``[N]`` under the test transform; each process encodes its share."""
        accelerator, config = self.accelerator, self.config
        share = Share(accelerator.process_index, accelerator.num_processes).of(range(len(items)))
        learner.eval()

        def encode(images: Tensor) -> Tensor:
            with accelerator.autocast():
                return learner.encode_images(images).float()

        # A process without an image still encodes one: its empty [0, D] needs the right D.
        mine = [items[index] for index in share or [0]]
        features = encode_items(
            *(mine, self._remembering(mine), self.backbone.transform, encode, accelerator.device),
            *(config.eval_batch_size, config.workers),
        )[: len(share)]
        rows = gather_in_order(features.to(accelerator.device), len(items), accelerator).cpu()
        return rows, torch.tensor([item.label for item in items], dtype=torch.long)

    def features(self, items: Sequence[Item], what: str, view: View | None = None) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` and labels ``[N]`` of `items` under the test transform, or under one view.

        Those that are stored are read, the others encoded and stored. `what` names the images for people.
        """
        backbone, accelerator, config = self.backbone, self.accelerator, self.config
        images, batch = self.dataset.images, config.eval_batch_size
        drawn: dict[str, object] = {}
        transform = backbone.transform
        if view is not None:
            seed, epoch, augmentation = view
            drawn = {"seed": seed, "epoch": epoch}
            drawn |= {"scale": list(augmentation.scale), "flip": augmentation.flip}
            transform = self._train_transform(augmentation)
        space = Space(backbone.image_digest, backbone.preprocessing.digest(), self.precision, drawn)
        (height, width), how = backbone.preprocessing.size, backbone.preprocessing
        about = {
            "dataset": self.dataset.name,
            "images": what,
            "backbone": " ".join(filter(None, (backbone.name, backbone.pretrained))),
            "preprocessing": f"{height}x{width} {how.interpolation} {how.resize_mode}",
        }

        def encode(missing: Sequence[Item], progress: Callable[[int], None]) -> Tensor:
            noise, device = view[:2] if view is not None else None, accelerator.device
            return encode_items(
                missing, images, transform, self.encode, device, batch, config.workers, noise, progress
            )

        # One process of a machine encodes and writes, the others read what it wrote.
        with accelerator.local_main_process_first():
            writer = accelerator.is_local_main_process
            features = self.store.features(space, images, items, encode, batch, about, writer, self.say)
        return features, torch.tensor([item.label for item in items], dtype=torch.long)

    def _train_transform(self, augmentation: Augmentation) -> Transform:
        preprocessing = self.backbone.preprocessing
        return train_transform(preprocessing.size, preprocessing.mean, preprocessing.std, augmentation)

    def train_batches(self, items: Sequence[Item], config: FewShotConfig) -> TrainBatches:
        """Training data of one run: live crops, encoded or for the learner to encode, or stored views."""
        accelerator, seed = self.accelerator, config.seeds[0]
        share = Share(accelerator.process_index, accelerator.num_processes)
        assert config.optim.batch_size is not None
        if config.train_features == "live":
            # A run goes over its training images every epoch, over others once.
            self._decoded.prefer(item.key for item in items)
            return LiveBatches(
                items,
                self._remembering(items),
                self._train_transform(_augmentation(config)),
                None if trains_images(config) else self.encode,
                accelerator.device,
                config.optim.batch_size,
                seed,
                config.workers,
                share,
            )
        features = self._views(items, config)
        labels = torch.tensor([item.label for item in items], dtype=torch.long)
        device = accelerator.device
        return StoredBatches(features.to(device), labels.to(device), config.optim.batch_size, seed, share)

    @cached_property
    def _decoded(self) -> RememberedImages:
        """Images that runs go over again, training's and those that learned image towers encode."""
        memory = self.config.image_memory if isinstance(self.config, FewShotConfig) else 0.0
        return RememberedImages(self.dataset.images, int(memory * 2**30))

    def _remembering(self, items: Sequence[Item]) -> RememberedImages:
        """A source of the images of `items`, decoded once for all runs if they fit the memory."""
        if self.config.workers:
            # Workers live for one pass; they share what was decoded before they came.
            self._decoded.remember((item.key for item in items), self.config.workers)
        return self._decoded

    def zero_shot(self, class_names: Sequence[str]) -> ZeroShot:
        """The zero-shot learner over these names."""
        return ZeroShot(self.backbone, class_names, self.dataset.templates)

    def learner(self, config: FewShotConfig, class_names: Sequence[str], items: Sequence[Item]) -> Learner:
        """An untrained learner over these names; the global random state is set by the run's seed.

        Args:
            config: of one run.
            class_names: the classes.
            items: the training images, for methods that are made from their features.
        """
        seed = config.seeds[0]
        set_seed(seed)
        self.backbone.text_options = text_options(config)
        templates = self.dataset.templates
        support = partial(self.support, items, config)
        return make_learner(config, Given(self.backbone, class_names, templates, seed, support))

    def support(self, items: Sequence[Item], config: FewShotConfig) -> Support:
        """Features of the training images: means over the stored views, or under the test transform."""
        features = self._views(items, config).mean(dim=0)
        labels = torch.tensor([item.label for item in items], dtype=torch.long)
        device = self.accelerator.device
        return Support(torch.nn.functional.normalize(features, dim=-1).to(device), labels.to(device))

    def _views(self, items: Sequence[Item], config: FewShotConfig) -> Tensor:
        """Stored features ``[K, N, D]`` of the training images: their views, or the test transform's one."""
        seed, augmentation = config.seeds[0], _augmentation(config)
        views: list[View | None] = [(seed, epoch, augmentation) for epoch in range(config.views)] or [None]
        return torch.stack([self.features(items, "training images", view)[0] for view in views])

    def trained_again(self, train: Sequence[Item]) -> int:
        """How many test images are among these training images by content; if any are, it warns of them."""
        keys = frozenset(item.key for item in train)
        if keys not in self._again:  # the runs of one seed share their images
            self._again[keys], caution = trained_test_images(self.dataset, train)
            self._warn(caution)
        return self._again[keys]

    def _warn(self, text: str | None) -> None:
        """Warn on the main process, once, if there is anything to say."""
        if text is not None and self.accelerator.is_main_process and text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout)
