"""Text features from token *embeddings*, for every text tower of open_clip and transformers' CLIP and SigLIP.

A prompt learner needs the text tower from its embeddings on; the models' own functions start from token
ids. The towers here are views of the model's own modules: nothing is copied, and at full length the features
equal ``encode_text`` and ``get_text_features`` exactly. Where the mask is causal, tokens after the pooled one
can't change it, so they are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.text_parts import OpenClipText, TextParts
from cma_tune.clip.transformers_text import TransformersText, is_transformers_model
from cma_tune.errors import UserError

Edit = Callable[[Tensor], Tensor]
"""A change of hidden states ``[N, L', W]`` between two blocks."""


class TextTower(nn.Module):
    """Maps token embeddings to text features.

    Attributes:
        width: width of the token embeddings.
        vocabulary_size: number of token embeddings.
        context_length: longest sequence of token ids.
        layers: number of blocks.
    """

    layers: int
    width: int
    vocabulary_size: int
    context_length: int

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Token ids ``[N, L]`` → embeddings ``[N, L, W]``, without positions."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def vocabulary(self) -> Tensor:
        """The embeddings ``[V, W]`` of all tokens."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def needed_length(self, ids: Tensor) -> int:
        """How many leading tokens of ``ids`` ``[N, L]`` decide the features; the rest may be cut off."""
        raise TypeError(f"{type(self).__name__} is an interface")

    def forward(self, embeddings: Tensor, ids: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """Text features ``[N, D]``, as the model makes them (not normalised).

        Args:
            embeddings: ``[N, L', W]`` with L' ≥ `needed_length`.
            ids: ``[N, L]`` in full. They say where padding and the pooled token are; the embeddings may
                differ from theirs.
            edits: applied before the second block, the third and so on; a `NativeTextTower` alone takes
                them.
        """
        raise TypeError(f"{type(self).__name__} is an interface")

    def encode_ids(self, ids: Tensor) -> Tensor:
        """The model's own text features ``[N, D]`` of token ids, through `forward`."""
        return torch.as_tensor(self(self.token_embeddings(ids)[:, : self.needed_length(ids)], ids))


class NativeTextTower(TextTower):
    """A text transformer whose blocks are at hand: open_clip's own, or that of transformers' CLIP and SigLIP.

    Args:
        parts: what it is made of.
        name: the backbone's name, for errors.

    Raises:
        UserError: the tower pools in a way that is not known here.
    """

    def __init__(self, parts: TextParts, name: str = "the backbone") -> None:
        super().__init__()
        # The tower is a view: its parameters belong to the backbone that owns the parts.
        self.parts = parts
        self.layers = len(parts.blocks)
        self.width = parts.embedding.embedding_dim
        self.vocabulary_size = parts.embedding.num_embeddings
        self.context_length = parts.context_length
        if not parts.appended_cls and parts.pool not in ("argmax", "eos", "first", "last"):
            raise UserError(
                f"Expected a text tower that pools argmax, eos, first, last or an appended class token in "
                f"'{name}', got pooling '{parts.pool}'; choose another backbone."
            )

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """See `TextTower.token_embeddings`."""
        return torch.as_tensor(self.parts.embedding(ids))

    def vocabulary(self) -> Tensor:
        """See `TextTower.vocabulary`."""
        return self.parts.embedding.weight.detach()

    def pooled_index(self, ids: Tensor) -> Tensor:
        """Position ``[N]`` of the token that becomes the feature (not for an appended class token)."""
        pool = self.parts.pool
        if pool == "argmax":
            return ids.argmax(dim=-1)
        if pool == "eos":
            return torch.eq(ids, self.parts.eos_id).int().argmax(dim=-1)
        last = 0 if pool == "first" else ids.shape[1] - 1
        return torch.full((ids.shape[0],), last, device=ids.device)

    def needed_length(self, ids: Tensor) -> int:
        """See `TextTower.needed_length`; without a causal mask every token counts."""
        parts = self.parts
        if not parts.causal or ids.shape[0] == 0:
            return ids.shape[1]
        if not parts.appended_cls:
            return int(self.pooled_index(ids).max()) + 1
        words = (ids != parts.pad_id).int()
        # Last non-pad position, counted from the end.
        length = ids.shape[1] - int(words.flip(-1).argmax(dim=-1).min())
        # open_clip's original CoCa shifts its padding mask by one: the first pad is still attended to.
        return min(length + int(parts.shifted_pad_mask), ids.shape[1])

    def _mask(self, ids: Tensor, length: int) -> Tensor | None:
        """Additive attention mask over the kept tokens (and the class token, if one is appended)."""
        parts, full = self.parts, ids.shape[1]
        kept = list(range(length)) + ([full] if parts.appended_cls else [])
        index = torch.tensor(kept, device=ids.device)
        mask: Tensor | None = None
        if parts.causal:
            mask = parts.causal_mask(ids.device)[index[:, None], index[None, :]].to(parts.dtype)
        if not parts.pad_masked:
            return mask
        valid = ids != parts.pad_id  # [N, L]
        if parts.appended_cls:
            always = valid.new_ones(len(ids), 1)
            valid = torch.cat([always, valid] if parts.shifted_pad_mask else [valid, always], dim=1)
        padding = torch.zeros(len(ids), len(kept), dtype=parts.dtype, device=ids.device)
        padding.masked_fill_(~valid[:, index], float("-inf"))
        additive = padding[:, None, :] if mask is None else mask[None] + padding[:, None, :]
        # torch's attention takes one mask per sequence and head: [N·heads, L, L].
        return additive.expand(-1, len(kept), -1).repeat_interleave(parts.blocks[0].heads, dim=0)

    def forward(self, embeddings: Tensor, ids: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """See `TextTower.forward`."""
        parts, length = self.parts, embeddings.shape[1]
        x = embeddings.to(parts.dtype)  # [N, L', W]
        positions = parts.positions[:length]
        if parts.appended_cls:
            x = torch.cat([x, parts.class_embedding.to(x.dtype).expand(len(x), 1, -1)], dim=1)
            positions = torch.cat([positions, parts.positions[ids.shape[1]][None]])
        x = x + positions.to(x.dtype)
        mask = self._mask(ids, length)
        for number, block in enumerate(parts.blocks):
            if 0 < number <= len(edits):
                x = self._edited(x, edits[number - 1], length)
            x = block(x, mask)
        if parts.appended_cls:
            return parts.project(parts.final_norm(x[:, -1]))
        rows = torch.arange(len(x), device=x.device)
        # LayerNorm works on each token alone, so only the pooled one needs it.
        return parts.project(parts.final_norm(x[rows, self.pooled_index(ids)]))

    @staticmethod
    def _edited(x: Tensor, edit: Edit, length: int) -> Tensor:
        """An edit is of the prompt's tokens, not of an appended class token."""
        return torch.cat([edit(x[:, :length]), x[:, length:]], dim=1)


class HuggingFaceTextTower(TextTower):
    """A transformers encoder inside open_clip's `HFTextEncoder` (RoBERTa, XLM-R, mT5, NLLB, …).

    Args:
        module: the `HFTextEncoder`.
        context_length: longest sequence of token ids.
        name: the backbone's name, for errors.

    Raises:
        UserError: the encoder pools in a way that is not known here.
    """

    causal = False

    def __init__(self, module: nn.Module, context_length: int, name: str = "the backbone") -> None:
        super().__init__()
        self._owner = (module,)
        text: Any = module
        pooler = type(text.pooler).__name__
        if pooler not in ("MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler"):
            raise UserError(
                f"Expected a transformers text encoder that pools the mean or its class token in '{name}', "
                f"got {pooler}; choose another backbone."
            )
        self.context_length = context_length
        self.pad_id = int(text.config.pad_token_id)
        self._embedding = (text.transformer.get_input_embeddings(),)
        self.layers = int(text.config.num_hidden_layers)
        self.width = int(self._embedding[0].embedding_dim)
        self.vocabulary_size = int(self._embedding[0].num_embeddings)

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """See `TextTower.token_embeddings`."""
        return torch.as_tensor(self._embedding[0](ids))

    def vocabulary(self) -> Tensor:
        """See `TextTower.vocabulary`."""
        # Through the module, not its weight: some (NLLB's) scale what they look up.
        every = torch.arange(self.vocabulary_size, device=self._embedding[0].weight.device)
        return self.token_embeddings(every).detach()

    def needed_length(self, ids: Tensor) -> int:
        """See `TextTower.needed_length`; padding is masked, so it can be dropped."""
        if ids.shape[0] == 0:
            return ids.shape[1]
        words = (ids != self.pad_id).int()
        return ids.shape[1] - int(words.flip(-1).argmax(dim=-1).min())

    def forward(self, embeddings: Tensor, ids: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """See `TextTower.forward`."""
        if edits:
            raise UserError(
                "Expected a text transformer whose blocks are at hand for deep contexts, got a transformers "
                "encoder inside open_clip's model."
            )
        text: Any = self._owner[0]
        mask = (ids[:, : embeddings.shape[1]] != self.pad_id).long()
        output = text.transformer(inputs_embeds=embeddings, attention_mask=mask)
        return torch.as_tensor(text.proj(text.pooler(output, mask)))


def text_tower(model: nn.Module, tokenizer_length: int | None, name: str) -> TextTower:
    """The text tower of a model, chosen from what the model is made of.

    Args:
        model: of open_clip or transformers, in eval mode.
        tokenizer_length: longest text of its tokenizer, where that has a limit.
        name: the backbone's name, for errors.

    Raises:
        UserError: no tower here fits, naming the backbone and what its text side is.
    """
    if is_transformers_model(model):
        return NativeTextTower(TransformersText(model, name), name)
    text = getattr(model, "text", None)
    if isinstance(text, nn.Module) and hasattr(text, "pooler") and hasattr(text, "proj"):
        # A transformers encoder's own limit is only an upper bound, and 0 where it has none.
        limits = [getattr(text, "context_length", None), tokenizer_length]
        return HuggingFaceTextTower(text, min(int(limit) for limit in limits if limit), name)
    owner = text if isinstance(text, nn.Module) else model
    needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask")
    missing = [attribute for attribute in needed if not hasattr(owner, attribute)]
    if missing:
        raise UserError(
            f"Expected a text tower of open_clip's own kind or a transformers encoder in '{name}', "
            f"got {type(owner).__name__} without {', '.join(missing)}; choose another backbone."
        )
    return NativeTextTower(OpenClipText(owner), name)
