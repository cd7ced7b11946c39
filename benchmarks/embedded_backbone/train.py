"""Train the small CLIP that travels inside the package; see README.md beside this file.

The objective is open_clip's contrastive loss, with one change that so few different captions ask for: a
caption is a positive of *every* picture of the batch that it is true of, and the target is spread evenly
over the positives. With no such coincidences it equals ``open_clip.ClipLoss``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from pretraining_captions import caption_of, picture_bits
from pretraining_images import Picture, pretraining_picture
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cma_tune.data.builtin import SMALL_CLIP_DIR

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
PREPROCESS_CONFIG = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
SAVE_EVERY = 250
WARMUP_STEPS = 150
MAX_LOGIT_SCALE = math.log(100)


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, true: Tensor
) -> Tensor:
    """Contrastive loss in both directions, the target spread evenly over all true pairs.

    Args:
        image_features: unit rows [B, D].
        text_features: unit rows [B, D].
        logit_scale: factor on the cosines, a scalar.
        true: bool [B, B], whether caption j is true of picture i; the diagonal is.

    Returns:
        The mean of both directions' cross-entropies, in nats.
    """
    logits = logit_scale * image_features @ text_features.T
    target = true.to(logits.dtype)
    by_image = F.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(logits.T, (target / target.sum(dim=0, keepdim=True)).T)
    return (by_image + by_text) / 2


def encode_captions(model: open_clip.CLIP, tokens: Tensor, chunks: int = 4) -> Tensor:
    """Give unit text features [B, D], leaving out the padding: in a causal tower it changes nothing.

    Captions are encoded by length in ``chunks`` lots, so that short ones do not wait for the longest.
    """
    ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
    by_length = ends.argsort()
    pooled = []
    for rows in by_length.chunk(chunks):
        length = int(ends[rows].max()) + 1
        x = model.token_embedding(tokens[rows, :length]) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        pooled.append(x[torch.arange(len(x)), ends[rows]] @ model.text_projection)
    return F.normalize(torch.cat(pooled)[by_length.argsort()], dim=-1)


def learning_rate(step: int, steps: int) -> float:
    """Give the rate of a step: a linear rise over the warm-up, then a cosine down to nought."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return PEAK_LEARNING_RATE * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS))) / 2


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices only, as CLIP does; embeddings of tokens and places are left alone too."""
    spared = ("embedding", "logit_scale")
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim >= 2 and not any(word in name for word in spared)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": WEIGHT_DECAY},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )


def draw_pictures(count: int, seed: int, workers: int) -> list[Picture]:
    """Draw the first ``count`` pictures of the stream."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return pool.map(partial(pretraining_picture, seed=seed), range(count), chunksize=200)


def train(pictures: list[Picture], steps: int, seed: int, folder: Path) -> None:
    """Train a new model on the pictures; write it to the folder every ``SAVE_EVERY`` steps and at the end."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**MODEL_CONFIG, init_logit_scale=math.log(1 / 0.07))
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).permute(0, 3, 1, 2)
    facts = torch.tensor([picture_bits(picture) for picture in pictures])
    optimizer = make_optimizer(model)
    rng = random.Random(seed)
    seen = torch.zeros(MODEL_CONFIG["text_cfg"]["vocab_size"], dtype=torch.bool)
    order: list[int] = []
    start = time.perf_counter()
    running = 0.0
    for step in range(steps):
        if len(order) < BATCH_SIZE:
            order = rng.sample(range(len(pictures)), len(pictures))
        chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        captions = [caption_of(pictures[i], rng) for i in chosen]
        tokens = tokenizer([caption.text for caption in captions])
        seen[tokens] = True
        says = torch.tensor([caption.says for caption in captions])
        true = (says[None, :] & ~facts[chosen][:, None]) == 0
        images = pixels[chosen].float() / 127.5 - 1  # mean and deviation 0.5, as PREPROCESS_CONFIG has it

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        # On CPUs the fused attention's backward takes half of a bfloat16 step; plain products are faster.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image_features = model.encode_image(images, normalize=True)
            text_features = encode_captions(model, tokens)
        loss = contrastive_loss(image_features.float(), text_features.float(), model.logit_scale.exp(), true)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        running += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}/{steps}  loss {running / 50:.3f}  {seconds:.0f} s", flush=True)
            running = 0.0
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save(model, seen, folder)


def save(model: open_clip.CLIP, seen: Tensor, folder: Path) -> None:
    """Write weights (float16) and config; the rows of tokens never ``seen`` (bool [vocabulary]) become zero.

    Id 0 is the padding, which stands behind the end of a caption where no causal position reads it: zero too.
    """
    weights = {
        name: value.detach().to(torch.float16).contiguous() for name, value in model.state_dict().items()
    }
    weights["token_embedding.weight"][~seen] = 0
    weights["token_embedding.weight"][0] = 0
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    partial_config, partial_weights = folder / "config.partial", folder / "weights.partial"
    partial_config.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial_config, folder / "open_clip_config.json")
    save_file(weights, partial_weights, metadata={"format": "pt"})
    partial_weights.chmod(0o644)  # safetensors leaves it readable by its owner alone
    os.replace(partial_weights, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small CLIP that travels inside the package.")
    parser.add_argument(
        "--out", type=Path, default=SMALL_CLIP_DIR, help="folder to write (default: the package's)"
    )
    parser.add_argument(
        "--steps", type=int, default=1500, help=f"batches of {BATCH_SIZE} (default: %(default)s)"
    )
    parser.add_argument(
        "--pictures", type=int, default=36_000, help="pictures to draw (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of pictures, captions and weights (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    pictures = draw_pictures(args.pictures, args.seed, args.threads)
    print(f"{len(pictures)} pictures drawn in {time.perf_counter() - start:.0f} s", flush=True)
    train(pictures, args.steps, args.seed, args.out)
    print(f"{args.out} written after {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
