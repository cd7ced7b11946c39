"""MIR and HDR of a classifier over a test set, as a torchmetrics metric in an evaluation loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from drawn_shapes import load_clip, load_shapes, options
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from cma_tune.collapse_metric import CollapseMetric


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Go through the test images in batches; the figures over all of them."""
    given = options(arguments, __doc__)
    model, transform, tokenizer = load_clip(given.model, given.pretrained)
    images, labels, prompts = load_shapes(transform, part="test")
    model.eval()
    # Rows are kept over batches and, under torch.distributed, gathered from all processes by compute().
    collapse = CollapseMetric()
    accuracy = MetricCollection({"accuracy": MulticlassAccuracy(len(prompts), average="micro")})
    with torch.no_grad():
        classifier = model.encode_text(tokenizer(prompts), normalize=True)  # [C, D]
        for batch in torch.arange(len(labels)).split(given.batch_size):
            features = model.encode_image(images[batch], normalize=True)  # [B, D]
            collapse.update(features, labels[batch], classifier)
            accuracy.update(features @ classifier.T, labels[batch])
    values = {name: value.item() for name, value in {**collapse.compute(), **accuracy.compute()}.items()}
    for name in ("accuracy", "mutual_information_ratio", "entropy_difference_ratio"):
        print(f"{name} {values[name]:.4f}")
    print(f"at collapse the ratios are {values['collapse_mutual_information_ratio']:.4f} and 0")
    return values


if __name__ == "__main__":
    main()
