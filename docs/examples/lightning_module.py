"""The CMA loss in a Lightning module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from drawn_shapes import load_clip, load_shapes, options
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cma_tune import CMALoss, cma_objective


class CMAModule(lightning.LightningModule):
    """Fine-tunes an open_clip model on images with labels, against one prompt for each class.

    Args:
        clip: the model.
        prompts: tokens of the classes' prompts, ``[C, L]``.
        weight: λ of (1−λ)·CE + λ·CMA.
    """

    prompts: Tensor

    def __init__(self, clip: Any, prompts: Tensor, weight: float) -> None:
        super().__init__()
        self.clip = clip
        self.weight = weight
        self.register_buffer("prompts", prompts, persistent=False)
        # Lightning starts the processes: with several, the groups span them all.
        self.penalty = CMALoss(reduction="mean", normalize=True, gather_across_processes=True)

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and CMA of one batch."""
        image_features, text_features, scale = self.clip(images, self.prompts)  # [B, D], [C, D]
        ce = cross_entropy(scale * image_features @ text_features.T, labels)
        return ce, self.penalty(image_features, text_features, labels)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The objective of one batch."""
        ce, cma = self.losses(*batch)
        self.log_dict({"cross_entropy": ce, "cma": cma}, prog_bar=True)
        return cma_objective(ce, cma, self.weight)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over both towers."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train for some steps; the losses over all images afterwards."""
    given = options(arguments, __doc__)
    clip, transform, tokenizer = load_clip(given.model, given.pretrained)
    images, labels, prompts = load_shapes(transform)
    module = CMAModule(clip, tokenizer(prompts), given.weight)
    lightning.seed_everything(0, verbose=False)
    loader = DataLoader(TensorDataset(images, labels), given.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        max_steps=given.steps, logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    trainer.fit(module, loader)
    module.eval()
    with torch.no_grad():
        ce, cma = module.losses(images.to(module.device), labels.to(module.device))
    print(f"over all images with λ={given.weight:g}: cross-entropy {ce:.4f}, CMA {cma:.4f}")
    return {"cross_entropy": ce.item(), "cma": cma.item()}


if __name__ == "__main__":
    main()
