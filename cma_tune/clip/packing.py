"""Prompts of many classes as one row of tokens: what they share once, then each class's own, without padding.

Which tokens these are follows from the text tower: under a causal mask nothing after the pooled token counts,
and a beginning that all prompts have in common has the same hidden states in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from cma_tune.clip.prompts import PromptLayout
from cma_tune.clip.text_tower import NativeTextTower

QUERIES = 64
"""Tokens that attend together, roughly: attention over a few tokens at a time is all overhead."""


@dataclass(frozen=True)
class Bucket:
    """Neighbouring classes with equally many tokens of their own, in blocks that attend together.

    Attributes:
        tokens: own tokens n of each class, the last of which is pooled.
        classes: classes K of a block.
        blocks: how many blocks R.
        visible: mask ``[K·n, P+K·n]``: a token sees what is shared and its class's tokens up to itself (but
            for CoCa's original class token, which does not see itself).
    """

    tokens: int
    classes: int
    blocks: int
    visible: Tensor

    @property
    def length(self) -> int:
        """Own tokens of all its classes."""
        return self.tokens * self.classes * self.blocks


@dataclass(frozen=True)
class PackedPrompts:
    """N = P + T tokens: P that the classes share, then T of their own, bucket after bucket.

    Attributes:
        base: ``[N, W]``, positions, and the token embeddings where no context stands.
        positions: ``[S, W]``, those of the places that a context vector takes.
        shared: P.
        buckets: in the order of the tokens.
        pooled: ``[C]``, place of the pooled tokens, in the order of the classes that were packed.
        places: ``[S]``, places that a context vector takes.
        of_class, of_slot: ``[S]``, whose class and which of the M vectors it is.
    """

    base: Tensor
    positions: Tensor
    shared: int
    buckets: tuple[Bucket, ...]
    pooled: Tensor
    places: Tensor
    of_class: Tensor
    of_slot: Tensor

    def context_values(self, contexts: Tensor) -> Tensor:
        """Contexts ``[G, M, W]``, or ``[G, C, M, W]`` per class, as they stand in the row: ``[G, S, W]``."""
        per_class = contexts.dim() == 4
        values = contexts[:, self.of_class, self.of_slot] if per_class else contexts[:, self.of_slot]
        return values.to(self.base.dtype)

    def embed(self, contexts: Tensor) -> Tensor:
        """The row with contexts in place, positions added: ``[G, N, W]``."""
        values = self.context_values(contexts) + self.positions
        return self.base.expand(len(contexts), -1, -1).index_copy(1, self.places, values)

    def replace(self, x: Tensor, contexts: Tensor) -> Tensor:
        """Hidden states ``[G, N, W]`` with those at the context's places replaced (deep prompts)."""
        return x.index_copy(1, self.places, self.context_values(contexts).to(x.dtype))


@dataclass(frozen=True)
class PartedPrompts:
    """The same prompts from a block on before which their contexts part: less is shared, more is their own.

    Attributes:
        packed: these prompts.
        places: ``[N]``, where each of their tokens stands in the row they come from.
    """

    packed: PackedPrompts
    places: Tensor


Own = Sequence[tuple[list[int], bool]]
"""Every prompt's own tokens; see `own_tokens`."""


def parted_places(classes: Tensor, before: tuple[int, Own], after: tuple[int, Own]) -> Tensor:
    """See `PartedPrompts.places`.

    Args:
        classes: ``[C']``, in the order they are packed in.
        before, after: how many tokens are shared, and every prompt's own.
    """
    chosen = [int(c) for c in classes]
    own = [(c, position) for c in chosen for position in before[1][c][0]]
    place = {at: number for number, at in enumerate(own, start=before[0])}
    rows = [*range(after[0])]
    # What was shared stands where its position says.
    rows += [place.get((c, position), position) for c in chosen for position in after[1][c][0]]
    return torch.tensor(rows, dtype=torch.long, device=classes.device)


