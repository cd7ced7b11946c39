"""From a step's outputs to its loss: an algorithm, with the interplay losses beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cma_tune.companion.algorithms import Algorithm, Losses
from cma_tune.companion.networks import Output
from cma_tune.losses import InterplayLoss


@dataclass(frozen=True)
class Objective:
    """algorithm − λ_mi·MI + λ_hd·|ΔH|, over the whole batch.

    Attributes:
        algorithm: maps outputs to losses, pseudo-labels and who is confident.
        interplay: weighs the two terms; None where both weights are 0.
        view: whose features of unlabelled images take part, "strong" or "weak"; weak where there is no other.
        labelled: labelled images take part too.
        temperature: T of CE(z/T); divides all logits.
    """

    algorithm: Algorithm
    interplay: InterplayLoss | None = None
    view: str = "strong"
    labelled: bool = True
    temperature: float = 1.0

    def __call__(
        self,
        labelled: Output,
        labels: Tensor,
        weak: Output | None,
        strong: Output | None,
        indices: Tensor,
        classifier: Tensor,
    ) -> dict[str, Tensor]:
        """The loss under ``"loss"``, and its terms.

        Args:
            labelled: logits ``[B_l, C]`` and features ``[B_l, D]``.
            labels: ``[B_l]``.
            weak, strong: outputs of the two views of unlabelled images, ``[B_u, C]`` and ``[B_u, D]``.
            indices: places of the unlabelled images in their pool, ``[B_u]``.
            classifier: its weight, ``[C, D]``.
        """
        cooled = [self._cooled(output) for output in (labelled, weak, strong)]
        assert cooled[0] is not None
        losses = self.algorithm(cooled[0], labels, cooled[1], cooled[2], indices, classifier)
        total, terms = losses.total, dict(losses.terms)
        if self.interplay is not None:
            unlabelled = strong if self.view == "strong" and strong is not None else weak
            added, parts = self.interplay(*self._rows(labelled, labels, unlabelled, losses, classifier))
            total = total + added
            terms |= parts
        return {"loss": total, **terms}

    def _cooled(self, output: Output | None) -> Output | None:
        if output is None or self.temperature == 1:
            return output
        return Output(output.logits / self.temperature, output.features)

    def _rows(
        self, labelled: Output, labels: Tensor, unlabelled: Output | None, losses: Losses, classifier: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, classifier, labels and mask of the rows that take part."""
        features, targets = [labelled.features], [labels]
        masks = [torch.full_like(labels, self.labelled or unlabelled is None, dtype=torch.bool)]
        if unlabelled is not None and losses.pseudo_labels is not None and losses.mask is not None:
            features.append(unlabelled.features)
            targets.append(losses.pseudo_labels)
            masks.append(losses.mask)
        return torch.cat(features), classifier, torch.cat(targets), torch.cat(masks)
