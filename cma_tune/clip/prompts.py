"""Prompts as token ids: special tokens told from words, the context's place, refusal of what is too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cma_tune.data.splits import prompt_name
from cma_tune.errors import UserError

Position = Literal["end", "middle", "front"]
"""Where the class name stands: after, between the halves of, or before the context tokens."""


class PromptTokenizer:
    """Any open_clip tokenizer, taken apart into start tokens, words, end tokens and padding.

    The parts are read off what the tokenizer does with an empty text, so no family needs a case of its own.

    Args:
        tokenizer: open_clip's tokenizer (called with texts, gives ids ``[N, context_length]``).
        context_length: the text tower's longest sequence.
    """

    def __init__(self, tokenizer: Callable[..., Tensor], context_length: int) -> None:
        self._tokenizer = tokenizer
        self.context_length = context_length
        inner: Any = getattr(tokenizer, "tokenizer", None)
        pad = getattr(inner, "pad_token_id", None)
        self.pad_id = int(pad) if pad is not None else 0
        # Room enough that the tokenizer, which cuts silently, does not cut.
        self._room = max(4 * context_length, 512)
        empty = self._ids("")
        word = self._ids("a")
        start = 0
        while start < len(empty) and empty[start] == word[start] and empty[start] != self.pad_id:
            start += 1
        # "a" itself never equals a special token, so the common beginning is the start tokens.
        self.start_ids = empty[:start]
        rest = empty[start:]
        end = 0
        while end < len(rest) and rest[end] != self.pad_id:
            end += 1
        self.end_ids = rest[:end]
        tail = len(rest)
        while tail > end and rest[tail - 1] != self.pad_id:
            tail -= 1
        self.tail_ids = rest[tail:]
        self.placeholder_id = self.words("x")[0]

    def _ids(self, text: str) -> list[int]:
        row = self._tokenizer([text], context_length=self._room)[0]
        return [int(i) for i in row]

    def words(self, text: str) -> list[int]:
        """Token ids of the text alone, without special tokens and padding, never cut."""
        ids = self._ids(text)[len(self.start_ids) :]
        if self.tail_ids:
            ids = ids[: -len(self.tail_ids)]
        while ids and ids[-1] == self.pad_id:
            ids.pop()
        if self.end_ids and ids[-len(self.end_ids) :] == self.end_ids:
            ids = ids[: -len(self.end_ids)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        inner: Any = getattr(self._tokenizer, "tokenizer", self._tokenizer)
        return str(inner.decode(list(ids))).strip()

    def assemble(self, bodies: Sequence[Sequence[int]], names: Sequence[str]) -> Tensor:
        """Put start, words, end and padding together: ids ``[N, context_length]``.

        Raises:
            UserError: a prompt is longer than the context, naming its class.
        """
        # Where end and padding are one token (SigLIP), at least one of it must follow the words.
        specials = len(self.start_ids) + max(1, len(self.end_ids)) + len(self.tail_ids)
        rows = []
        for body, name in zip(bodies, names, strict=True):
            if len(body) + specials > self.context_length:
                raise UserError(
                    f"Expected prompts of at most {self.context_length} tokens, got {len(body) + specials} "
                    f"for class '{name}'; use fewer context tokens or a shorter class name."
                )
            row = [*self.start_ids, *body, *self.end_ids]
            row += [self.pad_id] * (self.context_length - len(row) - len(self.tail_ids))
            rows.append(row + self.tail_ids)
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.context_length)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Whole texts as ids ``[N, context_length]``.

        Raises:
            UserError: a text is too long (the tokenizers of open_clip would cut it silently).
        """
        return self.assemble([self.words(text) for text in texts], texts)


@dataclass(frozen=True)
class PromptLayout:
    """Prompts of C classes with room for M context tokens.

    Attributes:
        ids: token ids ``[C, L]``; a placeholder stands where the context goes.
        slots: positions ``[C, M]`` of the context tokens, in their order.
    """

    ids: Tensor
    slots: Tensor


def place_context(
    tokenizer: PromptTokenizer, class_names: Sequence[str], tokens: int, position: Position
) -> PromptLayout:
    """Lay out "context, class name, full stop" for every class (CoOp, sec. 3.2; "middle" and "front" likewise).

    Raises:
        UserError: a prompt is too long, naming the class.
    """
    start = len(tokenizer.start_ids)
    placeholder = [tokenizer.placeholder_id]
    bodies, slots = [], []
    for class_name in class_names:
        name = prompt_name(class_name)
        # Name and full stop are tokenised together, as in "… name."; then cut where the name alone ends.
        words = tokenizer.words(f"{name}.")
        length = len(tokenizer.words(name))
        if position == "end":
            body = placeholder * tokens + words
            places = list(range(tokens))
        elif position == "middle":
            before = tokens // 2
            body = placeholder * before + words[:length] + placeholder * (tokens - before) + words[length:]
            places = [*range(before), *range(before + length, tokens + length)]
        else:
            body = words[:length] + placeholder * tokens + words[length:]
            places = list(range(length, length + tokens))
        bodies.append(body)
        slots.append([start + place for place in places])
    ids = tokenizer.assemble(bodies, class_names)
    return PromptLayout(ids, torch.tensor(slots, dtype=torch.long).reshape(len(bodies), tokens))


def insert_context(embeddings: Tensor, slots: Tensor, context: Tensor) -> Tensor:
    """Put context vectors into prompt embeddings.

    Args:
        embeddings: ``[C, L, W]`` of the placeholder prompts.
        slots: ``[C, M]``, below L.
        context: ``[M, W]`` shared by the classes, or ``[C, M, W]``.

    Returns:
        ``[C, L, W]``, differentiable in `context`.
    """
    classes = torch.arange(len(embeddings), device=embeddings.device)[:, None]  # [C, 1]
    values = context.to(embeddings.dtype).expand(*slots.shape, -1)  # [C, M, W]
    return embeddings.index_put((classes, slots), values)
