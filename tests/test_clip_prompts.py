"""Prompts as token ids, against CoOp's own construction with open_clip's tokenizer."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from families import tiny_backbone
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from cma_tune.clip.prompts import PromptLayout, PromptTokenizer, insert_context, place_context
from cma_tune.errors import UserError

NAMES = (
    "cat",
    "striped_red_triangle",
    "F-16A/B",
    "St. Bernard Jr.",
    "black-and-white Boxer's dog",
    "707-320",
    "  spaced   out ",
    "piñata",
    "3",
)

Token = int | tuple[str, int]
"""A token id, or ("context", m)."""


@cache
def clip_tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@cache
def prompt_tokenizer() -> PromptTokenizer:
    return PromptTokenizer(clip_tokenizer(), 77)


def as_coop_writes_it(class_name: str, tokens: int, position: str) -> list[Token]:
    """CoOp's construction: the prompt "X … X name." tokenised as a whole, then taken apart by lengths."""
    tokenizer = clip_tokenizer()
    name = class_name.replace("_", " ")
    name_length = len(tokenizer.encode(name))
    whole: list[Token] = [int(i) for i in tokenizer([" ".join(["X"] * tokens) + " " + name + "."])[0]]
    prefix, suffix = whole[:1], whole[1 + tokens :]
    context: list[Token] = [("context", m) for m in range(tokens)]
    if position == "end":
        return prefix + context + suffix
    half = tokens // 2 if position == "middle" else 0
    before, after = context[:half], context[half:]
    return prefix + before + suffix[:name_length] + after + suffix[name_length:]


def as_laid_out(layout: PromptLayout) -> list[list[Token]]:
    rows: list[list[Token]] = []
    for ids, slots in zip(layout.ids, layout.slots, strict=True):
        row: list[Token] = [int(i) for i in ids]
        for m, slot in enumerate(slots.tolist()):
            row[slot] = ("context", m)
        rows.append(row)
    return rows


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 16])
def test_context_is_placed_as_coop_places_it(tokens: int, position: Any) -> None:
    layout = place_context(prompt_tokenizer(), NAMES, tokens, position)
    assert as_laid_out(layout) == [as_coop_writes_it(name, tokens, position) for name in NAMES]


@settings(max_examples=150, deadline=None)
@given(
    name=st.text(string.ascii_letters + string.digits + " _-/.,'&()!", min_size=1, max_size=25),
    tokens=st.integers(1, 9),
    position=st.sampled_from(["end", "middle", "front"]),
)
@example(name="a..", tokens=3, position="middle")
@example(name="'s", tokens=1, position="front")
@example(name="&amp;", tokens=2, position="middle")
def test_any_name_is_placed_as_coop_places_it(name: str, tokens: int, position: Any) -> None:
    assume(clip_tokenizer().encode(name.replace("_", " ")))
    layout = place_context(prompt_tokenizer(), [name], tokens, position)
    assert as_laid_out(layout) == [as_coop_writes_it(name, tokens, position)]


def test_every_place_holds_a_placeholder_that_is_no_padding() -> None:
    """Padding masks are read off the ids, so a context token must not look like padding."""
    for family in ("clip-vit", "coca", "siglip", "siglip2", "hf-roberta-mean", "hf-bert-cls"):
        tokenizer = tiny_backbone(family).tokenizer
        layout = place_context(tokenizer, ["cat", "blue dog"], 3, "middle")
        assert (layout.ids.gather(1, layout.slots) == tokenizer.placeholder_id).all()
        assert tokenizer.placeholder_id not in (tokenizer.pad_id, *tokenizer.start_ids, *tokenizer.end_ids)


