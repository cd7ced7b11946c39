"""Class prompts with learned contexts to text features: shared or plain, in chunks, over processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cma_tune.clip.backbone import Backbone, TextOptions
from cma_tune.clip.packing import (
    Own,
    PackedPrompts,
    PartedPrompts,
    own_tokens,
    pack,
    parted_places,
    shared_tokens,
)
from cma_tune.clip.prompts import PromptLayout, insert_context
from cma_tune.clip.shared_prefix import can_share, encode_packed
from cma_tune.clip.text_tower import NativeTextTower
from cma_tune.errors import UserError
from cma_tune.processes import gather_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """Classes ``[C']`` that go through the tower together; packed where the tower lets them.

    Where deep contexts are per class and the first are not, ``parted`` is for the blocks above. Otherwise
    ``embeddings`` ``[C', L', W]`` are those of the placeholder prompts.
    """

    classes: Tensor
    packed: PackedPrompts | None = None
    parted: PartedPrompts | None = None
    embeddings: Tensor | None = None


class ContextPrompts:
    """The prompts of C classes over one backbone, waiting for contexts.

    How they are encoded (``backbone.text_options``) changes time and memory, not the result.

    Args:
        backbone: the frozen model.
        layout: ids and slots of the prompts.
        per_class: each class has a context of its own.

    Attributes:
        length: tokens of the longest prompt that go through the tower.
    """

    def __init__(self, backbone: Backbone, layout: PromptLayout, per_class: bool = False) -> None:
        self.backbone = backbone
        self.per_class = per_class
        self.layout = PromptLayout(layout.ids.to(backbone.device), layout.slots.to(backbone.device))
        self.length = backbone.tower.needed_length(self.layout.ids)
        self.shared = 0
        self._own: Own | None = None
        self._made: dict[tuple[object, ...], list[_Part]] = {}
        tower = backbone.tower
        order = list(range(len(layout.ids)))
        if can_share(tower):
            self.shared, own = self._grouping(per_class)
            self._own = own
            if own is None:
                _say_unpacked(backbone.name)
            else:
                order.sort(key=lambda c: (len(own[c][0]), own[c][1]))
        # Prompts of one length are neighbours; every N-th of them is a fair share for each of N processes.
        self._order = torch.tensor(order, dtype=torch.long, device=backbone.device)

    @property
    def packs(self) -> bool:
        """Whether the shared beginning runs once and padding never."""
        return self._own is not None and self.backbone.text_options.share_prefix

    def encode(
        self, contexts: Tensor, deep: Sequence[Tensor | None] = (), same_on_every_process: bool = False
    ) -> Tensor:
        """Text features of unit length, differentiable in contexts and deep contexts.

        Args:
            contexts: ``[G, M, W]``, one per image, say; or per class ``[G, C, M, W]``.
            deep: contexts that replace the hidden states at the context's places before the second block,
                the third and so on (deep prompts), of either shape; None leaves a block's as they are.
            same_on_every_process: the contexts are, so every process may encode a share of the classes; all
                of them call this alike then.

        Returns:
            ``[G, C, D]``, at least float32.

        Raises:
            ValueError: there is no context.
            UserError: the tower can't take so many deep contexts.
        """
        if not len(contexts):
            raise ValueError("Expected at least one context, got none.")
        options, layers = self.backbone.text_options, self.backbone.tower.layers
        if len(deep) >= layers or (deep and not isinstance(self.backbone.tower, NativeTextTower)):
            raise UserError(
                f"Expected at most {layers - 1} deep contexts, for a text transformer whose blocks are "
                f"at hand, got {len(deep)} for '{self.backbone.name}'."
            )
        order, rank, processes = self._order, 0, 1
        if same_on_every_process and options.split_over_processes and dist.is_initialized():
            processes, rank = dist.get_world_size(), dist.get_rank()
        if processes > len(order):  # too few classes to split
            rank, processes = 0, 1
        parts_ways = not self.per_class and any(v is not None and v.dim() == 4 for v in deep)
        at_once = options.chunk or self._fitting(options, parts_ways)
        mine = order[rank::processes]
        parts = self._parts(mine, (rank, processes), min(at_once, len(mine)), parts_ways)
        turns = torch.split(torch.arange(len(contexts)), max(1, at_once // len(mine)))
        recompute = torch.is_grad_enabled() and len(turns) * len(parts) > 1
        rows = []
        for turn in turns:
            here = slice(int(turn[0]), int(turn[-1]) + 1)
            now = contexts[here]
            later = [None if values is None else values[here] for values in deep]
            if recompute:  # in the backward pass, so that memory grows with neither classes nor images
                pieces = [checkpoint(self._encode, part, now, *later, use_reentrant=False) for part in parts]
            else:
                pieces = [self._encode(part, now, *later) for part in parts]
            rows.append(torch.cat(pieces, dim=1))
        features = torch.cat(rows)  # [G, C', D]
        if processes > 1:
            features = gather_rows(features.transpose(0, 1).contiguous()).transpose(0, 1)
            order = torch.cat([order[r::processes] for r in range(processes)])
        return features.index_select(1, order.argsort())

    def _grouping(self, per_class: bool) -> tuple[int, Own | None]:
        """How many tokens all prompts share, and their own, or None where they can't be packed."""
        tower = self.backbone.tower
        assert isinstance(tower, NativeTextTower)
        shared = shared_tokens(tower, self.layout, per_class)
        return shared, own_tokens(tower, self.layout.ids, shared)

    @cached_property
    def _parted(self) -> tuple[int, Own]:
        """The grouping above the block before which contexts part."""
        shared, own = self._grouping(per_class=True)
        assert own is not None  # whether they can be packed hangs on the tower and the names alone
        return shared, own

    def _fitting(self, options: TextOptions, parts_ways: bool) -> int:
        """Prompts whose activations fit the memory, by a count that errs on the high side."""
        tower = self.backbone.tower
        owns = (self._parted[1] if parts_ways else self._own or ()) if self.packs else ()
        lengths = [len(tokens) for tokens, _ in owns] or [self.length] * len(self.layout.ids)
        # A block of the tower keeps some 20 widths per token for the backward pass.
        token = 20 * 4 * tower.layers * tower.width
        shared = self.shared if self.packs else 0
        budget = options.memory * 2**30 / token
        group = shared + sum(lengths)
        if budget >= group:  # whole groups, each with its own shared tokens
            return len(lengths) * int(budget / group)
        # The longest are neighbours, so a chunk may hold nothing else.
        return max(1, int((budget - shared) / max(lengths)))

    def _parts(self, mine: Tensor, share: tuple[int, int], classes: int, parts_ways: bool) -> list[_Part]:
        """The classes of one process, so many at once."""
        key = (share, classes, self.packs, parts_ways)
        if key not in self._made:
            self._made = {key: [self._part(chunk, parts_ways) for chunk in torch.split(mine, classes)]}
        return self._made[key]

    @torch.inference_mode(False)
    def _part(self, classes: Tensor, parts_ways: bool) -> _Part:
        # Kept for training too: made in inference mode, they could not be saved for a backward pass.
        tower = self.backbone.tower
        if self.packs:
            assert isinstance(tower, NativeTextTower) and self._own is not None
            packed = pack(tower, self.layout, classes, self.shared, self._own)
            if not parts_ways:
                return _Part(classes, packed)
            places = parted_places(classes, (self.shared, self._own), self._parted)
            return _Part(
                classes, packed, PartedPrompts(pack(tower, self.layout, classes, *self._parted), places)
            )
        with torch.no_grad():
            embeddings = tower.token_embeddings(self.layout.ids[classes])[:, : self.length]
        return _Part(classes, embeddings=embeddings)

    def _encode(self, part: _Part, contexts: Tensor, *deep: Tensor | None) -> Tensor:
        """``[G, C', D]`` of unit length."""
        backbone = self.backbone
        if part.packed is not None:
            assert isinstance(backbone.tower, NativeTextTower)
            # Every other set of classes that is tested would be compiled for a single pass.
            compiled = backbone.text_options.compile and torch.is_grad_enabled()
            run = _compiled() if compiled else encode_packed
            features = run(backbone.tower, part.packed, contexts, deep, part.parted)
            return backbone.unit_length(features)
        assert part.embeddings is not None
        slots, ids = self.layout.slots[part.classes], self.layout.ids[part.classes]
        groups, classes = len(contexts), len(part.classes)

        def own(values: Tensor) -> Tensor:
            return values[:, part.classes] if values.dim() == 4 else values

        def edit(x: Tensor, values: Tensor | None) -> Tensor:
            if values is None:
                return x
            return insert_context(x.unflatten(0, (groups, classes)), slots, own(values)).flatten(0, 1)

        prompts = insert_context(part.embeddings.expand(groups, -1, -1, -1), slots, own(contexts))
        edits = [(lambda x, values=values: edit(x, values)) for values in deep]
        features = backbone.tower(prompts.flatten(0, 1), ids.repeat(groups, 1), edits)
        return backbone.unit_length(features).unflatten(0, (groups, classes))


@cache
def _say_unpacked(name: str) -> None:
    log.warning(
        "A class name holds the padding token of '%s', which its text tower masks wherever it stands, so "
        "prompts are not packed: the numbers are the same, but take longer.",
        name,
    )


@cache
def _compiled() -> Any:
    return torch.compile(encode_packed)
