"""TCP against its construction: open_clip's own forward with the tokens put in by a hook."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from families import (
    CLASS_NAMES,
    PREPROCESSING,
    Family,
    own_text_features,
    reference_embeddings,
    tiny_backbone,
    tiny_model,
)
from method_checks import check_files, check_step, cross_entropy_by_loop, images, mixed, step
from tiny_tokenizers import tiny_tokenizer
from torch import Tensor

from cma_tune.clip.backbone import Backbone, TextOptions
from cma_tune.errors import UserError
from cma_tune.learners import Learner, Tcp, ZeroShot
from cma_tune.learners.coop import ContextOptions

TEMPLATES = ["a drawing of a {}."]
TOKENS = 3


@cache
def backbone() -> Backbone:
    """With four blocks, so that there are some before, between and after."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer("clip", Path(folder))
        model = tiny_model(Family(text={"layers": 4}), tokenizer, Path(folder))
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**PREPROCESSING), is_train=False
    )
    return Backbone(model.double(), tokenizer, transform, "four-blocks")


def make(layer: int | None = 2) -> Tcp:
    options = ContextOptions(TOKENS)
    learner = Tcp(backbone(), CLASS_NAMES, TEMPLATES, options, seed=2, layer=layer).double()
    learner.context.data.mul_(20)
    return learner


def hand_prompts() -> Tensor:
    return ZeroShot(backbone(), CLASS_NAMES, TEMPLATES).embeddings


def text_of(learner: Learner) -> Tensor:
    """Unit text features ``[C, D]``, class by class."""
    assert isinstance(learner, Tcp)
    down, up = learner.bottleneck
    model: Any = backbone().model
    tokenizer: Any = backbone().tokenizer._tokenizer
    rows = []
    for name, hand in zip(CLASS_NAMES, hand_prompts(), strict=True):
        hidden = down.weight @ hand + down.bias
        tokens = (up.weight @ (hidden / (1 + torch.exp(-1.702 * hidden))) + up.bias).reshape(TOKENS, -1)

        def put_in(module: Any, arguments: Any, tokens: Tensor = tokens) -> Any:
            x, *rest = arguments
            return (torch.cat([x[:, :1], tokens[None], x[:, 1 + TOKENS :]], dim=1), *rest)

        ids = tokenizer([" ".join(["X"] * TOKENS) + f" {name}."])
        embedded = reference_embeddings(backbone(), ids)
        embedded = torch.cat([embedded[:, :1], learner.context[None], embedded[:, 1 + TOKENS :]], dim=1)
        hook = model.transformer.resblocks[learner.layer].register_forward_pre_hook(put_in)
        try:
            feature = own_text_features(backbone(), ids, embedded)[0]
        finally:
            hook.remove()
        rows.append(feature / feature.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("share", [True, False])
def test_its_text_is_that_of_the_construction(layer: int, share: bool) -> None:
    learner = make(layer)
    before = backbone().text_options
    backbone().text_options = TextOptions(share_prefix=share)
    try:
        torch.testing.assert_close(learner.text_features(), text_of(learner), rtol=0, atol=1e-11)
    finally:
        backbone().text_options = before


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_step_is_that_of_the_formula(weight: float) -> None:
    def loss(learner: Learner) -> Tensor:
        text = text_of(learner)
        cosines = [t.dot(hand) for t, hand in zip(text, hand_prompts(), strict=True)]
        own = cross_entropy_by_loop(backbone().scale * images() @ text.T)
        return mixed(own + 8.0 * (1 - torch.stack(cosines).mean()), images(), text, weight)

    # The context loses its places to the tokens, but what it did to the words' tokens before stays.
    check_step(make, loss, weight)


def test_chunks_give_the_same_gradients() -> None:
    whole = step(make(), images(), weight=0.3)
    before = backbone().text_options
    backbone().text_options = replace(before, chunk=2)
    try:
        parts = step(make(), images(), weight=0.3)
    finally:
        backbone().text_options = before
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-11)


def test_the_layer_is_two_thirds_up_unless_given_and_must_be_there() -> None:
    assert make(None).layer == 2  # 8 of the 12 of ViT-B/16
    options = ContextOptions(TOKENS)
    assert Tcp(tiny_backbone("clip-vit"), CLASS_NAMES, TEMPLATES, options).layer == 1
    for layer in (0, 4):
        with pytest.raises(UserError, match=f"with a block {layer} .* with 4 blocks in 'four-blocks'"):
            make(layer)
    with pytest.raises(UserError, match="got another with 2 blocks in 'hf-roberta-mean'"):
        Tcp(tiny_backbone("hf-roberta-mean"), CLASS_NAMES, TEMPLATES, options)


def test_files_give_it_back_and_other_classes_take_it(tmp_path: Path) -> None:
    again = check_files(make().float(), tmp_path)
    assert isinstance(again, Tcp) and (again.layer, again.weight) == (2, 8.0)
    other = again.for_classes(["forest", "cat"])
    torch.testing.assert_close(other.text_features()[1], again.text_features()[0], rtol=0, atol=1e-6)
    assert [p is q for p, q in zip(other.parameters(), again.parameters(), strict=True)] == [True] * 5


def test_class_specific_contexts_stay_with_their_classes() -> None:
    options = ContextOptions(TOKENS, per_class=True)
    learner = Tcp(backbone(), CLASS_NAMES, TEMPLATES, options)
    assert learner.text_features().shape[0] == len(CLASS_NAMES)
    with pytest.raises(UserError, match="belong to the classes they were learned on"):
        learner.for_classes(["forest"])
