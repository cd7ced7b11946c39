"""The collapse monitor as a ``torchmetrics.Metric``, which gathers rows over batches and processes.

The one module that needs torchmetrics; nothing else of the package imports it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cma_tune.metrics import CollapseMonitor
from cma_tune.metrics._checks import check_classified, check_labels_in_range

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Expected the package torchmetrics for CollapseMetric, but it is not installed; "
        "pip install 'cma_tune[torchmetrics]'.",
        name=error.name,
    ) from error


class CollapseMetric(Metric):
    """All figures of :class:`cma_tune.CollapseMonitor` over the rows of all updates and processes.

    ``update(features [N, D], labels [N], classifier [C, D])`` keeps the rows, in float64, and the classifier
    given last, which is taken as equal on all processes; a process may have no rows at all. ``compute()``
    gives a float64 scalar for each of the monitor's names, nan where it has None. Which rows are left
    where the monitor thins them depends on their order, and so on how they lay on the processes.

    Args:
        center: compare without means.
        max_rows: largest matrix whose spectrum is computed for mutual information, at least 2.
        kwargs: options of ``torchmetrics.Metric``.

    Raises:
        ValueError: as :class:`cma_tune.CollapseMonitor`; from ``update`` if shapes do not fit, D or C differ
            from earlier updates, or a dtype is wrong; from ``compute`` without any update.

    Example:
        >>> metric = CollapseMetric()
        >>> corners = torch.eye(3) - 1 / 3  # a simplex ETF
        >>> for _ in range(5):
        ...     metric.update(corners, torch.arange(3), corners)
        >>> values = metric.compute()
        >>> values["samples"].item(), round(values["mutual_information_ratio"].item(), 4)
        (15.0, 0.5)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    # States of one dimension: those of a process without rows can be joined to the others'.
    features: list[Tensor]
    labels: list[Tensor]
    classifier: list[Tensor]
    dims: Tensor
    classes: Tensor

    def __init__(self, center: bool = False, max_rows: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.monitor = CollapseMonitor(center, max_rows)
        for name in ("features", "labels", "classifier"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        for name in ("dims", "classes"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="max")

    def update(self, features: Tensor, labels: Tensor, classifier: Tensor) -> None:
        """Take in the rows of one batch."""
        check_classified(features, classifier, labels)
        check_labels_in_range(labels.cpu(), len(classifier))
        known = (int(self.classes), int(self.dims))
        if known not in ((0, 0), tuple(classifier.shape)):
            raise ValueError(
                f"Expected `classifier` of shape {list(known)} as before, "
                f"got shape {list(classifier.shape)}; reset() the metric first."
            )
        self.classes.fill_(classifier.shape[0])
        self.dims.fill_(classifier.shape[1])
        self.features.append(features.detach().double().flatten())
        self.labels.append(labels.detach().long())
        self.classifier = [classifier.detach().double().flatten()]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes."""
        for name, dtype in (("features", torch.double), ("labels", torch.long), ("classifier", torch.double)):
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                # What torchmetrics would put here has another dtype, and a collective takes one only.
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """The figures of all rows so far."""
        dims, classes = int(self.dims), int(self.classes)
        if classes == 0:
            raise ValueError("Expected an update before compute, got none on any process.")
        features, labels, classifier = map(dim_zero_cat, (self.features, self.labels, self.classifier))
        # Processes bring their classifiers one after the other; they are equal.
        values = self.monitor(
            features.view(-1, dims), labels, classifier[-classes * dims :].view(classes, dims)
        )
        return {
            name: torch.tensor(
                math.nan if value is None else value, dtype=torch.double, device=features.device
            )
            for name, value in values.items()
        }
