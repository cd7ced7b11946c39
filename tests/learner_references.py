"""What the learners must give, by loops over open_clip's own whole forward."""

from __future__ import annotations

import math
from typing import Any

import torch
from families import FEATURES, own_text_features, reference_embeddings
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone


def image_features(count: int = 4, seed: int = 0) -> Tensor:
    """Made-up image features ``[B, D]`` of unit length."""
    features = torch.randn(
        count, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return nn.functional.normalize(features, dim=-1)


def logits_by_loop(backbone: Backbone, images: Tensor, text: Tensor) -> Tensor:
    """exp(logit_scale) · cosine, one image and class at a time; text ``[C, D]`` or ``[B, C, D]``."""
    model: Any = backbone.model
    scale = model.logit_scale.exp()
    rows = [list(text)] * len(images) if text.dim() == 2 else [list(row) for row in text]
    values = [
        [scale * (image / image.norm()).dot(t / t.norm()) for t in row]
        for image, row in zip(images, rows, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in values]).detach()


def text_by_coop(backbone: Backbone, names: tuple[str, ...], context: Tensor, position: str) -> Tensor:
    """CoOp's construction, "X … X name." tokenised as a whole and taken apart, by the whole forward.

    For models that read with CLIP's tokenizer. Context ``[M, W]`` or ``[C, M, W]`` → unit ``[C, D]``.
    """
    tokenizer: Any = backbone.tokenizer._tokenizer
    tokens = context.shape[-2]
    features = []
    for c, class_name in enumerate(names):
        name = class_name.replace("_", " ")
        length = len(tokenizer.encode(name))
        ids = tokenizer([" ".join(["X"] * tokens) + f" {name}."])
        rows = list(reference_embeddings(backbone, ids)[0])
        start, rest = rows[:1], rows[1 + tokens :]
        own = list(context[c] if context.dim() == 3 else context)
        if position == "end":
            rows = start + own + rest
        elif position == "middle":
            half = tokens // 2
            rows = start + own[:half] + rest[:length] + own[half:] + rest[length:]
        else:
            rows = start + rest[:length] + own + rest[length:]
        # The ids of "X … X name." have the end where the placed prompt has it, whatever the order before.
        features.append(own_text_features(backbone, ids, torch.stack(rows)[None])[0])
    return nn.functional.normalize(torch.stack(features), dim=-1)


def entropy(rows: Tensor) -> Tensor:
    """−Σ(λ/n)ln(λ/n) of the rows' Gram matrix, by the definition."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(unit @ unit.T) / len(rows)
    kept = shares[shares > 1e-14]
    return -(kept * kept.log()).sum()


def penalty(image: Tensor, text: Tensor, labels: Tensor, release: bool) -> Tensor:
    """L_CMA class by class; text is ``[C, D]``, or ``[B, C, D]`` conditioned on the image."""
    values = []
    for label in sorted(set(labels.tolist())):
        own = [i for i, other in enumerate(labels.tolist()) if other == label]
        texts = text[label][None] if text.dim() == 2 else text[own, label]
        rows = torch.cat([image[own], texts])
        values.append(entropy(rows) / math.log(len(rows)) if release else entropy(rows))
    return torch.stack(values).mean() if release else torch.stack(values).sum()
