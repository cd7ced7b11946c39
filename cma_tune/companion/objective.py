"""From a step's outputs to its loss: an algorithm, with the interplay losses beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cma_tune.companion.algorithms import Algorithm, BatchOutputs, Losses
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

    def __call__(self, batch: BatchOutputs) -> dict[str, Tensor]:
        """The loss under ``"loss"``, and its terms."""
        labelled = self._cooled(batch.labelled)
        assert labelled is not None
        cooled = batch._replace(
            labelled=labelled, weak=self._cooled(batch.weak), strong=self._cooled(batch.strong)
        )
        losses = self.algorithm(cooled)
        total, terms = losses.total, dict(losses.terms)
        if self.interplay is not None:
            added, parts = self.interplay(*self._rows(batch, losses))
            total = total + added
            terms |= parts
        return {"loss": total, **terms}

    def _cooled(self, output: Output | None) -> Output | None:
        if output is None or self.temperature == 1:
            return output
        return Output(output.logits / self.temperature, output.features)

    def _rows(self, batch: BatchOutputs, losses: Losses) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, classifier, labels and mask of the rows that take part."""
        unlabelled = batch.strong if self.view == "strong" and batch.strong is not None else batch.weak
        features, targets = [batch.labelled.features], [batch.labels]
        masks = [torch.full_like(batch.labels, self.labelled or unlabelled is None, dtype=torch.bool)]
        if unlabelled is not None and losses.pseudo_labels is not None and losses.mask is not None:
            features.append(unlabelled.features)
            targets.append(losses.pseudo_labels)
            masks.append(losses.mask)
        return torch.cat(features), batch.classifier, torch.cat(targets), torch.cat(masks)
