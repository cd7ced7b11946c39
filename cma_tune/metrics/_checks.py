"""Checks shared by everything that takes features and labels, and texts or a classifier."""

from __future__ import annotations

import torch
from torch import Tensor


def check_pairing(image_features: Tensor, text_features: Tensor, labels: Tensor | None = None) -> None:
    """Refuse shapes, dtypes and devices that do not fit; reads no value, so it costs no synchronisation."""
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        if not features.is_floating_point():
            raise ValueError(f"Expected `{name}` to be floating point, got {features.dtype}.")
    if image_features.ndim != 2:
        raise ValueError(
            f"Expected `image_features` of shape [B, D], got shape {list(image_features.shape)}."
        )
    if text_features.ndim not in (2, 3):
        raise ValueError(
            f"Expected `text_features` of shape [C, D] or [B, C, D], got shape {list(text_features.shape)}."
        )
    batch, dims = image_features.shape
    if text_features.shape[-1] != dims:
        raise ValueError(
            f"Expected `text_features` to have the {dims} dimensions of `image_features` "
            f"{list(image_features.shape)}, got shape {list(text_features.shape)}."
        )
    if text_features.ndim == 3 and text_features.shape[0] != batch:
        raise ValueError(
            f"Expected `text_features` [B, C, D] to hold one set of rows for each of the {batch} images, "
            f"got shape {list(text_features.shape)}."
        )
    if image_features.device != text_features.device:
        raise ValueError(
            "Expected `image_features` and `text_features` on the same device, "
            f"got {image_features.device} and {text_features.device}."
        )
    if labels is not None:
        check_label_vector(labels, batch)


def check_classified(
    features: Tensor, classifier: Tensor, labels: Tensor, mask: Tensor | None = None
) -> None:
    """Refuse shapes, dtypes and devices that do not fit; reads no value, so it costs no synchronisation."""
    for name, rows, shape in (("features", features, "[N, D]"), ("classifier", classifier, "[C, D]")):
        if not rows.is_floating_point():
            raise ValueError(f"Expected `{name}` to be floating point, got {rows.dtype}.")
        if rows.ndim != 2:
            raise ValueError(f"Expected `{name}` of shape {shape}, got shape {list(rows.shape)}.")
    if classifier.shape[1] != features.shape[1]:
        raise ValueError(
            f"Expected `classifier` to have the {features.shape[1]} dimensions of `features` "
            f"{list(features.shape)}, got shape {list(classifier.shape)}."
        )
    if classifier.device != features.device:
        raise ValueError(
            "Expected `features` and `classifier` on the same device, "
            f"got {features.device} and {classifier.device}."
        )
    check_label_vector(labels, len(features))
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(features),)):
        raise ValueError(
            f"Expected `mask` to be bool of shape [{len(features)}], one for each row, "
            f"got {mask.dtype} of shape {list(mask.shape)}."
        )


def check_features_and_labels(features: Tensor, labels: Tensor) -> None:
    """Refuse features that are not floating point ``[N, D]`` and labels that do not go with them."""
    if not features.is_floating_point():
        raise ValueError(f"Expected `features` to be floating point, got {features.dtype}.")
    if features.ndim != 2:
        raise ValueError(f"Expected `features` of shape [N, D], got shape {list(features.shape)}.")
    check_label_vector(labels, len(features))


def check_label_vector(labels: Tensor, batch: int) -> None:
    """Refuse labels that are not ``[batch]`` integers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"Expected `labels` to be integers, got {labels.dtype}.")
    if labels.shape != (batch,):
        raise ValueError(
            f"Expected `labels` of shape [{batch}], one for each row, got shape {list(labels.shape)}."
        )


def check_labels_in_range(labels: Tensor, num_classes: int) -> None:
    """Refuse labels outside 0..C−1. Reads values: hand it labels that are on the CPU already."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.numel():
        raise ValueError(
            f"Expected `labels` in 0..{num_classes - 1} for {num_classes} classes, "
            f"got {outside[0].item()} ({outside.numel()} of {labels.numel()} labels are outside)."
        )


def own_text(text_features: Tensor, labels: Tensor) -> Tensor:
    """The text row of each image's own class, ``[B, D]``, from ``[C, D]`` or ``[B, C, D]``."""
    if text_features.ndim == 2:
        return text_features[labels.long()]
    return text_features[torch.arange(len(labels), device=labels.device), labels.long()]
