"""The causal text tower over packed prompts: their common beginning runs once, padding never.

Under a causal mask a token sees only what stands before it. Prompts that begin alike (start token, learned
context) therefore share every hidden state of that beginning, and the classes' own tokens only need its keys
and values: with 16 context tokens and names of a few tokens that is most of the work. In the last block only
the pooled token goes on. All of it is exact; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cma_tune.clip.packing import Bucket, PackedPrompts, PartedPrompts
from cma_tune.clip.text_parts import TextBlock, join_heads, split_heads
from cma_tune.clip.text_tower import NativeTextTower, TextTower


def can_share(tower: TextTower) -> bool:
    """Whether the tower is causal, pools a token that has seen the words, and is made of plain blocks."""
    if not isinstance(tower, NativeTextTower) or not tower.parts.causal:
        return False
    if tower.parts.pool == "first" and not tower.parts.appended_cls:
        return False
    return all(block.packable for block in tower.parts.blocks)


def encode_packed(
    tower: NativeTextTower,
    packed: PackedPrompts,
    contexts: Tensor,
    deep: Sequence[Tensor | None] = (),
    parted: PartedPrompts | None = None,
) -> Tensor:
    """Text features of packed prompts under several contexts.

    Args:
        tower: one that `can_share`.
        packed: the prompts of C classes.
        contexts: ``[G, M, W]``, or per class ``[G, C, M, W]``.
        deep: contexts that replace the hidden states before the second block, the third and so on; None
            leaves them.
        parted: these prompts from the first block on before which `deep` has contexts per class, if
            `contexts` are not.

    Returns:
        ``[G, C, D]`` in the order they were packed in, not normalised.
    """
    parts = tower.parts
    x = packed.embed(contexts)  # [G, N, W]
    for number, block in enumerate(parts.blocks):
        values = deep[number - 1] if 0 < number <= len(deep) else None
        if values is not None:
            if parted is not None and values.dim() == 4:
                x, packed, parted = x.index_select(1, parted.places), parted.packed, None
            x = packed.replace(x, values)
        last = number == len(parts.blocks) - 1
        x = _last_block(block, x, packed) if last else _block(block, x, packed)
    return parts.project(parts.final_norm(x))


def _block(block: TextBlock, x: Tensor, packed: PackedPrompts) -> Tensor:
    """A residual block over all tokens: ``[G, N, W]`` → ``[G, N, W]``."""
    q, k, v = (split_heads(part, block.heads) for part in block.projected(block.normed(x), "qkv"))
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
    return block.after_attention(x, join_heads(torch.cat(attended, dim=2)))


def _last_block(block: TextBlock, x: Tensor, packed: PackedPrompts) -> Tensor:
    """The last block, for the pooled tokens alone: ``[G, N, W]`` → ``[G, C, W]``."""
    normed = block.normed(x)
    pooled = normed.index_select(1, packed.pooled)
    (q,) = (split_heads(part, block.heads) for part in block.projected(pooled, "q"))
    k, v = (split_heads(part, block.heads) for part in block.projected(normed, "kv"))
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
    return block.after_attention(x.index_select(1, packed.pooled), join_heads(torch.cat(attended, dim=2)))


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
