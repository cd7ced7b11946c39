"""The CMA loss in a subclass of transformers' `Trainer`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from drawn_shapes import load_clip, load_shapes, options
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments, set_seed

from cma_tune import CMALoss, cma_objective


class CMATrainer(Trainer):
    """Trains a `CLIPModel` on images with labels, against one prompt for each class.

    Args:
        prompts: token ids of the classes' prompts, ``[C, L]``.
        weight: λ of (1−λ)·CE + λ·CMA.
        rest: what `Trainer` takes.
    """

    def __init__(self, *, prompts: Tensor, weight: float, **rest: Any) -> None:
        super().__init__(**rest)
        self.prompts = prompts
        self.weight = weight
        # Under several processes the groups span them all, once there is a process group.
        self.penalty = CMALoss(reduction="mean", normalize=True, gather_across_processes=True)

    def losses(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
        """Cross-entropy and CMA of one batch, and what the model gave."""
        labels = inputs["labels"]
        output = model(input_ids=self.prompts.to(labels.device), pixel_values=inputs["pixel_values"])
        # image_embeds [B, D], text_embeds [C, D], logits_per_image [B, C]
        cma = self.penalty(output.image_embeds, output.text_embeds, labels)
        return cross_entropy(output.logits_per_image, labels), cma, output

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective of one batch."""
        ce, cma, output = self.losses(model, inputs)
        loss = cma_objective(ce, cma, self.weight)
        return (loss, output) if return_outputs else loss


class Labelled(Dataset[dict[str, Tensor]]):
    """Images ``[N, 3, H, W]`` and labels ``[N]`` under the names a `CLIPModel` and the trainer know."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def tiny_model(image_size: int) -> CLIPModel:
    """A random model of the architecture; take ``CLIPModel.from_pretrained(...)`` instead."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": image_size, "patch_size": 8}
    text = {
        **tower,
        "eos_token_id": 49407,
    }  # where the text's embedding is read; open_clip's tokenizer ends so
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train for some steps; the losses over all images afterwards."""
    given = options(arguments, __doc__)
    _, transform, tokenizer = load_clip(given.model, given.pretrained)
    images, labels, prompts = load_shapes(transform)
    set_seed(0)
    model = tiny_model(images.shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = CMATrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=given.steps,
                per_device_train_batch_size=given.batch_size,
                learning_rate=1e-3,
                logging_steps=5,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Labelled(images, labels),
            prompts=tokenizer(prompts),
            weight=given.weight,
        )
        trainer.train()
    device = trainer.args.device
    model.eval()
    with torch.no_grad():
        everything = {"pixel_values": images.to(device), "labels": labels.to(device)}
        ce, cma, _ = trainer.losses(model, everything)
    print(f"over all images with λ={given.weight:g}: cross-entropy {ce:.4f}, CMA {cma:.4f}")
    return {"cross_entropy": ce.item(), "cma": cma.item()}


if __name__ == "__main__":
    main()
