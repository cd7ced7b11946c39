"""A text transformer taken apart: what the towers need of open_clip's and of transformers' modules.

Both libraries build the same pre-norm blocks and name their parts differently. Everything here is a view of
the model's own modules: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cma_tune.clip.attention import SplitAttention

Projections = Literal["qkv", "q", "kv"]
"""Which of queries, keys and values are asked for."""

_ROWS = {"qkv": (0, 3), "q": (0, 1), "kv": (1, 3)}
"""Where they stand in a projection that makes all three, in widths."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[..., N, W]`` → ``[..., H, N, W/H]``."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """``[..., H, N, W/H]`` → ``[..., N, W]``."""
    return x.transpose(-3, -2).flatten(-2)


class TextBlock:
    """A residual block: x + attention(norm(x)), then x + MLP(norm(x)).

    Attributes:
        heads: attention heads H.
        packable: its parts do what `projected` and `after_attention` say, with softmax attention over keys
            scaled by the root of their width in between.
    """

    heads: int
    packable: bool

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The whole block: ``[N, L, W]`` → ``[N, L, W]`` under an additive mask."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def normed(self, x: Tensor) -> Tensor:
        """What attention sees of ``x`` ``[..., W]``."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def projected(self, normed: Tensor, which: Projections) -> Sequence[Tensor]:
        """Queries, keys and values ``[..., W]``, those that are asked for, in this order."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block from its input and attention's result, both ``[..., W]``."""
        raise TypeError(f"{type(self).__name__} is an interface")


class TextParts:
    """What a text tower is made of, and how it masks and pools.

    Attributes:
        embedding: the token embedding.
        blocks: the residual blocks.
        context_length: longest sequence of token ids.
        pool: which token becomes the feature: argmax (of the ids), eos (the first `eos_id`), first or last.
        eos_id, pad_id: token ids.
        causal: a token sees itself and what stands before it.
        appended_cls: a class token stands after the words and becomes the feature, whatever `pool` says.
        pad_masked: padding is not attended to.
        shifted_pad_mask: the first padding token is, and the class token does not see itself.
    """

    embedding: nn.Embedding
    blocks: tuple[TextBlock, ...]
    context_length: int
    pool: str
    eos_id: int
    pad_id: int = 0
    causal: bool
    appended_cls: bool = False
    pad_masked: bool = False
    shifted_pad_mask: bool = False

    @property
    def positions(self) -> Tensor:
        """Position embeddings ``[L, W]``, one more with an appended class token."""
        raise TypeError(f"{type(self).__name__} is an interface")

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks take."""
        raise TypeError(f"{type(self).__name__} is an interface")

    @property
    def class_embedding(self) -> Tensor:
        """The appended class token ``[W]``."""
        raise TypeError(f"{type(self).__name__} has no class token")

    def causal_mask(self, device: torch.device) -> Tensor:
        """Additive ``[L, L]``: −∞ where a token may not look (of a causal tower)."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def final_norm(self, x: Tensor) -> Tensor:
        """The norm after the last block."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def project(self, pooled: Tensor) -> Tensor:
        """The pooled tokens ``[N, W]``, after the final norm, in the space of the images: ``[N, D]``."""
        raise TypeError(f"{type(self).__name__} is an interface")


class OpenClipBlock(TextBlock):
    """A block of open_clip's transformer; other than the plain ones run as a whole only."""

    def __init__(self, block: nn.Module) -> None:
        self.block: Any = block
        attention = getattr(block, "attn", None)
        fused = isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None
        self.packable = (
            (fused or isinstance(attention, SplitAttention))
            and all(hasattr(block, part) for part in ("ln_1", "ls_1", "ln_2", "ls_2", "mlp"))
            and not hasattr(block, "ln_1_kv")
        )
        self.heads = int(getattr(attention, "num_heads", 0))

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `TextBlock.__call__`."""
        return torch.as_tensor(self.block(x, attn_mask=mask))

    def normed(self, x: Tensor) -> Tensor:
        """See `TextBlock.normed`."""
        return torch.as_tensor(self.block.ln_1(x))

    def projected(self, normed: Tensor, which: Projections) -> Sequence[Tensor]:
        """See `TextBlock.projected`."""
        attention = self.block.attn
        if isinstance(attention, SplitAttention):
            return attention.projected(normed, which)
        first, last = _ROWS[which]
        rows = slice(first * normed.shape[-1], last * normed.shape[-1])
        bias = attention.in_proj_bias
        made = linear(normed, attention.in_proj_weight[rows], None if bias is None else bias[rows])
        return made.chunk(last - first, dim=-1)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """See `TextBlock.after_attention`."""
        block = self.block
        x = x + block.ls_1(block.attn.out_proj(attended))
        return torch.as_tensor(x + block.ls_2(block.mlp(block.ln_2(x))))


class OpenClipText(TextParts):
    """open_clip's own transformer: of `CLIP` itself, or ``model.text`` of a `CustomTextCLIP` or `CoCa`.

    Args:
        module: what holds the token embedding, positions, transformer, norm and projection.
    """

    def __init__(self, module: nn.Module) -> None:
        text: Any = module
        self.text = text
        self.embedding = text.token_embedding
        self.blocks = tuple(OpenClipBlock(block) for block in text.transformer.resblocks)
        self.context_length = int(text.context_length)
        self.pool = getattr(text, "text_pool_type", None) or text.pool_type
        self.eos_id = int(text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id)
        self.pad_id = getattr(text, "pad_id", 0)
        self.causal = text.attn_mask is not None
        self.appended_cls = getattr(text, "cls_emb", None) is not None
        self.pad_masked = bool(getattr(text, "use_pad_mask", False)) or self.appended_cls
        self.shifted_pad_mask = self.appended_cls and not text.correct_cls_mask

    @property
    def positions(self) -> Tensor:
        """See `TextParts.positions`."""
        return torch.as_tensor(self.text.positional_embedding)

    @property
    def dtype(self) -> torch.dtype:
        """See `TextParts.dtype`; embeddings and norms of open_clip's half-precision models stay float32."""
        dtype: torch.dtype = self.text.transformer.get_cast_dtype()
        return dtype

    @property
    def class_embedding(self) -> Tensor:
        """See `TextParts.class_embedding`."""
        return torch.as_tensor(self.text.cls_emb)

    def causal_mask(self, device: torch.device) -> Tensor:
        """See `TextParts.causal_mask`."""
        return torch.as_tensor(self.text.attn_mask)

    def final_norm(self, x: Tensor) -> Tensor:
        """See `TextParts.final_norm`."""
        return torch.as_tensor(self.text.ln_final(x))

    def project(self, pooled: Tensor) -> Tensor:
        """See `TextParts.project`."""
        projection = self.text.text_projection
        if projection is None:
            return pooled
        if isinstance(projection, nn.Linear):
            return torch.as_tensor(projection(pooled))
        return torch.as_tensor(pooled @ projection)
