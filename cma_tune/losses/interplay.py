"""Interplay losses: mutual information and entropy difference of features and their classes' classifier rows.

Source: Song, Tan, Zou, Ma and Huang, "Unveiling the Dynamics of Information Interplay in Supervised Learning"
(2024). It leaves open the weights, whether the classifier receives a gradient, and the view of unlabelled
images: these are options of ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cma_tune.losses._interplay import interplay_entropies
from cma_tune.metrics._checks import check_classified, check_labels_in_range
from cma_tune.metrics._classes import centered, present_classes
from cma_tune.metrics.entropy import autocast_off, check_alpha, unit_rows
from cma_tune.processes import gather_rows


class InterplayTerms(NamedTuple):
    """What the losses are made of, in nats; scalars on the graph."""

    mutual_information: Tensor
    """MI(G(f), G(V))."""
    entropy_difference: Tensor
    """|H(G(f)) − H(G(V))|."""


class InterplayOutput(NamedTuple):
    """A loss and its terms."""

    loss: Tensor
    """Scalar, on the graph."""
    terms: dict[str, Tensor]
    """``mutual_information`` (where its weight is not 0) and ``entropy_difference``, detached."""


def interplay_terms(
    features: Tensor,
    classifier: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    center: bool = False,
    detach_classifier: bool = False,
    gather: bool = False,
) -> InterplayTerms:
    r"""Mutual information and entropy difference of features f and V, the classifier row of each one's label.

    .. math::
        \mathrm{MI} = H(G(f)) + H(G(V)) - H(G(f) \circ G(V)), \qquad
        |\Delta H| = |H(G(f)) - H(G(V))|

    G is the Gram matrix of rows scaled to unit norm and H its matrix entropy. H(G(V)) is computed from the
    counts of the classes present, H(G(f)) from the smaller of the N×N and the D×D problem; only the entrywise
    product needs N×N.

    Both are 0, with a gradient of 0, for fewer than two rows or a single class: nothing is left to relate.
    :math:`|\Delta H|` has the gradient 0 at equality. The terms can be differentiated once, not twice.

    Args:
        features: ``[N, D]``, floating point, as they enter the classifier.
        classifier: its weight, one row a class, ``[C, D]``.
        labels: (pseudo-)label of each row, ``[N]``, integers, in 0..C−1 where ``mask`` is True.
        mask: which rows take part, ``[N]``, bool; by default all. For unlabelled data: the confident ones.
        alpha: order of Rényi's entropy. 1 is the matrix entropy of the source. Any other order is *another
            quantity*: 2 needs no eigenvalues, and its mutual information can be slightly negative.
        center: take away the mean of the class means from the features, and from the rows of the classes
            present their mean. The source does not; theory's values at collapse are those of centred ones.
        detach_classifier: let no gradient reach ``classifier``.
        gather: let the rows span all processes of the default process group, with the gradient convention
            of :func:`cma_tune.gather_rows`. Processes may bring different numbers of rows, 0 included.
            ``classifier`` is taken as equal on all of them.

    Returns:
        The two scalars, float32 or float64 (half precision is computed in float32, with autocast off); nan if
        a row that takes part is not finite.

    Raises:
        ValueError: shapes do not fit, a dtype is wrong, a label is outside 0..C−1, or ``alpha`` is not finite
            and positive.

    Example:
        >>> features, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> terms = interplay_terms(features, classifier=2 * torch.eye(3), labels=labels)
        >>> round(terms.mutual_information.item(), 4)  # ln 3, the largest for three rows
        1.0986
        >>> abs(round(terms.entropy_difference.item(), 4))
        0.0
    """
    options = (alpha, center, detach_classifier, gather)
    information, difference = _terms(features, classifier, labels, mask, *options, joint=True)
    assert information is not None
    return InterplayTerms(information, difference)


def _terms(
    features: Tensor,
    classifier: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    alpha: float,
    center: bool,
    detach_classifier: bool,
    gather: bool,
    joint: bool,
) -> tuple[Tensor | None, Tensor]:
    """Mutual information, or None without ``joint``, and entropy difference."""
    check_alpha(alpha)
    check_classified(features, classifier, labels, mask)
    if detach_classifier:
        classifier = classifier.detach()
    if mask is not None:
        features, labels = features[mask], labels[mask]
    # One copy to the CPU serves the check and the classes: the only other wait for the device.
    known = labels.cpu()
    check_labels_in_range(known, len(classifier))
    with autocast_off(features):
        dtype = torch.promote_types(torch.promote_types(features.dtype, classifier.dtype), torch.float32)
        features = features.to(dtype)
        if gather:
            known = gather_rows(labels.long()).cpu()
            features = gather_rows(features)
        present = present_classes(known)
        if len(present.classes) < 2:
            # Sums of no entries: 0, on the graph of both, whatever they hold.
            zero = features[:0].sum() + classifier[:0].sum().to(dtype)
            return zero if joint else None, zero
        present = present.to(features.device)
        rows = classifier.index_select(0, present.classes).to(dtype)
        if center:
            features, rows = centered(features, rows, present)
        counts = present.counts.to(features)
        entropies = interplay_entropies(
            unit_rows(features), unit_rows(rows), present.owners, counts, alpha, joint
        )
        information = entropies[0] + entropies[1] - entropies[2] if joint else None
        return information, (entropies[0] - entropies[1]).abs()


class _Loss(nn.Module):
    """Options that the losses have in common."""

    def __init__(
        self,
        alpha: float = 1.0,
        center: bool = False,
        detach_classifier: bool = False,
        gather_across_processes: bool = False,
    ) -> None:
        super().__init__()
        check_alpha(alpha)
        for name, value in (
            ("center", center),
            ("detach_classifier", detach_classifier),
            ("gather_across_processes", gather_across_processes),
        ):
            if not isinstance(value, bool):  # a word such as "false" would count as true
                raise ValueError(f"Expected `{name}` to be True or False, got {value!r}.")
        self.alpha = alpha
        self.center = center
        self.detach_classifier = detach_classifier
        self.gather_across_processes = gather_across_processes

    def _terms(
        self, features: Tensor, classifier: Tensor, labels: Tensor, mask: Tensor | None, joint: bool
    ) -> tuple[Tensor | None, Tensor]:
        options = (self.alpha, self.center, self.detach_classifier, self.gather_across_processes)
        return _terms(features, classifier, labels, mask, *options, joint=joint)

    def extra_repr(self) -> str:
        """What ``print(loss)`` shows between the parentheses."""
        return (
            f"alpha={self.alpha}, center={self.center}, detach_classifier={self.detach_classifier}, "
            f"gather_across_processes={self.gather_across_processes}"
        )


class MutualInformationLoss(_Loss):
    r"""−MI(G(f), G(V)), a scalar; see :func:`interplay_terms`.

    Args:
        alpha: order of Rényi's entropy; other than 1 it is another quantity.
        center: compare without means.
        detach_classifier: let no gradient reach the classifier.
        gather_across_processes: let the rows span all processes, with gradients. Not for rows that are
            gathered already.

    Shape:
        - features: ``[N, D]``
        - classifier: ``[C, D]``
        - labels: ``[N]``
        - mask: ``[N]``, bool, or None
        - output: scalar

    Raises:
        ValueError: ``alpha`` is not finite and positive, or a switch is no bool; when called, as
            :func:`interplay_terms`.

    Example:
        >>> loss = MutualInformationLoss()
        >>> round(loss(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])).item(), 4)  # −ln 3
        -1.0986
    """

    def forward(
        self, features: Tensor, classifier: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch, a scalar."""
        information, _ = self._terms(features, classifier, labels, mask, joint=True)
        assert information is not None
        return -information


