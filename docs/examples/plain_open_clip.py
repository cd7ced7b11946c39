"""The CMA loss in a plain PyTorch loop that fine-tunes an open_clip model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from drawn_shapes import endless_batches, load_clip, load_shapes, options
from torch.nn.functional import cross_entropy

from cma_tune import CMALoss, cma_objective


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train for some steps; the losses over all images afterwards."""
    given = options(arguments, __doc__)
    model, transform, tokenizer = load_clip(given.model, given.pretrained)
    images, labels, prompts = load_shapes(transform)
    texts = tokenizer(prompts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    penalty = CMALoss(reduction="mean", normalize=True)  # each group's entropy as a share of its largest

    def losses(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image_features, text_features, scale = model(images[batch], texts)  # [B, D], [C, D], of unit length
        logits = scale * image_features @ text_features.T
        chosen = labels[batch]
        return cross_entropy(logits, chosen), penalty(image_features, text_features, chosen)

    model.train()
    for step, batch in enumerate(islice(endless_batches(len(labels), given.batch_size), given.steps)):
        ce, cma = losses(batch)
        loss = cma_objective(ce, cma, given.weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss:.4f}, cross-entropy {ce:.4f}, CMA {cma:.4f}")

    model.eval()
    with torch.no_grad():
        ce, cma = losses(torch.arange(len(labels)))
    print(f"over all images with λ={given.weight:g}: cross-entropy {ce:.4f}, CMA {cma:.4f}")
    return {"cross_entropy": ce.item(), "cma": cma.item()}


if __name__ == "__main__":
    main()
