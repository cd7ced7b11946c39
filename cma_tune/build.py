"""From a config to objects: the one place that knows both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from cma_tune.clip.backbone import Backbone, check_backbone_name, load_backbone
from cma_tune.config import ContextConfig, FewShotConfig, SourceConfig, ZeroShotConfig
from cma_tune.data.batches import LiveBatches, Share, StoredBatches, TrainBatches, encode_items
from cma_tune.data.features import feature_identity, stored_features
from cma_tune.data.images import Augmentation, train_transform
from cma_tune.data.sources import Dataset, SourceOptions, load_dataset
from cma_tune.data.splits import Item
from cma_tune.learners import CoCoOp, CoOp, ZeroShot
from cma_tune.learners.coop import ContextLearner, ContextOptions
from cma_tune.train import Recipe

LEARNERS: dict[str, type[CoOp] | type[CoCoOp]] = {"coop": CoOp, "cocoop": CoCoOp}


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


def context_options(config: ContextConfig) -> ContextOptions:
    """Form of the learned context."""
    return ContextOptions(config.tokens, config.position, config.per_class, config.words)


def recipe(config: FewShotConfig) -> Recipe:
    """Recipe of one run; epochs and λ are numbers by then."""
    optim, weight = config.optim, config.weights[0]
    assert optim.epochs is not None and not isinstance(weight, str)
    return Recipe(
        epochs=optim.epochs,
        lr=optim.lr,
        warmup_lr=optim.warmup_lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        cma_weight=weight,
        reduction=config.loss.reduction,
        normalize=config.loss.normalize,
    )


class Setup:
    """What the runs of one config share: processes, dataset, backbone, stored image features.

    Everything is made on first use, so that a mistake in a later step is not waited for, and a finished run
    loads no weights.
    """

    def __init__(self, config: ZeroShotConfig, backbone: Backbone | None = None) -> None:
        self.config = config
        if backbone is not None:
            self.backbone = backbone  # loaded before, by another setup of this process
        check_backbone_name(config.backbone, config.pretrained, config.model_config)
        # Loading the dataset finds most mistakes, and is cheap beside the weights.
        self.dataset: Dataset = load_dataset(
            config.dataset, Path(config.data_root), source_options(config.source), config.templates
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """Processes, device, precision, trackers."""
        tracker = self.config.tracker if isinstance(self.config, FewShotConfig) else None
        return Accelerator(
            mixed_precision=self.config.mixed_precision, log_with=tracker, project_dir=self.config.output
        )

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen model on the device of this process."""
        config = self.config
        return load_backbone(config.backbone, config.pretrained, config.model_config, self.accelerator.device)

    @property
    def features_dir(self) -> Path:
        """Folder of stored image features."""
        return Path(self.config.features_dir or Path(self.config.output) / "features")

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` → features ``[B, D]`` of unit length under the run's precision."""
        if not len(images):
            return torch.zeros(0, self.feature_width, device=self.accelerator.device)
        with self.accelerator.autocast():
            return self.backbone.encode_image(images).float()

    @cached_property
    def feature_width(self) -> int:
        """Width D of the features."""
        return int(self.backbone.encode_texts(["a"]).shape[-1])

    def test_features(self) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` and labels ``[N]`` of the whole test part."""
        return self._features(self.dataset.split.test, "test images")

    def validation_features(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` and labels ``[N]`` of the few-shot validation picks."""
        return self._features(items, "validation images")

    def _features(
        self, items: Sequence[Item], what: str, view: tuple[int, int, Augmentation] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stored features of `items` under the test transform, or under one view (seed, epoch, augmentation)."""
        backbone, accelerator = self.backbone, self.accelerator
        drawn: dict[str, object] = {"precision": accelerator.mixed_precision}
        transform = backbone.transform
        if view is not None:
            seed, epoch, augmentation = view
            drawn |= {"seed": seed, "epoch": epoch, "scale": list(augmentation.scale), "flip": augmentation.flip}
            transform = self._train_transform(augmentation)
        identity = feature_identity(
            backbone.weights_digest, backbone.preprocessing.digest(), self.dataset.images, items, drawn
        )

        def encode() -> Tensor:
            with tqdm(total=len(items), desc=what, unit="img", leave=False, disable=None) as bar:
                return encode_items(
                    items,
                    self.dataset.images,
                    transform,
                    self.encode,
                    accelerator.device,
                    self.config.eval_batch_size,
                    self.config.workers,
                    noise=view[:2] if view is not None else None,
                    progress=bar.update,
                )

        # One process of a machine encodes and writes, the others read what it wrote.
        with accelerator.local_main_process_first():
            features = stored_features(self.features_dir, identity, encode, accelerator.is_local_main_process)
        return features, torch.tensor([item.label for item in items], dtype=torch.long)

    def _train_transform(self, augmentation: Augmentation):  # type: ignore[no-untyped-def]
        preprocessing = self.backbone.preprocessing
        return train_transform(preprocessing.size, preprocessing.mean, preprocessing.std, augmentation)

    def train_batches(self, items: Sequence[Item], config: FewShotConfig) -> TrainBatches:
        """Training data of one run: live crops, or stored views."""
        accelerator, seed = self.accelerator, config.seeds[0]
        share = Share(accelerator.process_index, accelerator.num_processes)
        augmentation = Augmentation((config.augment.scale_min, 1.0), config.augment.flip)
        if config.train_features == "live":
            return LiveBatches(
                items,
                self.dataset.images,
                self._train_transform(augmentation),
                self.encode,
                accelerator.device,
                config.optim.batch_size,
                seed,
                config.workers,
                share,
            )
        views = [(seed, epoch, augmentation) for epoch in range(config.views)] or [None]
        features = torch.stack([self._features(items, "training images", view)[0] for view in views])
        labels = torch.tensor([item.label for item in items], dtype=torch.long)
        device = accelerator.device
        return StoredBatches(features.to(device), labels.to(device), config.optim.batch_size, seed, share)

    def zero_shot(self, class_names: Sequence[str]) -> ZeroShot:
        """The zero-shot learner over these names."""
        return ZeroShot(self.backbone, class_names, self.dataset.templates)

    def learner(self, config: FewShotConfig, class_names: Sequence[str]) -> ContextLearner:
        """An untrained learner over these names; the global random state is set by the run's seed."""
        set_seed(config.seeds[0])
        return LEARNERS[config.learner](
            self.backbone, class_names, context_options(config.context), seed=config.seeds[0]
        )

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout)
