"""Text features from token *embeddings*, for every text tower open_clip builds.

A prompt learner needs the text tower from its embeddings on; open_clip's ``encode_text`` starts from token
ids. The towers here are views of the model's own modules: nothing is copied, and at full length the features
equal ``encode_text`` exactly. Where the mask is causal, tokens after the pooled one can't change it, so they
are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
            edits: applied before the second block, the third and so on; open_clip's own transformer alone
                takes them.
        """
        raise TypeError(f"{type(self).__name__} is an interface")

    def encode_ids(self, ids: Tensor) -> Tensor:
        """The model's own text features ``[N, D]`` of token ids, through `forward`."""
        return torch.as_tensor(self(self.token_embeddings(ids)[:, : self.needed_length(ids)], ids))


class NativeTextTower(TextTower):
    """open_clip's own transformer: `CLIP` itself, or ``model.text`` of a `CustomTextCLIP` or `CoCa`.

    Args:
        module: what holds the token embedding, positions, transformer, norm and projection.
        name: the backbone's name, for errors.

    Raises:
        UserError: the tower pools in a way that is not known here.
    """

    def __init__(self, module: nn.Module, name: str = "the backbone") -> None:
        super().__init__()
        # The tower is a view: its parameters belong to the backbone that owns `module`.
        self._owner = (module,)
        text: Any = module
        self.layers = len(text.transformer.resblocks)
        self.width = text.token_embedding.embedding_dim
        self.vocabulary_size = text.token_embedding.num_embeddings
        self.context_length = text.context_length
        self.pool = getattr(text, "text_pool_type", None) or text.pool_type
        self.eos_id = int(text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id)
        self.pad_id = getattr(text, "pad_id", 0)
        self.causal = text.attn_mask is not None
        self.appended_cls = getattr(text, "cls_emb", None) is not None
        self.pad_masked = bool(getattr(text, "use_pad_mask", False)) or self.appended_cls
        self.shifted_pad_mask = self.appended_cls and not text.correct_cls_mask
        if not self.appended_cls and self.pool not in ("argmax", "eos", "first", "last"):
            raise UserError(
                f"Expected a text tower that pools argmax, eos, first, last or an appended class token in "
                f"'{name}', got pooling '{self.pool}'; choose another backbone."
            )

    @property
    def text(self) -> Any:
        """open_clip's module that holds the text parts."""
        return self._owner[0]

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """See `TextTower.token_embeddings`."""
        return torch.as_tensor(self.text.token_embedding(ids))

    def vocabulary(self) -> Tensor:
        """See `TextTower.vocabulary`."""
        return torch.as_tensor(self.text.token_embedding.weight.detach())

    def pooled_index(self, ids: Tensor) -> Tensor:
        """Position ``[N]`` of the token that becomes the feature (not for an appended class token)."""
        if self.pool == "argmax":
            return ids.argmax(dim=-1)
        if self.pool == "eos":
            return torch.eq(ids, self.eos_id).int().argmax(dim=-1)
        last = 0 if self.pool == "first" else ids.shape[1] - 1
        return torch.full((ids.shape[0],), last, device=ids.device)

    def needed_length(self, ids: Tensor) -> int:
        """See `TextTower.needed_length`; without a causal mask every token counts."""
        if not self.causal or ids.shape[0] == 0:
            return ids.shape[1]
        if not self.appended_cls:
            return int(self.pooled_index(ids).max()) + 1
        words = (ids != self.pad_id).int()
        # Last non-pad position, counted from the end.
        length = ids.shape[1] - int(words.flip(-1).argmax(dim=-1).min())
        # open_clip's original CoCa shifts its padding mask by one: the first pad is still attended to.
        return min(length + int(self.shifted_pad_mask), ids.shape[1])

    def _mask(self, ids: Tensor, length: int, dtype: torch.dtype) -> Tensor | None:
        """Additive attention mask over the kept tokens (and the class token, if one is appended)."""
        text, full = self.text, ids.shape[1]
        kept = list(range(length)) + ([full] if self.appended_cls else [])
        index = torch.tensor(kept, device=ids.device)
        mask: Tensor | None = None
        if self.causal:
            mask = text.attn_mask[index[:, None], index[None, :]].to(dtype)
        if not self.pad_masked:
            return mask
        valid = ids != self.pad_id  # [N, L]
        if self.appended_cls:
            always = valid.new_ones(len(ids), 1)
            valid = torch.cat([always, valid] if self.shifted_pad_mask else [valid, always], dim=1)
        padding = torch.zeros(len(ids), len(kept), dtype=dtype, device=ids.device)
        padding.masked_fill_(~valid[:, index], float("-inf"))
        additive = padding[:, None, :] if mask is None else mask[None] + padding[:, None, :]
        # torch's attention takes one mask per sequence and head: [N·heads, L, L].
        return additive.expand(-1, len(kept), -1).repeat_interleave(text.heads, dim=0)

    def forward(self, embeddings: Tensor, ids: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """See `TextTower.forward`."""
        text = self.text
        dtype = text.transformer.get_cast_dtype()
        length = embeddings.shape[1]
        x = embeddings.to(dtype)  # [N, L', W]
        positions = text.positional_embedding[:length]
        if self.appended_cls:
            x = torch.cat([x, text.cls_emb.to(dtype).expand(len(x), 1, -1)], dim=1)
            positions = torch.cat([positions, text.positional_embedding[ids.shape[1]][None]])
        x = x + positions.to(dtype)
        mask = self._mask(ids, length, dtype)
        if edits:
            for number, block in enumerate(text.transformer.resblocks):
                if 0 < number <= len(edits):
                    x = self._edited(x, edits[number - 1], length)
                x = block(x, attn_mask=mask)
        else:
            x = text.transformer(x, attn_mask=mask)
        if self.appended_cls:
            pooled = text.ln_final(x[:, -1])
        else:
            rows = torch.arange(len(x), device=x.device)
            # LayerNorm works on each token alone, so only the pooled one needs it.
            pooled = text.ln_final(x[rows, self.pooled_index(ids)])
        return self.project(pooled)

    @staticmethod
    def _edited(x: Tensor, edit: Edit, length: int) -> Tensor:
        """An edit is of the prompt's tokens, not of an appended class token."""
        return torch.cat([edit(x[:, :length]), x[:, length:]], dim=1)

    def project(self, pooled: Tensor) -> Tensor:
        """The pooled tokens ``[N, W]``, after the final norm, in the space of the images: ``[N, D]``."""
        projection = self.text.text_projection
        if projection is None:
            return pooled
        if isinstance(projection, nn.Linear):
            return torch.as_tensor(projection(pooled))
        return torch.as_tensor(pooled @ projection)


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
                "Expected open_clip's own text transformer for deep contexts, got a transformers encoder."
            )
        text: Any = self._owner[0]
        mask = (ids[:, : embeddings.shape[1]] != self.pad_id).long()
        output = text.transformer(inputs_embeds=embeddings, attention_mask=mask)
        return torch.as_tensor(text.proj(text.pooler(output, mask)))


def text_tower(model: nn.Module, context_length: int, name: str) -> TextTower:
    """The text tower of an open_clip model, chosen from what the model is made of.

    Raises:
        UserError: no tower here fits, naming the backbone and what its text side is.
    """
    text = getattr(model, "text", None)
    if isinstance(text, nn.Module) and hasattr(text, "pooler") and hasattr(text, "proj"):
        tower: TextTower = HuggingFaceTextTower(text, context_length, name)
    else:
        owner = text if isinstance(text, nn.Module) else model
        needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask")
        missing = [attribute for attribute in needed if not hasattr(owner, attribute)]
        if missing:
            raise UserError(
                f"Expected a text tower of open_clip's own kind or a transformers encoder in '{name}', "
                f"got {type(owner).__name__} without {', '.join(missing)}; choose another backbone."
            )
        tower = NativeTextTower(owner, name)
    return tower
