"""The CMA loss beside open_clip's own contrastive loss, on image-text pairs whose captions come from classes.

Both towers are trained. Captions of one class differ from pair to pair, so the text is "conditioned on the
image": the group of a class holds its images and the caption of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from drawn_shapes import endless_batches, load_clip, load_shapes, options
from open_clip.loss import ClipLoss

from cma_tune import CMALoss, cma_objective

STYLES = ("{}", "a drawing: {}", "{} It is small.", "look, {}")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train for some steps; the losses over all pairs afterwards."""
    given = options(arguments, __doc__)
    model, transform, tokenizer = load_clip(given.model, given.pretrained)
    images, labels, prompts = load_shapes(transform)
    captions = [STYLES[i % len(STYLES)].format(prompts[label]) for i, label in enumerate(labels.tolist())]
    texts = tokenizer(captions)  # [N, L], one caption for each image
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    contrastive, penalty = ClipLoss(), CMALoss(reduction="mean", normalize=True)

    def losses(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image_features, text_features, scale = model(images[batch], texts[batch])  # [B, D] both
        # [B, C, D] without a copy: an image has one caption, whichever class is asked for.
        own = text_features[:, None].expand(-1, len(prompts), -1)
        return contrastive(image_features, text_features, scale), penalty(image_features, own, labels[batch])

    model.train()
    for step, batch in enumerate(islice(endless_batches(len(labels), given.batch_size), given.steps)):
        pairs, cma = losses(batch)
        loss = cma_objective(pairs, cma, given.weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss:.4f}, contrastive {pairs:.4f}, CMA {cma:.4f}")

    model.eval()
    with torch.no_grad():
        pairs, cma = losses(torch.arange(len(labels)))
    print(f"over all pairs with λ={given.weight:g}: contrastive {pairs:.4f}, CMA {cma:.4f}")
    return {"contrastive": pairs.item(), "cma": cma.item()}


if __name__ == "__main__":
    main()
