"""Towers with prompts among their tokens, written again for the tests of visual and deep prompts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from families import (
    IMAGE_SIZE,
    PREPROCESSING,
    Family,
    own_text_features,
    reference_embeddings,
    tiny_model,
)
from tiny_tokenizers import tiny_tokenizer
from torch import Tensor

from cma_tune.clip.backbone import Backbone

LAYERS = 4


def made_backbone(family: Family, name: str, dtype: torch.dtype = torch.float64) -> Backbone:
    """A tiny backbone of a family that has no name of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(family.tokenizer, Path(folder))
        model = tiny_model(family, tokenizer, Path(folder))
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**PREPROCESSING), is_train=False
    )
    return Backbone(model.to(dtype), tokenizer, transform, name)


@cache
def deep_backbone() -> Backbone:
    """With four blocks in each tower and other widths, in float64."""
    return made_backbone(Family(text={"layers": LAYERS}, vision={"layers": LAYERS, "width": 24}), "deep")


def pixels(count: int, seed: int = 0, size: int = IMAGE_SIZE) -> Tensor:
    """Made-up images ``[count, 3, size, size]``, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def image_by_loop(backbone: Backbone, image: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """The unit feature ``[D]`` of one image ``[3, H, W]``, patch by patch and head by head from the weights.

    For class-token pooling and plain blocks. Prompts ``[P, W]`` of the first blocks, or none.
    """
    visual: Any = backbone.model.visual
    size = visual.conv1.kernel_size[0]
    corners = [(i, j) for i in range(0, IMAGE_SIZE, size) for j in range(0, IMAGE_SIZE, size)]
    patches = [
        (visual.conv1.weight * image[:, i : i + size, j : j + size]).sum(dim=(1, 2, 3)) for i, j in corners
    ]
    rows = torch.stack([visual.class_embedding, *patches]) + visual.positional_embedding
    own = len(rows)
    x = visual.ln_pre(torch.cat([rows, *prompts[:1]]))
    for number, block in enumerate(visual.transformer.resblocks):
        if 0 < number < len(prompts):
            x = torch.cat([x[:own], prompts[number]])
        x = x + attention_by_loop(block.attn, block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    feature: Tensor = visual.ln_post(x[0]) @ visual.proj
    return feature / feature.norm()


def attention_by_loop(attention: Any, x: Tensor) -> Tensor:
    """softmax(q·k/√d)·v of every head, over tokens ``[L, W]``."""
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
    width = x.shape[1] // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        heads.append(torch.softmax(scores, dim=1) @ v[:, part])
    joined = torch.cat(heads, dim=1)
    return joined @ attention.out_proj.weight.T + attention.out_proj.bias


def text_by_hooks(backbone: Backbone, prompt: str, contexts: Sequence[Tensor]) -> Tensor:
    """The unit feature ``[D]`` of a prompt whose first M tokens are ``[M, W]``, others before further blocks.

    open_clip's own forward; the tokens are put in by hooks.
    """
    model: Any = backbone.model
    tokenizer: Any = backbone.tokenizer._tokenizer
    tokens = len(contexts[0])

    def with_context(x: Tensor, context: Tensor) -> Tensor:
        return torch.cat([x[:, :1], context[None], x[:, 1 + tokens :]], dim=1)

    hooks = []
    for number, context in enumerate(contexts[1:], start=1):

        def put_in(module: Any, arguments: Any, context: Tensor = context) -> Any:
            return (with_context(arguments[0], context), *arguments[1:])

        hooks.append(model.transformer.resblocks[number].register_forward_pre_hook(put_in))
    try:
        ids = tokenizer([prompt])
        feature = own_text_features(
            backbone, ids, with_context(reference_embeddings(backbone, ids), contexts[0])
        )
    finally:
        for hook in hooks:
            hook.remove()
    return feature[0] / feature[0].norm()


@contextmanager
def prompted_by_hooks(visual: Any, prompts: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the own forward of an image tower of any kind and library has prompts, put in by hooks."""
    count = len(prompts[0])

    def with_prompt(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x, prompt.expand(len(x), -1, -1)], dim=1)

    def join(module: Any, arguments: Any) -> Any:
        return (with_prompt(arguments[0], prompts[0]),)

    def leave(module: Any, arguments: Any) -> Any:
        # transformers' CLIP norms the class token alone.
        return (arguments[0][:, :-count],) if arguments[0].ndim == 3 else arguments

    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        blocks = trunk.blocks
        hooks = [trunk.norm_pre.register_forward_pre_hook(join), trunk.norm.register_forward_pre_hook(leave)]
    elif hasattr(visual, "encoder"):
        blocks = visual.encoder.layers
        hooks = [visual.embeddings.register_forward_hook(lambda *given: with_prompt(given[2], prompts[0]))]
        hooks.append(visual.post_layernorm.register_forward_pre_hook(leave))
    else:
        blocks = visual.transformer.resblocks
        hooks = [visual.ln_pre.register_forward_pre_hook(join)]
        hooks.append(visual.transformer.register_forward_hook(lambda *given: given[2][:, :-count]))
    for number, prompt in enumerate(prompts[1:], start=1):

        def replace(module: Any, arguments: Any, prompt: Tensor = prompt) -> Any:
            return (with_prompt(arguments[0][:, :-count], prompt), *arguments[1:])

        hooks.append(blocks[number].register_forward_pre_hook(replace))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