def shared_tokens(tower: NativeTextTower, layout: PromptLayout, per_class: bool) -> int:
    """How many first tokens all prompts have in common, at least one short of every prompt's last."""
    length = tower.needed_length(layout.ids)
    return layout.shared_tokens(length, per_class=per_class)


def own_tokens(tower: NativeTextTower, ids: Tensor, shared: int) -> list[tuple[list[int], bool]] | None:
    """Every prompt's own tokens, as positions that end with the pooled one, and whether that sees itself.

    An appended class token counts as position L. None where the tower's mask does not let a prompt be cut:
    its padding token stands among the words.
    """
    length = ids.shape[1]
    parts = tower.parts
    if not parts.appended_cls:
        return [(list(range(shared, int(end) + 1)), True) for end in tower.pooled_index(ids)]
    kept = []
    for row in (ids != parts.pad_id).int():
        words = int(row.sum())
        if int(row[:words].sum()) != words:
            return None
        # open_clip's original CoCa shifts its mask by one: the first pad is seen, the class token is not.
        seen = min(words + int(parts.shifted_pad_mask), length)
        sees_itself = not parts.shifted_pad_mask or words == length
        kept.append(([*range(shared, seen), length], sees_itself))
    return kept


def pack(
    tower: NativeTextTower,
    layout: PromptLayout,
    classes: Tensor,
    shared: int,
    own: Own,
) -> PackedPrompts:
    """Pack some classes.

    Args:
        tower: a causal tower.
        layout: of all classes; on the tower's device.
        classes: ``[C']``, which ones, ordered such that equal numbers of own tokens are neighbours.
        shared: P, from `shared_tokens`.
        own: of all classes, from `own_tokens`.
    """
    parts = tower.parts
    device = layout.ids.device
    chosen = [int(c) for c in classes]
    rows = [chosen[0]] * shared + [c for c in chosen for _ in own[c][0]]
    columns = [*range(shared), *(position for c in chosen for position in own[c][0])]
    place_of = {(rows[i], columns[i]): i for i in range(shared, len(rows))}
    places, of_class, of_slot = [], [], []
    for c in chosen:
        for slot, position in enumerate(layout.slots[c].tolist()):
            if position >= shared or c == chosen[0]:
                places.append(position if position < shared else place_of[c, position])
                of_class.append(c)
                of_slot.append(slot)
    with torch.no_grad():
        column = torch.tensor(columns, device=device)
        positions = parts.positions[column].to(parts.dtype)
        appended = column == layout.ids.shape[1]
        ids = layout.ids[torch.tensor(rows, device=device), column.masked_fill(appended, 0)]
        tokens = tower.token_embeddings(ids).to(parts.dtype)
        if parts.appended_cls:
            tokens[appended] = parts.class_embedding.to(parts.dtype)
    buckets: list[Bucket] = []
    for (length, sees_itself), group in groupby((len(own[c][0]), own[c][1]) for c in chosen):
        count = len(list(group))
        together = min(count, max(1, QUERIES // length))
        for size, blocks in ((together, count // together), (count % together, 1)):
            if size:
                visible = _visible(length, size, shared, sees_itself).to(device)
                buckets.append(Bucket(length, size, blocks, visible))
    ends = torch.tensor([len(own[c][0]) for c in chosen], device=device).cumsum(0) + shared - 1

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return PackedPrompts(
        base=tokens + positions,
        positions=positions[index(places)],
        shared=shared,
        buckets=tuple(buckets),
        pooled=ends,
        places=index(places),
        of_class=index(of_class),
        of_slot=index(of_slot),
    )


def _visible(tokens: int, classes: int, shared: int, sees_itself: bool) -> Tensor:
    """See `Bucket.visible`."""
    own = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    own[-1, -1] = sees_itself
    every = torch.ones(classes * tokens, shared, dtype=torch.bool)
    return torch.cat([every, torch.block_diag(*[own] * classes).bool()], dim=1)
