"""The causal text tower over packed prompts: their common beginning runs once, padding never.

Under a causal mask a token sees only what stands before it. Prompts that begin alike (start token, learned
context) therefore share every hidden state of that beginning, and the classes' own tokens only need its keys
and values: with 16 context tokens and names of a few tokens that is most of the work. In the last block only
the pooled token goes on. All of it is exact; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from cma_tune.clip.attention import SplitAttention
from cma_tune.clip.packing import Bucket, PackedPrompts
from cma_tune.clip.text_tower import NativeTextTower, TextTower


def can_share(tower: TextTower) -> bool:
    """Whether the tower is causal, pools a token that has seen the words, and is made of plain blocks."""
    if not isinstance(tower, NativeTextTower) or not tower.causal:
        return False
    if tower.pool == "first" and not tower.appended_cls:
        return False
    return all(
        _known_attention(getattr(block, "attn", None))
        and all(hasattr(block, part) for part in ("ln_1", "ls_1", "ln_2", "ls_2", "mlp"))
        and not hasattr(block, "ln_1_kv")
        for block in tower.text.transformer.resblocks
    )


def _known_attention(attention: Any) -> bool:
    return isinstance(attention, SplitAttention) or (
        isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None
    )


def encode_packed(
    tower: NativeTextTower,
    packed: PackedPrompts,
    contexts: Tensor,
    per_class: bool = False,
    deep: Sequence[Tensor | None] = (),
) -> Tensor:
    """Text features of packed prompts under several contexts.

    Args:
        tower: one that `can_share`.
        packed: the prompts of C classes.
        contexts: ``[G, M, W]``, or per class ``[G, C, M, W]``.
        per_class: which of the two.
        deep: contexts of the same shape that replace the hidden states before the second block, the third
            and so on; None leaves them.

    Returns:
        ``[G, C, D]`` in the order they were packed in, not normalised.
    """
    text: Any = tower.text
    blocks = list(text.transformer.resblocks)
    x = packed.embed(contexts, per_class)  # [G, N, W]
    for number, block in enumerate(blocks):
        values = deep[number - 1] if 0 < number <= len(deep) else None
        if values is not None:
            x = packed.replace(x, values, per_class)
        x = _last_block(block, x, packed) if block is blocks[-1] else _block(block, x, packed)
    return tower.project(text.ln_final(x))


def _block(block: Any, x: Tensor, packed: PackedPrompts) -> Tensor:
    """A residual block over all tokens: ``[G, N, W]`` → ``[G, N, W]``."""
    q, k, v = _heads(block, block.ln_1(x), "qkv")
    (begun_q, *own_q), (begun_k, *own_k), (begun_v, *own_v) = (_parted(t, packed) for t in (q, k, v))
    attended = (
        [scaled_dot_product_attention(begun_q, begun_k, begun_v, is_causal=True)] if packed.shared else []
    )
    for bucket, queries, keys, values in zip(packed.buckets, own_q, own_k, own_v, strict=True):
        seen = scaled_dot_product_attention(
            _blocks(queries, bucket).flatten(0, 1),
            _with_shared(begun_k, keys, bucket),
            _with_shared(begun_v, values, bucket),
            attn_mask=bucket.visible,
        )
        attended.append(_as_tokens(seen, len(x)))
    return _after_attention(block, x, torch.cat(attended, dim=2))


def _last_block(block: Any, x: Tensor, packed: PackedPrompts) -> Tensor:
    """The last block, for the pooled tokens alone: ``[G, N, W]`` → ``[G, C, W]``."""
    normed = block.ln_1(x)
    (q,) = _heads(block, normed.index_select(1, packed.pooled), "q")
    k, v = _heads(block, normed, "kv")
    (begun_k, *own_k), (begun_v, *own_v) = (_parted(t, packed) for t in (k, v))
    own_q = q.split([bucket.classes * bucket.blocks for bucket in packed.buckets], dim=2)
    attended = []
    for bucket, queries, keys, values in zip(packed.buckets, own_q, own_k, own_v, strict=True):
        seen = scaled_dot_product_attention(
            _blocks(queries, bucket).flatten(0, 1),
            _with_shared(begun_k, keys, bucket),
            _with_shared(begun_v, values, bucket),
            attn_mask=bucket.visible[bucket.tokens - 1 :: bucket.tokens],
        )
        attended.append(_as_tokens(seen, len(x)))
    return _after_attention(block, x.index_select(1, packed.pooled), torch.cat(attended, dim=2))


_ROWS = {"qkv": (0, 3), "q": (0, 1), "kv": (1, 3)}
"""Where queries, keys and values stand in a projection that makes all three, in widths."""


def _heads(block: Any, normed: Tensor, which: str) -> list[Tensor]:
    """Queries, keys and values of ``[G, N, W]``, those that are asked for, as ``[G, H, N, W/H]``."""
    attention = block.attn
    if isinstance(attention, SplitAttention):
        parts = attention.projected(normed, which)
    else:
        first, last = _ROWS[which]
        rows = slice(first * normed.shape[-1], last * normed.shape[-1])
        bias = attention.in_proj_bias
        made = linear(normed, attention.in_proj_weight[rows], None if bias is None else bias[rows])
        parts = made.chunk(last - first, dim=-1)
    return [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts]


def _parted(x: Tensor, packed: PackedPrompts) -> tuple[Tensor, ...]:
    """The shared tokens of ``[G, H, N, W/H]``, then those of every bucket."""
    return x.split([packed.shared, *(bucket.length for bucket in packed.buckets)], dim=2)


def _blocks(own: Tensor, bucket: Bucket) -> Tensor:
    """``[G, H, R·L, W/H]`` → ``[G, R, H, L, W/H]``."""
    return own.unflatten(2, (bucket.blocks, -1)).transpose(1, 2)


def _with_shared(begun: Tensor, own: Tensor, bucket: Bucket) -> Tensor:
    """What the classes of a block attend to, shared tokens before their own: ``[G·R, H, P+K·n, W/H]``."""
    shared = begun[:, None].expand(-1, bucket.blocks, -1, -1, -1)
    return torch.cat([shared, _blocks(own, bucket)], dim=3).flatten(0, 1)


def _as_tokens(x: Tensor, groups: int) -> Tensor:
    """``[G·R, H, L, W/H]`` → ``[G, H, R·L, W/H]``."""
    return x.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)


def _after_attention(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a residual block: ``x`` ``[G, N, W]``, attention's result ``[G, H, N, W/H]``."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return torch.as_tensor(x + block.ls_2(block.mlp(block.ln_2(x))))
