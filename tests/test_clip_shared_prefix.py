"""The packed tower: which families it serves, what it computes, deep prompts, chunks, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import (
    CLASS_NAMES,
    FAMILIES,
    FEATURES,
    WIDTH,
    own_text_features,
    reference_embeddings,
    tiny_backbone,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone, TextOptions
from cma_tune.clip.context_prompts import ContextPrompts, _say_unpacked
from cma_tune.clip.prompts import PromptLayout, place_context
from cma_tune.errors import UserError
from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)

PACKED = {
    "clip-vit",
    "clip-resnet",
    "clip-eos",
    "custom-text",
    "custom-text-timm",
    "coca",
    "coca-correct-mask",
    "transformers-clip",
    "transformers-clip-eos",
    "transformers-metaclip2",
}
"""Causal towers of plain blocks."""

NAMES = st.lists(
    st.lists(st.sampled_from(("cat", "red", "triangle", "forest", "F-16A/B")), min_size=1, max_size=2).map(
        " ".join
    ),
    min_size=1,
    max_size=5,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_packed_by_what_they_are(family: str) -> None:
    backbone = tiny_backbone(family)
    prompts = ContextPrompts(backbone, place_context(backbone.tokenizer, CLASS_NAMES, 2, "end"))
    assert prompts.packs == (family in PACKED)


@pytest.mark.parametrize("family", ["clip-vit", "transformers-clip"])
def test_no_padding_goes_through_the_tower(family: str) -> None:
    """Start and context once; of each class its words and its end."""
    backbone = tiny_backbone(family)
    prompts = ContextPrompts(backbone, place_context(backbone.tokenizer, CLASS_NAMES, 4, "end"))
    rows: list[int] = []
    first = own_blocks(backbone)[0].mlp
    hook = first.register_forward_hook(lambda _, arguments, __: rows.append(arguments[0].shape[:-1].numel()))
    try:
        prompts.encode(draw(1, 4, WIDTH))
    finally:
        hook.remove()
    words = [len(backbone.tokenizer.following_words(f"{name}.")) + 1 for name in CLASS_NAMES]
    assert rows == [1 + 4 + sum(words)]


def own_blocks(backbone: Backbone) -> Any:
    """The model's blocks."""
    model: Any = backbone.model
    if hasattr(model, "text_model"):
        return model.text_model.encoder.layers
    return getattr(model, "text", model).transformer.resblocks


def by_hand(backbone: Backbone, layout: PromptLayout, contexts: list[Tensor], group: int) -> Tensor:
    """Features ``[C, D]`` by the model's own blocks on whole prompts, one at a time.

    The first of `contexts` stands among the embeddings, the others replace hidden states.
    """
    if hasattr(backbone.model, "text_model"):
        return by_hand_in_transformers(backbone, layout, contexts, group)
    model: Any = backbone.model
    text = getattr(model, "text", model)
    appended = getattr(text, "cls_emb", None)
    features = []
    for c, ids in enumerate(layout.ids):
        values = [context[group, c] if context.dim() == 4 else context[group] for context in contexts]
        x = reference_embeddings(backbone, ids)
        x = torch.stack([values[0][list(slots).index(i)] if i in slots else x[i]
                         for slots in [layout.slots[c].tolist()] for i in range(len(x))])  # fmt: skip
        mask = text.attn_mask
        if appended is not None:
            x = torch.cat([x, appended[None]])
            mask = mask + text._build_additive_mask(ids[None], len(x), x.dtype)[0]
        x = x + text.positional_embedding[: len(x)]
        for number, block in enumerate(text.transformer.resblocks):
            if 0 < number < len(values):
                slots = layout.slots[c].tolist()
                x = torch.stack(
                    [values[number][slots.index(i)] if i in slots else x[i] for i in range(len(x))]
                )
            x = block(x[None], attn_mask=mask)[0]
        x = text.ln_final(x)
        pooled = len(x) - 1 if appended is not None else int(backbone.tower.pooled_index(ids[None]))  # type: ignore[operator]
        features.append(x[pooled] @ text.text_projection)
    return nn.functional.normalize(torch.stack(features), dim=-1)