@pytest.mark.parametrize("family", ["hf-roberta-mean", "hf-nllb-cls", "hf-bert-cls", "siglip", "siglip2"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_other_tokenizers_write_the_name_as_it_stands_after_words(family: str, position: Any) -> None:
    """Byte-level tokenizers mark the space before a word: " cat" is another token than "cat"."""
    tokenizer = tiny_backbone(family).tokenizer
    own: Any = tokenizer._tokenizer
    tokens = 4
    whole = [int(i) for i in own(["x x x x blue cat."])[0]]
    layout = place_context(tokenizer, ["blue_cat"], tokens, position)
    kept = [token for token in as_laid_out(layout)[0] if isinstance(token, int)]
    start = len(tokenizer.start_ids)
    assert kept == whole[:start] + whole[start + tokens :]


def test_byte_level_tokenizers_do_mark_the_space() -> None:
    """Without this the test before shows nothing."""
    tokenizer = tiny_backbone("hf-roberta-mean").tokenizer
    assert tokenizer.following_words("cat") != tokenizer.words("cat")


@pytest.mark.parametrize("tokens", [4, 16])
def test_a_prompt_that_just_fits_and_one_that_does_not(tokens: int) -> None:
    # Start, context, name, full stop, end.
    room = 77 - 3 - tokens
    fits, too_long = " ".join(["cat"] * room), " ".join(["dog"] * (room + 1))
    layout = place_context(prompt_tokenizer(), [fits], tokens, "end")
    assert layout.ids[0, -1] == clip_tokenizer().eot_token_id
    with pytest.raises(UserError, match=r"at most 77 tokens, got 78 .*'dog dog"):
        place_context(prompt_tokenizer(), ["cat", too_long], tokens, "end")


@pytest.mark.parametrize("name", ["", "  ", "_"])
def test_a_class_without_words_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"got none in '{name}'"):
        place_context(prompt_tokenizer(), ["cat", name], 4, "end")


def test_a_class_named_like_a_special_token_is_refused() -> None:
    """It would end the text in the midst of the prompt."""
    tokenizer = tiny_backbone("hf-roberta-mean").tokenizer
    with pytest.raises(UserError, match="special tokens for class 'a </s> b'"):
        place_context(tokenizer, ["a </s> b"], 4, "end")
    with pytest.raises(UserError, match="special tokens for class 'ended'"):
        prompt_tokenizer().tokenize(["a <end_of_text> b"], ["ended"])


def test_an_unknown_position_is_refused() -> None:
    position: Any = "behind"
    with pytest.raises(UserError, match="end, middle or front, got 'behind'"):
        place_context(prompt_tokenizer(), ["cat"], 4, position)


def test_parts_of_the_clip_tokenizer() -> None:
    tokenizer = prompt_tokenizer()
    assert (tokenizer.start_ids, tokenizer.end_ids, tokenizer.tail_ids) == ([49406], [49407], [])
    text = "a photo of a striped red triangle."
    assert tokenizer.words(text) == clip_tokenizer().encode(text)
    assert tokenizer.decode(tokenizer.words(text)) == "a photo of a striped red triangle ."


def test_texts_beyond_the_context_are_counted_and_never_cut() -> None:
    words = "cat " * 100
    assert len(prompt_tokenizer().words(words)) == 100
    with pytest.raises(UserError, match="got 102 for class 'many cats'"):
        prompt_tokenizer().tokenize([words], ["many cats"])


def reference_insert(
    embeddings: torch.Tensor, slots: torch.Tensor, context: torch.Tensor
) -> Sequence[Sequence[torch.Tensor]]:
    rows = [list(row) for row in embeddings]
    for c, row in enumerate(rows):
        for m, slot in enumerate(slots[c].tolist()):
            row[slot] = context[c, m] if context.dim() == 3 else context[m]
    return rows


@pytest.mark.parametrize("per_class", [False, True])
def test_insert_context_against_a_loop(per_class: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    slots = torch.tensor([[1, 2], [1, 4], [3, 2]])
    shape = (3, 2, 5) if per_class else (2, 5)
    context = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    before = embeddings.clone()
    groups = torch.stack([embeddings, embeddings])
    result = insert_context(groups, slots, torch.stack([context, 2 * context]))
    assert torch.equal(result[1] - result[0], insert_context(0 * groups, slots, context[None])[0])
    result = result[0]
    expected = torch.stack([torch.stack(list(row)) for row in reference_insert(embeddings, slots, context)])
    assert torch.equal(result, expected)
    assert torch.equal(embeddings, before)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad((result * weights).sum(), context)
    (reference,) = torch.autograd.grad((expected * weights).sum(), context)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-14)


def test_fixed_words_stand_between_context_and_name() -> None:
    tokenizer = prompt_tokenizer()
    fixed = tokenizer.words("of a")
    layout = place_context(tokenizer, ["cat", "blue dog"], 2, "end", fixed)
    x = tokenizer.decode([tokenizer.placeholder_id])
    expected = tokenizer.tokenize([f"{x} {x} of a cat.", f"{x} {x} of a blue dog."])
    assert torch.equal(layout.ids, expected)
    start = len(tokenizer.start_ids)
    assert layout.slots.tolist() == [[start, start + 1]] * 2
    with pytest.raises(ValueError, match="Expected position end for fixed words"):
        place_context(tokenizer, ["cat"], 2, "middle", fixed)
