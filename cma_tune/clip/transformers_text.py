"""The text transformer of transformers' image-text models built like `CLIPModel` or `SiglipModel`.

What the modules don't say, whether the tower is causal and which token it pools, is found by asking the model
itself: two texts that differ in their last token, and a row of tokens in which every rule pools another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cma_tune.clip.text_parts import Projections, TextBlock, TextParts, join_heads, split_heads
from cma_tune.errors import UserError

_LAYER = ("self_attn", "layer_norm1", "layer_norm2", "mlp")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "num_heads")
_TEXT = ("embeddings", "encoder", "final_layer_norm")


def is_transformers_model(model: nn.Module) -> bool:
    """Whether `model` is an image-text model of transformers' kind."""
    return all(hasattr(model, part) for part in ("get_text_features", "get_image_features", "text_model"))


def features_of(output: Any) -> Tensor:
    """The features ``[N, D]`` in what ``get_text_features`` and ``get_image_features`` give.

    transformers 5 gives an output object, transformers 4 the features themselves.
    """
    return torch.as_tensor(getattr(output, "pooler_output", output))


class TransformersBlock(TextBlock):
    """An encoder layer of `CLIPModel` or `SiglipModel`: three projections, softmax attention, an MLP."""

    packable = True

    def __init__(self, layer: nn.Module) -> None:
        own: Any = layer
        self.layer = own
        self.heads = int(own.self_attn.num_heads)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `TextBlock.__call__`."""
        q, k, v = (split_heads(part, self.heads) for part in self.projected(self.normed(x), "qkv"))
        return self.after_attention(x, join_heads(scaled_dot_product_attention(q, k, v, attn_mask=mask)))

    def normed(self, x: Tensor) -> Tensor:
        """See `TextBlock.normed`."""
        return torch.as_tensor(self.layer.layer_norm1(x))

    def projected(self, normed: Tensor, which: Projections) -> Sequence[Tensor]:
        """See `TextBlock.projected`."""
        attention = self.layer.self_attn
        every = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
        return [every[part](normed) for part in which]

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """See `TextBlock.after_attention`."""
        layer = self.layer
        x = x + layer.self_attn.out_proj(attended)
        return torch.as_tensor(x + layer.mlp(layer.layer_norm2(x)))


class TransformersText(TextParts):
    """The text side of a transformers model, in eval mode.

    Args:
        model: the whole model.
        name: the backbone's name, for errors.

    Raises:
        UserError: the text side is built in another way, or pools what no known rule pools.
    """

    def __init__(self, model: nn.Module, name: str = "the backbone") -> None:
        whole: Any = model
        text: Any = whole.text_model
        self.model, self.text = whole, text
        _check_built_alike(text, name)
        self.embedding = text.embeddings.token_embedding
        self.blocks = tuple(TransformersBlock(layer) for layer in text.encoder.layers)
        self.context_length = int(text.embeddings.position_embedding.num_embeddings)
        eos = getattr(text, "eos_token_id", None)
        self.eos_id = -1 if eos is None else int(eos)
        self.causal = self._last_token_changes_no_other()
        self.pool = self._found_pool(name)

    @property
    def positions(self) -> Tensor:
        """See `TextParts.positions`."""
        return torch.as_tensor(self.text.embeddings.position_embedding.weight)

    @property
    def dtype(self) -> torch.dtype:
        """See `TextParts.dtype`; transformers' half precision is that of all weights."""
        return self.embedding.weight.dtype

    def causal_mask(self, device: torch.device) -> Tensor:
        """See `TextParts.causal_mask`."""
        shape = (self.context_length, self.context_length)
        return torch.full(shape, float("-inf"), device=device).triu(1)

    def final_norm(self, x: Tensor) -> Tensor:
        """See `TextParts.final_norm`."""
        return torch.as_tensor(self.text.final_layer_norm(x))

    def project(self, pooled: Tensor) -> Tensor:
        """See `TextParts.project`: CLIP's projection stands beside the text tower, SigLIP's is its head."""
        projection = getattr(self.model, "text_projection", None) or self.text.head
        return torch.as_tensor(projection(pooled))

    @torch.no_grad()
    def _hidden(self, ids: Tensor) -> Tensor:
        """The model's own hidden states ``[N, L, W]`` after the final norm."""
        return torch.as_tensor(self.text(input_ids=ids).last_hidden_state)

    def _last_token_changes_no_other(self) -> bool:
        table = self.embedding.weight.detach().float()
        other = int((table - table[0]).norm(dim=1).argmax())
        ids = torch.zeros(2, min(4, self.context_length), dtype=torch.long, device=table.device)
        ids[1, -1] = other
        first, second = self._hidden(ids)
        change = (first - second).float().abs().amax(dim=-1)
        return float(change[:-1].max()) <= 1e-6 * float(change[-1])

    @torch.no_grad()
    def _found_pool(self, name: str) -> str:
        top = self.embedding.num_embeddings - 1
        filler = next(token for token in (0, 1, 2) if token not in (self.eos_id, top))
        row = [filler, filler, self.eos_id if self.eos_id >= 0 else filler, filler, top, filler]
        rules = {"argmax": 4, "last": 5, "first": 0}
        if self.eos_id >= 0:  # before argmax: where the end has the highest id, both are the same
            rules = {"eos": 2, **rules}
        ids = torch.tensor([row], device=self.embedding.weight.device)
        hidden = self._hidden(ids)[0]
        wanted = features_of(self.model.get_text_features(input_ids=ids))[0].float()
        for rule, place in rules.items():
            if torch.allclose(self.project(hidden[place][None])[0].float(), wanted, rtol=1e-3, atol=1e-5):
                return rule
        raise UserError(
            f"Expected a text tower that pools its end, its highest, first or last token in '{name}', got "
            f"{type(self.text).__name__}, which does not; choose another backbone."
        )


def _check_built_alike(text: Any, name: str) -> None:
    missing = [part for part in _TEXT if not hasattr(text, part)]
    if not missing:
        layers = list(getattr(text.encoder, "layers", ()))
        missing = [part for part in _LAYER if not layers or not hasattr(layers[0], part)]
        missing = missing or [part for part in _ATTENTION if not hasattr(layers[0].self_attn, part)]
    if not missing:
        tables = ("token_embedding", "position_embedding")
        missing = [part for part in tables if not hasattr(text.embeddings, part)]
    if missing:
        raise UserError(
            f"Expected a text tower built like CLIP's or SigLIP's in '{name}', got {type(text).__name__} "
            f"without {', '.join(missing)}; choose another backbone."
        )