def by_hand_in_transformers(
    backbone: Backbone, layout: PromptLayout, contexts: list[Tensor], group: int
) -> Tensor:
    """The same by the model's whole forward, in which hooks put the contexts in their places."""
    features = []
    for c, ids in enumerate(layout.ids):
        values = [context[group, c] if context.dim() == 4 else context[group] for context in contexts]
        slots = layout.slots[c].tolist()

        def put(x: Tensor, value: Tensor, slots: list[int] = slots) -> Tensor:
            rows = [value[slots.index(i)] if i in slots else x[0, i] for i in range(x.shape[1])]
            return torch.stack(rows)[None]

        hooks = [
            own_blocks(backbone)[number].register_forward_pre_hook(
                lambda _, arguments, value=value: (put(arguments[0], value), *arguments[1:])
            )
            for number, value in enumerate(values)
            if number
        ]
        try:
            embeddings = put(reference_embeddings(backbone, ids[None]), values[0])
            features.append(own_text_features(backbone, ids[None], embeddings)[0])
        finally:
            for hook in hooks:
                hook.remove()
    return nn.functional.normalize(torch.stack(features), dim=-1)


@settings(max_examples=100, deadline=None)
@given(
    family=st.sampled_from(sorted(PACKED)),
    names=NAMES,
    tokens=st.integers(1, 3),
    position=st.sampled_from(["end", "middle", "front"]),
    # Whether contexts are per class: the first, and that before the second block, if there is one.
    per_class=st.sampled_from(
        [(False,), (True,), (False, False), (True, True), (False, True), (True, False)]
    ),
    options=st.sampled_from([TextOptions(), TextOptions(chunk=2), TextOptions(share_prefix=False, chunk=3)]),
    seed=st.integers(0, 2**16),
)
def test_groups_and_deep_prompts_equal_whole_prompts_block_by_block(
    family: str,
    names: list[str],
    tokens: int,
    position: Any,
    per_class: tuple[bool, ...],
    options: TextOptions,
    seed: int,
) -> None:
    backbone, groups = tiny_backbone(family), 3
    layout = place_context(backbone.tokenizer, names, tokens, position)
    prompts = ContextPrompts(backbone, layout, per_class[0])
    shapes = [(groups, len(names), tokens, WIDTH) if own else (groups, tokens, WIDTH) for own in per_class]
    contexts = [draw(*shape, seed=seed + number) for number, shape in enumerate(shapes)]
    before, backbone.text_options = backbone.text_options, options
    try:
        ours = prompts.encode(contexts[0], contexts[1:])
    finally:
        backbone.text_options = before
    expected = torch.stack([by_hand(backbone, layout, contexts, g) for g in range(groups)])
    assert ours.shape == (groups, len(names), FEATURES)
    assert float((ours - expected).detach().abs().max()) <= 1e-12
    weights = draw(*ours.shape, seed=seed).detach()
    for gradient, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), contexts),
        torch.autograd.grad((expected * weights).sum(), contexts),
        strict=True,
    ):
        assert float((gradient - wanted).abs().max()) <= 1e-12 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("family", ["clip-vit", "hf-bert-cls"])
def test_too_deep_a_prompt_is_refused(family: str) -> None:
    backbone = tiny_backbone(family)
    prompts = ContextPrompts(backbone, place_context(backbone.tokenizer, ["cat"], 2, "end"))
    context = draw(1, 2, WIDTH)
    with pytest.raises(UserError, match=f"Expected at most 1 deep contexts.*for '{family}'"):
        prompts.encode(context, [context] * (2 if family == "clip-vit" else 1))


