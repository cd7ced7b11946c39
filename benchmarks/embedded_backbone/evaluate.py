"""Measure the embedded CLIP on the embedded data: zero-shot, and a linear probe on its image features.

While anything about the model is being chosen, look at the parts ``train`` and ``val`` alone, which is the
default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from PIL.Image import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from cma_tune.data.builtin import BUILTIN_NAMES, SMALL_CLIP_DIR, BuiltinData, load_builtin


def part_features(
    model: open_clip.CLIP, preprocess: Callable[[Image], Tensor], data: BuiltinData, part: str
) -> tuple[Tensor, Tensor]:
    """Return unit image features [N, D] and labels [N] of one part."""
    images = torch.stack([preprocess(data.load(key)) for key, _ in data.parts[part]])
    labels = torch.tensor([label for _, label in data.parts[part]])
    with torch.inference_mode():
        features = torch.cat(
            [model.encode_image(batch, normalize=True) for batch in torch.split(images, 256)]
        )
    return features, labels


def class_features(model: open_clip.CLIP, data: BuiltinData, template: str) -> Tensor:
    """Return unit text features [C, D]."""
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    with torch.inference_mode():
        prompts = tokenizer([template.format(name) for name in data.class_names])
        features: Tensor = model.encode_text(prompts, normalize=True)
    return features


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows of [N, C] whose largest logit is the label's, in percent."""
    return 100 * (logits.argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded CLIP on the embedded data.")
    parser.add_argument("--model", type=Path, default=SMALL_CLIP_DIR, help="folder of the model")
    parser.add_argument("--test", action="store_true", help="report the test parts too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{args.model}")
    model.eval()
    for name in BUILTIN_NAMES:
        data = load_builtin(name)
        parts = {
            part: part_features(model, preprocess, data, part)
            for part in ("train", "val", "test")[: 2 + args.test]
        }
        text = class_features(model, data, data.templates[0])
        half = len(data.class_names) // 2
        for part, (features, labels) in parts.items():
            logits = features @ text.T
            base, novel = labels < half, labels >= half
            print(
                f"{name:7s} {part:5s} zero-shot {accuracy(logits, labels):.1f} %   among base classes "
                f"{accuracy(logits[base, :half], labels[base]):.1f} %, among novel classes "
                f"{accuracy(logits[novel, half:], labels[novel] - half):.1f} %"
            )
        probe = LogisticRegression(C=100.0, max_iter=2000).fit(*(t.numpy() for t in parts["train"]))
        for part in list(parts)[1:]:
            features, labels = parts[part]
            score = 100 * probe.score(features.numpy(), labels.numpy())
            print(f"{name:7s} {part:5s} linear probe {score:.1f} %")


if __name__ == "__main__":
    main()
