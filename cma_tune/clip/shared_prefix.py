"""The causal text tower with the common beginning of the prompts run once.

Under a causal mask a token sees only what stands before it. Prompts that begin alike (start token, learned
context) therefore share every hidden state of that beginning, and the classes' own tokens only need its keys
and values: with 16 context tokens and names of a few tokens that is most of the work. In the last block only
the pooled token goes on. Both are exact; nothing is approximated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from cma_tune.clip.text_tower import NativeTextTower, TextTower


def can_share(tower: TextTower) -> bool:
    """Whether the tower is causal, masks no padding, and is made of open_clip's plain residual blocks."""
    if not isinstance(tower, NativeTextTower) or not tower.causal:
        return False
    if tower.pad_masked or tower.pool == "first":
        return False
    return all(
        isinstance(getattr(block, "attn", None), nn.MultiheadAttention)
        and block.attn.in_proj_weight is not None
        and all(hasattr(block, part) for part in ("ln_1", "ls_1", "ln_2", "ls_2", "mlp"))
        and not hasattr(block, "ln_1_kv")
        for block in _blocks(tower)
    )


def _blocks(tower: NativeTextTower) -> list[Any]:
    return list(tower.text.transformer.resblocks)


def encode_shared(tower: NativeTextTower, embeddings: Tensor, ids: Tensor, shared: int) -> Tensor:
    """Text features of prompts that agree in their first tokens, in groups.

    Args:
        tower: one that `can_share`.
        embeddings: ``[G, C, L', W]``; within a group the first `shared` tokens of all prompts are equal
            (those of the first prompt are used).
        ids: ``[C, L]``, the same for all groups.
        shared: number P of common tokens, at least 1 and below the position of every pooled token.

    Returns:
        Features ``[G, C, D]``, not normalised.
    """
    text: Any = tower.text
    groups, classes, length, width = embeddings.shape
    dtype = text.transformer.get_cast_dtype()
    positions = text.positional_embedding.to(dtype)
    prefix = embeddings[:, 0, :shared].to(dtype) + positions[:shared]  # [G, P, W]
    suffix = embeddings[:, :, shared:].to(dtype) + positions[shared:length]  # [G, C, S, W]
    suffix = suffix.reshape(groups * classes, length - shared, width)
    pooled = (tower.pooled_index(ids) - shared).repeat(groups)  # [G·C], counted in the suffix
    blocks = _blocks(tower)
    own = length - shared
    device = embeddings.device
    # A suffix token sees the whole prefix and the suffix up to itself.
    visible = torch.ones(own, length, dtype=torch.bool, device=device).tril(diagonal=shared)
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        prefix_q, prefix_k, prefix_v = _queries_keys_values(block, prefix)
        suffix_q, suffix_k, suffix_v = _queries_keys_values(block, suffix)
        keys = torch.cat([_per_class(prefix_k, classes), suffix_k], dim=2)  # [G·C, H, L', W/H]
        values = torch.cat([_per_class(prefix_v, classes), suffix_v], dim=2)
        mask = visible
        if last:
            rows = torch.arange(len(suffix), device=device)
            suffix, suffix_q = suffix[rows, pooled][:, None], suffix_q[rows, :, pooled][:, :, None]
            mask = visible[pooled][:, None, None]  # [G·C, 1, 1, L']
        else:
            attended = scaled_dot_product_attention(prefix_q, prefix_k, prefix_v, is_causal=True)
            prefix = _after_attention(block, prefix, attended)
        attended = scaled_dot_product_attention(suffix_q, keys, values, attn_mask=mask)
        suffix = _after_attention(block, suffix, attended)
    return tower.project(text.ln_final(suffix[:, 0])).reshape(groups, classes, -1)


def _queries_keys_values(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[N, L, W]`` → three of ``[N, H, L, W/H]``."""
    attention = block.attn
    projected = linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.reshape(*projected.shape[:2], 3, attention.num_heads, -1)  # [N, L, 3, H, W/H]
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    return q, k, v


def _per_class(x: Tensor, classes: int) -> Tensor:
    """Keys or values ``[G, H, P, W/H]`` of a prefix, once for every class: ``[G·C, H, P, W/H]``."""
    return x[:, None].expand(-1, classes, -1, -1, -1).flatten(0, 1)


def _after_attention(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a residual block: ``x`` ``[N, L, W]``, attention's result ``[N, H, L, W/H]``."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return torch.as_tensor(x + block.ls_2(block.mlp(block.ln_2(x))))