class EntropyDifferenceLoss(_Loss):
    r"""|H(G(f)) − H(G(V))|, a scalar, without any N×N problem if N > D; see :func:`interplay_terms`.

    Arguments, shapes and errors are those of :class:`MutualInformationLoss`.

    Example:
        >>> loss = EntropyDifferenceLoss()
        >>> classifier = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(loss(torch.ones(2, 2), classifier, torch.tensor([0, 1])).item(), 4)  # ln 2 − 0
        0.6931
    """

    def forward(
        self, features: Tensor, classifier: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch, a scalar."""
        return self._terms(features, classifier, labels, mask, joint=False)[1]


class InterplayLoss(_Loss):
    r"""Both losses at once, :math:`-\lambda_\mathrm{mi} \mathrm{MI} + \lambda_\mathrm{id} |\Delta H|`.

    They share their entropies. With λ_mi = 0 the mutual information is not computed.

    Args:
        mutual_information_weight: λ_mi, finite, at least 0.
        entropy_difference_weight: λ_id, finite, at least 0.
        alpha, center, detach_classifier, gather_across_processes: as :class:`MutualInformationLoss`.

    Shape:
        - as :class:`MutualInformationLoss`, but the output is an :class:`InterplayOutput`

    Raises:
        ValueError: a weight is negative or not finite; else as :class:`MutualInformationLoss`.

    Example:
        >>> loss = InterplayLoss(mutual_information_weight=0.1, entropy_difference_weight=1.0)
        >>> value, terms = loss(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
        >>> round(value.item(), 4)  # −0.1 ln 3 + 0
        -0.1099
        >>> sorted(terms)
        ['entropy_difference', 'mutual_information']
    """

    def __init__(
        self,
        mutual_information_weight: float,
        entropy_difference_weight: float,
        alpha: float = 1.0,
        center: bool = False,
        detach_classifier: bool = False,
        gather_across_processes: bool = False,
    ) -> None:
        super().__init__(alpha, center, detach_classifier, gather_across_processes)
        for name, weight in (
            ("mutual_information_weight", mutual_information_weight),
            ("entropy_difference_weight", entropy_difference_weight),
        ):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"Expected `{name}` to be finite and at least 0, got {weight}.")
        self.mutual_information_weight = mutual_information_weight
        self.entropy_difference_weight = entropy_difference_weight

    def forward(
        self, features: Tensor, classifier: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> InterplayOutput:
        """The loss of one batch and its terms."""
        joint = self.mutual_information_weight != 0
        information, difference = self._terms(features, classifier, labels, mask, joint)
        loss = self.entropy_difference_weight * difference
        terms = {"entropy_difference": difference.detach()}
        if information is not None:
            loss = loss - self.mutual_information_weight * information
            terms["mutual_information"] = information.detach()
        return InterplayOutput(loss, terms)

    def extra_repr(self) -> str:
        """What ``print(loss)`` shows between the parentheses."""
        return (
            f"mutual_information_weight={self.mutual_information_weight}, "
            f"entropy_difference_weight={self.entropy_difference_weight}, {super().extra_repr()}"
        )