def test_a_padding_token_among_the_words_keeps_coca_exact(caplog: pytest.LogCaptureFixture) -> None:
    """CLIP reads the "!" of "!%" as id 0, its padding id, which CoCa masks wherever it stands."""
    _say_unpacked.cache_clear()
    backbone = tiny_backbone("coca")
    layout = place_context(backbone.tokenizer, ["cat", "dog !% red"], 2, "end")
    assert (layout.ids[1] == 0).sum() > (layout.ids[1].flip(0).cumsum(0) == 0).sum()
    prompts = ContextPrompts(backbone, layout)
    context = draw(1, 2, WIDTH)
    expected = by_hand(backbone, layout, [context], 0)
    assert not prompts.packs
    ContextPrompts(backbone, layout)
    (said,) = caplog.messages  # once, however often
    assert "padding token of 'coca'" in said and "not packed" in said
    assert float((prompts.encode(context)[0] - expected).detach().abs().max()) <= 1e-12


def coop(options: TextOptions, monkeypatch: pytest.MonkeyPatch, family: str = "clip-vit") -> CoOp:
    backbone = tiny_backbone(family, torch.float32)
    monkeypatch.setattr(backbone, "text_options", options)
    learner = CoOp(backbone, CLASS_NAMES, ContextOptions(3), seed=1)
    with torch.no_grad():
        learner.context.mul_(20)
    return learner


def gradient(learner: CoOp) -> Tensor:
    features = learner.text_features()
    weights = draw(*features.shape).detach().to(features.dtype)
    (found,) = torch.autograd.grad((features * weights).sum(), learner.context)
    return found


@pytest.mark.parametrize("family", ["clip-vit", "transformers-clip", "transformers-siglip"])
@pytest.mark.parametrize("options", [TextOptions(), TextOptions(chunk=2), TextOptions(share_prefix=False)])
def test_bfloat16_autocast_stays_near_float32(
    family: str, options: TextOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = coop(options, monkeypatch, family)
    exact, wanted = learner.text_features(), gradient(learner)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, found = learner.text_features(), gradient(learner)
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert float((half - exact).detach().abs().max()) < 0.03
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("family", ["clip-vit", "transformers-clip"])
def test_compiling_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated by the compiler's front; its code generation would need a C++ compiler."""
    from cma_tune.clip import context_prompts

    learner = coop(TextOptions(), monkeypatch, family)
    expected, wanted = learner.text_features(), gradient(learner)
    compiled = torch.compile(context_prompts.encode_packed, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(context_prompts, "_compiled", lambda: compiled)
    monkeypatch.setattr(learner.backbone, "text_options", TextOptions(compile=True))
    torch.testing.assert_close(learner.text_features(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient(learner), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("kib", [40, 150, 10_000])
def test_what_is_kept_for_the_backward_pass_stays_within_the_memory(
    groups: int, share_prefix: bool, kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that autograd saves in any one piece, recomputed or not, counted once per storage."""
    from cma_tune.clip import context_prompts

    backbone = tiny_backbone("clip-vit", torch.float32)
    options = TextOptions(share_prefix, memory=kib / 2**20)
    monkeypatch.setattr(backbone, "text_options", options)
    # Short names and long ones: sorted by length, the last chunk holds nothing but long ones.
    names = [f"{word} {other}" for word in ("cat", "dog", "red") for other in ("x", "forest", "F-16A/B")]
    prompts = ContextPrompts(backbone, place_context(backbone.tokenizer, names, 3, "end"))
    frozen = {parameter.data_ptr() for parameter in backbone.parameters()}
    kept: list[int] = []
    encode = context_prompts.ContextPrompts._encode

    def measured(self: Any, part: Any, *inputs: Tensor) -> Tensor:
        held: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = encode(self, part, *inputs)
        kept.append(sum(held.values()))
        return features

    monkeypatch.setattr(context_prompts.ContextPrompts, "_encode", measured)
    context = torch.randn(groups, 3, WIDTH, requires_grad=True)
    with torch.enable_grad():
        prompts.encode(context).sum().backward()
    least = len(kept) // 2 == groups * len(names)  # one prompt at a time is the smallest there is
    assert least or max(kept) <= kib * 1024
    if kib != 150:  # between them it hangs on the form
        assert (len(kept) == 1) == (kib == 10_000)
