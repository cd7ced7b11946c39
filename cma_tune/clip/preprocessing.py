"""What an image tower expects of images, read off the model's own settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cma_tune.errors import UserError

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as image processors write them, in open_clip's words."""


@dataclass(frozen=True)
class Preprocessing:
    """What the image tower expects of images.

    Attributes:
        size: height and width in pixels.
        mean, std: per channel, for values in 0..1.
        interpolation, resize_mode: how images get to that size, in open_clip's words.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str

    def digest(self) -> str:
        """SHA-256 over all of it."""
        content = [self.size, self.mean, self.std, self.interpolation, self.resize_mode]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def transform(self) -> Any:
        """Images of PIL → tensors ``[3, H, W]``, by open_clip's transform for evaluation."""
        import open_clip

        config = open_clip.transform.PreprocessCfg(
            size=self.size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
        )
        return open_clip.transform.image_transform_v2(config, is_train=False)


def open_clip_preprocessing(model: Any) -> Preprocessing:
    """That of an open_clip model."""
    config = model.visual.preprocess_cfg
    size = config["size"]
    height_width = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return Preprocessing(
        size=height_width,
        mean=tuple(float(m) for m in config["mean"]),
        std=tuple(float(s) for s in config["std"]),
        interpolation=str(config["interpolation"]),
        resize_mode=str(config["resize_mode"]),
    )


def processor_preprocessing(processor: Mapping[str, Any], name: str = "the backbone") -> Preprocessing:
    """That of a transformers image processor.

    Args:
        processor: its settings, as its ``to_dict`` gives them.
        name: the backbone's name, for errors.

    Raises:
        UserError: images get to their size, or pixels to their range, in a way that has no counterpart here.
    """
    size, resize_mode = _size_and_mode(processor, name)
    resample = processor.get("resample")
    interpolation = None if resample is None else _INTERPOLATIONS.get(int(resample))
    if interpolation is None:
        raise _unfit(name, "bilinear or bicubic resizing (resample 2 or 3)", f"resample {resample}")
    factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    if abs(factor * 255 - 1) > 1e-6:
        raise _unfit(name, "pixels scaled to 0..1", f"a rescale factor of {factor:g}")
    normalises = bool(processor.get("do_normalize", True))
    return Preprocessing(
        size=size,
        mean=tuple(float(m) for m in processor["image_mean"]) if normalises else (0.0,) * 3,
        std=tuple(float(s) for s in processor["image_std"]) if normalises else (1.0,) * 3,
        interpolation=interpolation,
        resize_mode=resize_mode,
    )


def _size_and_mode(processor: Mapping[str, Any], name: str) -> tuple[tuple[int, int], str]:
    """Height and width, and "squash" to them or resize the "shortest" side and cut the middle out."""
    size, crop = processor.get("size"), processor.get("crop_size")
    shortest = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    whole = None if shortest else _height_width(size)
    cut = _height_width(crop) if processor.get("do_center_crop") else None
    if processor.get("do_resize", True):
        if shortest and cut == (shortest, shortest):
            return cut, "shortest"
        if whole is not None and cut in (None, whole):
            return whole, "squash"
    raise _unfit(
        name,
        "images resized to one height and width, or their shortest side to that of a square crop",
        f"size {size}" + (f" and crop_size {crop}" if cut else " and no crop"),
    )


def _height_width(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return (size, size)
    if not size or not size.get("height") or not size.get("width"):
        return None
    return (int(size["height"]), int(size["width"]))


def _unfit(name: str, expected: str, got: str) -> UserError:
    return UserError(
        f"Expected {expected} in the image processor of '{name}', got {got}; choose another backbone, or set "
        "its preprocessor_config.json."
    )
