"""Prompts as token ids: special tokens told from words, the context's place, refusal of what is too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cma_tune.data.splits import prompt_name
from cma_tune.errors import UserError

Position = Literal["end", "middle", "front"]
"""Where the class name stands: after, between the halves of, or before the context tokens."""


class PromptTokenizer:
    """Any tokenizer of an image-text model, taken apart into start tokens, words, end tokens and padding.

    The parts are read off what the tokenizer does with an empty text, so no family needs a case of its own.

    Args:
        tokenizer: called with texts, gives ids ``[N, context_length]``, as open_clip's are.
        context_length: the text tower's longest sequence.
        name: the backbone's name, for errors.

    Raises:
        UserError: the tokenizer orders these parts in another way.
    """

    def __init__(
        self, tokenizer: Callable[..., Tensor], context_length: int, name: str = "the backbone"
    ) -> None:
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
        self._leading = self.words("x")
        if not self._leading or not self._agrees():
            raise UserError(
                "Expected a tokenizer that writes start tokens, words, end tokens and padding in this order, "
                f"got another order from that of '{name}'; choose another backbone."
            )
        self.placeholder_id = self._leading[0]

    def _agrees(self) -> bool:
        """Whether texts put together from the parts are the tokenizer's own."""
        texts = ["", "a", "x a"]
        try:
            ids = self.tokenize(texts)
        except UserError:  # parts so far from the tokenizer's that they don't even fit
            return False
        return torch.equal(ids, self._tokenizer(texts, context_length=self.context_length).long())

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer([text], context_length=self._room)[0].tolist()
        return ids

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

    def following_words(self, text: str) -> list[int]:
        """Token ids of the text where it stands after other words.

        Byte-level tokenizers (RoBERTa's) mark the space before a word, so "dog" alone and in "a dog" differ.
        """
        ids, lead = self.words(f"x {text}"), len(self._leading)
        return ids[lead:] if ids[:lead] == self._leading else self.words(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        inner: Any = getattr(self._tokenizer, "tokenizer", self._tokenizer)
        return str(inner.decode(list(ids))).strip()

    def assemble(self, bodies: Sequence[Sequence[int]], names: Sequence[str]) -> Tensor:
        """Put start, words, end and padding together: ids ``[N, context_length]``.

        Raises:
            UserError: a prompt is longer than the context, or holds a special token, naming its class.
        """
        special = {*self.start_ids, *(self.end_ids or [self.pad_id]), *self.tail_ids}
        # Where end and padding are one token (SigLIP), at least one of it must follow the words.
        specials = len(self.start_ids) + max(1, len(self.end_ids)) + len(self.tail_ids)
        rows = []
        for body, name in zip(bodies, names, strict=True):
            if len(body) + specials > self.context_length:
                raise UserError(
                    f"Expected prompts of at most {self.context_length} tokens, got {len(body) + specials} "
                    f"for class '{name}'; use fewer context tokens, a shorter template or class name."
                )
            if special.intersection(body):
                raise UserError(
                    f"Expected words alone in a prompt, got one of the tokenizer's special tokens for class "
                    f"'{name}'; rename the class."
                )
            row = [*self.start_ids, *body, *self.end_ids]
            row += [self.pad_id] * (self.context_length - len(row) - len(self.tail_ids))
            rows.append(row + self.tail_ids)
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.context_length)

    def tokenize(self, texts: Sequence[str], class_names: Sequence[str] | None = None) -> Tensor:
        """Whole texts as ids ``[N, context_length]``; `class_names` are what errors call them.

        Raises:
            UserError: a text is too long (the tokenizers of open_clip would cut it silently).
        """
        return self.assemble([self.words(text) for text in texts], class_names or texts)


@dataclass(frozen=True)
class PromptLayout:
    """Prompts of C classes with room for M context tokens.

    Attributes:
        ids: token ids ``[C, L]``; a placeholder stands where the context goes.
        slots: positions ``[C, M]`` of the context tokens, in their order.
    """

    ids: Tensor
    slots: Tensor

    def shared_tokens(self, length: int, per_class: bool = False) -> int:
        """How many of the first tokens are the same in all prompts, and stand before the last.

        Args:
            length: number of tokens that go through the tower; every prompt keeps at least its pooled one.
            per_class: context tokens differ from class to class.
        """
        is_slot = torch.zeros_like(self.ids, dtype=torch.bool).scatter_(1, self.slots, True)
        same = (self.ids == self.ids[:1]).all(dim=0) & (is_slot == is_slot[:1]).all(dim=0)
        if per_class:
            same &= ~is_slot.any(dim=0)
        return int(same[: length - 1].int().cumprod(dim=0).sum())


def place_context(
    tokenizer: PromptTokenizer, class_names: Sequence[str], tokens: int, position: Position
) -> PromptLayout:
    """Lay out context, class name and full stop for every class (CoOp, sec. 3.2).

    As in CoOp's code, "middle" puts half of the tokens (rounded down) before the name.

    Raises:
        UserError: a prompt is too long or a class name empty, naming the class; or `position` is not known.
    """
    if position not in get_args(Position):
        raise UserError(f"Expected position end, middle or front, got '{position}'.")
    start = len(tokenizer.start_ids)
    placeholder = [tokenizer.placeholder_id]
    bodies, slots = [], []
    for class_name in class_names:
        name = prompt_name(class_name)
        # Tokenised together, as in "x x name."; then cut where the name alone ends.
        words = tokenizer.following_words(f"{name}.")
        length = len(tokenizer.following_words(name))
        if not length:
            raise UserError(
                f"Expected words in every class name, got none in '{class_name}'; rename the class."
            )
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
    """Put context vectors into prompt embeddings (or hidden states), for several contexts.

    Args:
        embeddings: ``[G, C, L, W]``.
        slots: ``[C, M]``, below L.
        context: ``[G, M, W]`` shared by the classes, or ``[G, C, M, W]``.

    Returns:
        ``[G, C, L, W]``, differentiable in `context` and `embeddings`.
    """
    shape = (len(embeddings), *slots.shape, embeddings.shape[-1])
    values = context if context.dim() == 4 else context[:, None]
    places = slots[None, :, :, None].expand(shape)
    return embeddings.scatter(2, places, values.to(embeddings.dtype).expand(shape))
