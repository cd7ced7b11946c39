"""Where a model's attention layers are, and attention whose projections are layers of their own.

torch's `nn.MultiheadAttention` keeps the projections of queries, keys and values in one matrix, so none of
them can be wrapped or exchanged by itself, and it does not call its output projection as a layer either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Side = Literal["image", "text"]
"""The two towers of a model."""

_ROOTS: dict[Side, tuple[str, ...]] = {
    "image": ("vision_model", "visual"),
    "text": ("text_model", "text", "transformer"),
}
"""What the towers are called in transformers' models and in open_clip's."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")

Model = TypeVar("Model", bound=nn.Module)


class SplitAttention(nn.Module):
    """Self-attention with ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` as layers, as in transformers.

    The weights are views of those of `attention`: nothing is copied, and the result is the same.

    Args:
        attention: one that `is_plain`.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        bias = attention.in_proj_bias
        biases = [None] * 3 if bias is None else bias.chunk(3)
        weights = attention.in_proj_weight.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_layer, weights, biases)
        self.out_proj = attention.out_proj

    def projected(self, normed: Tensor, which: str) -> Sequence[Tensor]:
        """Queries, keys and values ``[..., W]``, those named by `which`: "qkv", "q" or "kv"."""
        layers = {"q": self.q_proj, "k": self.k_proj, "v": self.v_proj}
        return [layers[part](normed) for part in which]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Called as `nn.MultiheadAttention`: ``[N, L, W]`` → ``[N, L, W]``, without attention weights.

        The mask is additive, ``[L, L]`` or ``[N·H, L, L]``.
        """
        parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype)
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unflatten(0, (len(query), self.num_heads))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def _layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer


def is_plain(attention: object) -> bool:
    """Whether it is torch's attention in the form that `SplitAttention` stands for."""
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and attention.batch_first
        and attention.dropout == 0
    )


def _adaptable(block: nn.Module) -> bool:
    """Whether the projections of a block's attention are layers, or can become some."""
    attention = getattr(block, "self_attn", getattr(block, "attn", None))
    # A block with a norm of its own for keys attends to something else than itself.
    return not hasattr(block, "ln_1_kv") and (
        is_plain(attention) or all(hasattr(attention, part) for part in _PROJECTIONS)
    )


def tower_of(model: nn.Module, side: Side) -> tuple[str, nn.Module] | None:
    """A tower's path in the model, and the tower."""
    for root in _ROOTS[side]:
        tower = getattr(model, root, None)
        if isinstance(tower, nn.Module):
            return root, tower
    return None


def attention_blocks(model: nn.Module, side: Side) -> tuple[str, list[nn.Module]] | None:
    """The residual blocks of a tower whose attention can be adapted, and the path of the list they stand in.

    They are open_clip's own blocks and those of transformers' CLIP and SigLIP; None for other towers.
    """
    found = tower_of(model, side)
    if found is None:
        return None
    for path, module in found[1].named_modules(prefix=found[0]):
        if (
            isinstance(module, (nn.ModuleList, nn.Sequential))
            and len(module)
            and all(map(_adaptable, module))
        ):
            return path, list(module)
    return None


def split_attention(model: Model) -> Model:
    """Replace the attention of both towers' blocks by `SplitAttention`, where it is torch's own, in place.

    An open_clip model has to go through this before `peft.PeftModel.from_pretrained` loads a saved LoRA into
    it; a transformers model may, and stays what it is.

    Returns:
        The model.
    """
    for side in _ROOTS:
        for block in (attention_blocks(model, side) or ("", []))[1]:
            attention = getattr(block, "attn", None)
            if isinstance(attention, nn.MultiheadAttention):
                block.attn = SplitAttention(attention)
    return model
