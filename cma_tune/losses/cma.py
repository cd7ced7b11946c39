"""The Cross-Modal Alignment (CMA) loss: matrix entropy of every class's images and text."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cma_tune.losses._groups import class_groups, group_entropies
from cma_tune.metrics._checks import check_labels_in_range, check_pairing, own_text
from cma_tune.metrics.entropy import autocast_off
from cma_tune.processes import gather_rows

Reduction = Literal["sum", "mean"]


def cross_modal_entropy(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    reduction: Reduction = "sum",
    normalize: bool = False,
    gather: bool = False,
) -> Tensor:
    r"""Cross-modal entropy: the matrix entropy of each class's image and text embeddings, over classes.

    .. math::
        L_\mathrm{CMA} = \sum_{c \in \text{batch}} H(G(F_c)), \qquad
        H(G) = -\sum_i \tfrac{\lambda_i}{n} \ln \tfrac{\lambda_i}{n}

    where the rows :math:`F_c`, n of them and scaled to unit norm, are the images of class c and its text
    embedding; with text conditioned on the image, ``[B, C, D]``, they are the images of class c and for each
    of them its own text embedding of that class. Only classes present in the batch count.

    The defaults are the paper's form, a sum in nats. ``reduction="mean", normalize=True`` is the form of the
    authors' release, for which their weights were tuned: each entropy divided by the logarithm of the group's
    number of rows (so in 0..1), and the mean over present classes. The release adds a ridge and clamps
    eigenvalues; here the value is the exact one, which differs by less than about 1e-3.

    A zero row has no direction: it counts as a row but adds nothing, and receives no gradient. An empty batch
    gives 0, still on the graph. The loss can be differentiated once, not twice.

    Args:
        image_features: ``[B, D]``, floating point.
        text_features: one row a class, ``[C, D]``, or conditioned on the image, ``[B, C, D]``.
        labels: class of each image, ``[B]``, integers in 0..C−1.
        reduction: ``"sum"`` or ``"mean"`` over the classes present.
        normalize: divide each entropy by ln(rows of its group), its largest possible value.
        gather: let the groups span all processes of the default process group; nothing happens without
            one. Every process returns the same full loss, and *averaging* parameter gradients over processes,
            as DistributedDataParallel does, gives the gradient of one process holding all rows. Batches may
            differ in size and be empty. ``[C, D]`` text is taken as equal on every process.

    Returns:
        Scalar, float32 or float64 (half precision is computed in float32, with autocast off); nan if an
        embedding of the batch is not finite.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, a label is outside 0..C−1, ``reduction`` is
            unknown, or ``normalize`` or ``gather`` is no bool.

    Source: the CMA paper's loss of one class group, summed over classes.

    Example:
        >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> texts = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
        >>> labels = torch.tensor([0, 1, 1])  # class 0: two orthogonal rows; class 1: three equal ones
        >>> round(cross_modal_entropy(images, texts, labels).item(), 4)  # ln 2 + 0
        0.6931
        >>> round(cross_modal_entropy(images, texts, labels, reduction="mean", normalize=True).item(), 4)
        0.5
    """
    _check_reduction(reduction)
    _check_switch("normalize", normalize)
    _check_switch("gather", gather)
    check_pairing(image_features, text_features, labels)
    # One copy to the CPU serves the check and the plan of the groups: the only wait for the device.
    classes = labels.cpu().long()
    check_labels_in_range(classes, text_features.shape[-2])
    conditioned = text_features.ndim == 3
    with autocast_off(image_features):
        dtype = torch.promote_types(image_features.dtype, text_features.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        images = image_features.to(dtype)
        if conditioned:
            texts = own_text(text_features, classes.to(text_features.device, non_blocking=True)).to(dtype)
        if gather:
            classes = gather_rows(labels.long()).cpu()
            if conditioned:
                # Side by side, so that one collective moves both.
                images, texts = gather_rows(torch.cat([images, texts], dim=-1)).chunk(2, dim=-1)
            else:
                images = gather_rows(images)
        groups = class_groups(classes, texts_per_image=conditioned)
        if not conditioned:
            present = groups.classes.to(text_features.device, non_blocking=True)
            texts = text_features.index_select(0, present).to(dtype)
        if not groups.buckets:
            return images.sum() + texts.sum()
        entropies, sizes = group_entropies(images, texts, groups)
        if normalize:
            entropies = entropies / sizes.log()
        return entropies.sum() if reduction == "sum" else entropies.mean()


class CMALoss(nn.Module):
    r"""The penalty L_CMA of the Cross-Modal Alignment loss; see :func:`cross_modal_entropy`.

    The training objective (1−λ)·CE + λ·L_CMA is :func:`cma_objective`.

    Args:
        reduction: ``"sum"`` (the paper) or ``"mean"`` (the authors' release) over the classes present.
        normalize: divide each entropy by ln(rows of its group), as the release does.
        gather_across_processes: let the groups span all processes, with gradients.

    Shape:
        - image_features: ``[B, D]``
        - text_features: ``[C, D]``, or ``[B, C, D]`` for text conditioned on the image
        - labels: ``[B]``
        - output: scalar

    Raises:
        ValueError: ``reduction`` is unknown, or a switch is no bool; when called, as
            :func:`cross_modal_entropy`.

    Example:
        >>> loss = CMALoss(reduction="mean", normalize=True)
        >>> images = torch.eye(2)
        >>> own = torch.stack([torch.eye(2), torch.eye(2)])  # [B, C, D]: each image's own text rows
        >>> loss(images, own, torch.tensor([0, 1])).item()  # every image equals its text
        0.0
        >>> loss(images, own, torch.tensor([1, 0])).item()  # every image is orthogonal to it
        1.0
    """

    def __init__(
        self,
        reduction: Reduction = "sum",
        normalize: bool = False,
        gather_across_processes: bool = False,
    ) -> None:
        super().__init__()
        _check_reduction(reduction)
        _check_switch("normalize", normalize)
        _check_switch("gather_across_processes", gather_across_processes)
        self.reduction: Reduction = reduction
        self.normalize = normalize
        self.gather_across_processes = gather_across_processes

    def forward(self, image_features: Tensor, text_features: Tensor, labels: Tensor) -> Tensor:
        """The penalty of one batch, a scalar."""
        return cross_modal_entropy(
            image_features,
            text_features,
            labels,
            reduction=self.reduction,
            normalize=self.normalize,
            gather=self.gather_across_processes,
        )

    def extra_repr(self) -> str:
        """What ``print(loss)`` shows between the parentheses."""
        return (
            f"reduction={self.reduction!r}, normalize={self.normalize}, "
            f"gather_across_processes={self.gather_across_processes}"
        )


def cma_objective(cross_entropy: Tensor, penalty: Tensor, weight: float) -> Tensor:
    r"""The training objective :math:`(1-\lambda)\,\mathrm{CE} + \lambda\,L_\mathrm{CMA}`.

    λ = 0 gives ``cross_entropy`` itself, so that it is CoOp step for step, and λ = 1 ``penalty`` itself,
    even where the other is not finite.

    Args:
        cross_entropy: scalar.
        penalty: scalar, from :class:`CMALoss`.
        weight: λ, between 0 and 1.

    Returns:
        Scalar.

    Raises:
        ValueError: ``weight`` is outside 0..1.

    Example:
        >>> cma_objective(torch.tensor(2.0), torch.tensor(1.0), weight=0.25).item()
        1.75
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"Expected `weight` (λ) in 0..1, got {weight}.")
    if weight == 0:
        return cross_entropy
    if weight == 1:
        return penalty
    return (1 - weight) * cross_entropy + weight * penalty


def _check_reduction(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f"Expected `reduction` to be 'sum' or 'mean', got {reduction!r}.")


def _check_switch(name: str, value: bool) -> None:
    # A word such as "false" would count as true.
    if not isinstance(value, bool):
        raise ValueError(f"Expected `{name}` to be True or False, got {value!r}.")
