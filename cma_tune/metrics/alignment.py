"""How close images and texts lie: mean cosines, as the CMA paper reports them."""

from __future__ import annotations

from torch import Tensor

from cma_tune.metrics._checks import check_labels_in_range, check_pairing, own_text
from cma_tune.metrics.entropy import unit_rows


def class_similarity(image_features: Tensor, text_features: Tensor, labels: Tensor) -> Tensor:
    r"""Class similarity: mean cosine between an image and its own class's text embedding.

    Args:
        image_features: ``[B, D]``.
        text_features: one row a class, ``[C, D]``, or conditioned on the image, ``[B, C, D]``.
        labels: class of each image, ``[B]``, integers in 0..C−1.

    Returns:
        Scalar in −1..1, the mean over images; nan for an empty batch. A zero row has cosine 0.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, or a label is outside 0..C−1.

    Example:
        >>> import torch
        >>> images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> round(class_similarity(images, texts, torch.tensor([0, 1])).item(), 4)  # (1 + 0.8) / 2
        0.9
    """
    check_pairing(image_features, text_features, labels)
    check_labels_in_range(labels.cpu(), text_features.shape[-2])
    own = own_text(text_features, labels.to(text_features.device))
    return (unit_rows(image_features) * unit_rows(own)).sum(-1).mean()


def modal_similarity(image_features: Tensor, text_features: Tensor) -> Tensor:
    r"""Modal similarity: mean cosine between any image and the text embeddings of all classes.

    Args:
        image_features: ``[B, D]``.
        text_features: one row a class, ``[C, D]``, or conditioned on the image, ``[B, C, D]``.

    Returns:
        Scalar in −1..1, the mean over images and classes; nan for an empty batch. A zero row has cosine 0.

    Raises:
        ValueError: shapes do not fit or a dtype is wrong.

    Example:
        >>> import torch
        >>> images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> round(modal_similarity(images, texts).item(), 4)  # (1 + 0.6 + 0 + 0.8) / 4
        0.6
    """
    check_pairing(image_features, text_features)
    # The mean cosine over classes is the dot product with the mean unit row: no [B, C] is needed, and no
    # matrix product, which autocast would take to half precision.
    mean_text = unit_rows(text_features).mean(-2)
    return (unit_rows(image_features) * mean_text).sum(-1).mean()
