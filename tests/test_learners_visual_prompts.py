"""VPT, IVLP, MaPLe and PromptSRC against loops over patches and heads, and open_clip's own text forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from families import CLASS_NAMES, tiny_backbone
from method_checks import LABELS, check_files, check_step, cross_entropy_by_loop, mixed, step
from prompt_references import LAYERS, deep_backbone, image_by_loop, pixels, text_by_hooks
from tiny_runs import cpu
from torch import Tensor, nn
from torch.nn.functional import kl_div, l1_loss

from cma_tune.clip.backbone import TextOptions
from cma_tune.config import FewShotConfig
from cma_tune.data.batches import StoredBatches
from cma_tune.errors import UserError
from cma_tune.learners import Ivlp, Learner, MaPLe, PromptSrc, Vpt
from cma_tune.learners.coop import ContextOptions
from cma_tune.learners.deep_prompts import DeepPrompts, VisualPrompts
from cma_tune.methods import Given, make_learner
from cma_tune.train import Recipe, fit

TEMPLATES = ["a drawing of a {}."]
WORDS = "a photo of a"
BEGINNING = ContextOptions(words=WORDS, learned=2)
NAMES = ("vpt", "ivlp", "maple", "promptsrc")


def anchors() -> Tensor:
    text = torch.randn(len(CLASS_NAMES), 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return nn.functional.normalize(text, dim=-1)


def make(name: str, depth: int = 3) -> VisualPrompts:
    shared: dict[str, Any] = {"seed": 2, "depth": depth}
    learner: VisualPrompts
    if name == "vpt":
        learner = Vpt(deep_backbone(), CLASS_NAMES, TEMPLATES, tokens=3, **shared)
    elif name == "ivlp":
        learner = Ivlp(deep_backbone(), CLASS_NAMES, BEGINNING, image_tokens=3, **shared)
    elif name == "maple":
        learner = MaPLe(deep_backbone(), CLASS_NAMES, BEGINNING, **shared)
    else:
        learner = PromptSrc(deep_backbone(), CLASS_NAMES, BEGINNING, anchors=anchors(), **shared)
    learner.double()
    for parameter in learner.parameters():
        if parameter.std() < 0.1:
            parameter.data.mul_(20)
    return learner


def language(learner: Learner) -> list[Tensor]:
    assert isinstance(learner, DeepPrompts)
    return [learner.context, *([] if learner.deep is None else learner.deep)]


def visual(learner: Learner) -> Sequence[Tensor]:
    if isinstance(learner, Vpt):
        return list(learner.prompts)
    if isinstance(learner, Ivlp):
        return list(learner.visual)
    assert isinstance(learner, MaPLe)
    layers: Any = learner.projections
    return [p @ layer.weight.T + layer.bias for p, layer in zip(language(learner), layers, strict=True)]


def images_of(learner: Learner, images: Tensor) -> Tensor:
    prompts = visual(learner)
    return torch.stack([image_by_loop(deep_backbone(), image, prompts) for image in images])


def text_of(learner: Learner, names: Sequence[str] = CLASS_NAMES) -> Tensor:
    if isinstance(learner, Vpt):
        return deep_backbone().encode_texts([f"a drawing of a {name}." for name in names])
    contexts = language(learner)
    return torch.stack([text_by_hooks(deep_backbone(), f"{WORDS} {name}.", contexts) for name in names])


def held_back(learner: PromptSrc, images: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """PromptSRC's three terms, entry by entry."""
    scale, total = deep_backbone().scale, torch.zeros((), dtype=torch.float64)
    frozen = torch.stack([image_by_loop(deep_backbone(), each, []) for each in images])
    for feature, before in zip(image, frozen, strict=True):
        p = torch.softmax(scale * text @ feature, dim=0)
        q = torch.softmax(scale * anchors() @ before, dim=0)
        divergence = sum(float(b) * (b.log() - a.log()) for a, b in zip(p, q, strict=True))
        total = total + divergence / len(p) + 10 * (feature - before).abs().sum() / len(feature)
    return total / len(images) + 25 * (text - anchors()).abs().sum() / text.numel()


@pytest.mark.parametrize("depth", [1, 3, LAYERS])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_construction(name: str, depth: int) -> None:
    learner, images = make(name, depth), pixels(2)
    output = learner(images)
    image, text = images_of(learner, images), text_of(learner)
    torch.testing.assert_close(output.image_features, image, rtol=0, atol=1e-11)
    torch.testing.assert_close(output.text_features, text, rtol=0, atol=1e-11)
    torch.testing.assert_close(output.logits, deep_backbone().scale * image @ text.T, rtol=0, atol=1e-9)
    # Features that were computed before need no images.
    torch.testing.assert_close(learner(learner.encode_images(images)).logits, output.logits, rtol=0, atol=0)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_formula(name: str, weight: float) -> None:
    images = pixels(len(LABELS))

    def loss(learner: Learner) -> Tensor:
        image, text = images_of(learner, images), text_of(learner)
        own = cross_entropy_by_loop(deep_backbone().scale * image @ text.T)
        if isinstance(learner, PromptSrc):
            own = own + held_back(learner, images, image, text)
        return mixed(own, image, text, weight)

    check_step(lambda: make(name), loss, weight, given=images)


def test_what_holds_each_image_back_is_the_whole_batchs_mean() -> None:
    learner = make("promptsrc").train()
    assert isinstance(learner, PromptSrc)
    output = learner(pixels(5))
    each = learner.regulariser(output)
    assert each.shape == (5,)
    frozen = deep_backbone().encode_image(pixels(5))
    before = (deep_backbone().scale * frozen @ anchors().T).log_softmax(dim=1)
    now = output.logits.log_softmax(dim=1)
    divergence = kl_div(now, before, log_target=True, reduction="sum") / now.numel()
    text = 25 * l1_loss(output.text_features, anchors())
    whole = divergence + text + 10 * l1_loss(output.image_features, frozen)
    torch.testing.assert_close(each.mean(), whole, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="Expected images"):
        learner.regulariser(learner(output.image_features))


class Watched(PromptSrc):
    """Remembers the parameters after every epoch."""

    def end_epoch(self, epoch: int, epochs: int) -> None:
        self.seen = [*getattr(self, "seen", []), [p.detach().clone() for p in self.parameters()]]
        super().end_epoch(epoch, epochs)


def test_what_is_left_is_the_weighed_mean_over_the_epochs() -> None:
    learner = Watched(deep_backbone(), CLASS_NAMES, BEGINNING, depth=2, anchors=anchors(), std=1.5).double()
    data = StoredBatches(pixels(len(LABELS))[None], LABELS, len(LABELS), 0)
    fit(learner, data, Recipe(4, lr=0.1, warmup_lr=0.1), cpu())
    density = scipy.stats.norm.pdf([1, 2, 3, 4], 3, 1.5)  # three quarters of 4 epochs
    assert len(learner.seen) == 4
    for number, parameter in enumerate(learner.parameters()):
        own = [epoch[number] for epoch in learner.seen]
        expected = sum(w * value for w, value in zip(density / density.sum(), own, strict=True))
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-12)
        assert (parameter - own[-1]).abs().max() > 1e-5


def test_epochs_far_from_the_mean_have_weights_too() -> None:
    learner = make("promptsrc")
    assert isinstance(learner, PromptSrc)
    density = scipy.stats.norm.pdf(range(1, 21), 15, 1)  # the authors' 20 epochs
    assert learner.epoch_weights(20) == pytest.approx(list(density / density.sum()), abs=1e-15)
    learner.mean = 100.0
    assert learner.epoch_weights(2) == pytest.approx([0, 1], abs=1e-30)


@pytest.mark.parametrize("name", NAMES)
def test_files_give_it_back_and_other_classes_take_it(name: str, tmp_path: Path) -> None:
    again = check_files(make(name).float(), tmp_path, pixels(3))
    assert isinstance(again, VisualPrompts) and again.depth == 3
    other = again.for_classes(["forest", "cat"])
    assert type(other) is type(again) and other.describe() == again.describe()
    assert all(p is q for p, q in zip(other.parameters(), again.parameters(), strict=True))
    expected = text_of(again.double(), ["forest", "cat"])
    torch.testing.assert_close(other.text_features().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ivlp", "maple"])
def test_chunks_and_unshared_beginnings_give_the_same_gradients(name: str) -> None:
    whole, before = step(make(name), pixels(len(LABELS)), 0.3), deep_backbone().text_options
    try:
        for options in (replace(before, chunk=2), TextOptions(share_prefix=False)):
            deep_backbone().text_options = options
            for key, gradient in step(make(name), pixels(len(LABELS)), 0.3).items():
                torch.testing.assert_close(gradient, whole[key], rtol=0, atol=1e-11)
    finally:
        deep_backbone().text_options = before


def made(name: str, **changes: Any) -> Learner:
    config = FewShotConfig(learner=name)  # type: ignore[arg-type]
    config = replace(config, **{name: replace(getattr(config, name), **changes)})
    backbone = tiny_backbone("clip-vit") if changes else deep_backbone()

    def no_support() -> Any:
        raise AssertionError("these methods need no stored features")

    return make_learner(config, Given(backbone, CLASS_NAMES, TEMPLATES, 3, no_support))


def test_defaults_are_the_papers_shares_of_the_blocks() -> None:
    depths = {name: made(name).describe()["options"]["depth"] for name in NAMES}
    assert depths == {"vpt": 4, "ivlp": 4, "maple": 3, "promptsrc": 3}  # 12, 12, 9 and 9 of 12
    shapes = {name: [tuple(prompt.shape) for prompt in visual(made(name))] for name in NAMES}
    assert shapes == {
        "vpt": [(8, 24)] * 4,
        "ivlp": [(2, 24)] * 4,
        "maple": [(2, 24)] * 3,
        "promptsrc": [(4, 24)] * 3,
    }


def test_starts_are_the_words_and_draws_of_the_seed() -> None:
    ids = deep_backbone().tokenizer.words(WORDS)
    embedded = deep_backbone().tower.vocabulary()[ids].float()
    for name, tokens in (("ivlp", 2), ("maple", 2), ("promptsrc", 4)):
        one, again = made(name), made(name)
        context, *deep = language(one)
        torch.testing.assert_close(context.detach(), embedded[:tokens])
        for p, q in zip(one.parameters(), again.parameters(), strict=True):
            assert torch.equal(p, q)
        for prompt in deep:
            assert 0.01 < prompt.std() < 0.03
    assert not torch.equal(visual(made("ivlp"))[0], visual(made("ivlp"))[1])
    random = made("maple", words=None, tokens=5)
    assert [tuple(prompt.shape) for prompt in language(random)] == [(5, 16)]


def test_promptsrcs_anchors_are_the_mean_of_sixty_prompts() -> None:
    learner = made("promptsrc")
    assert isinstance(learner, PromptSrc) and learner.anchors is not None
    import open_clip

    prompts = [template("F-16A/B") for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:60]]
    assert {"a photo of a F-16A/B.", "itap of the F-16A/B."} <= set(prompts)
    mean = deep_backbone().encode_texts(prompts).mean(dim=0)
    torch.testing.assert_close(learner.anchors[CLASS_NAMES.index("F-16A/B")], mean / mean.norm())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vpt", {"depth": 2}, "Expected --vpt.depth from 1 to 1, .* in 'clip-vit', got 2; "),
        ("ivlp", {"depth": 3}, "Expected --ivlp.depth from 1 to 1, .* in 'clip-vit', got 3; "),
        (
            "maple",
            {"tokens": 5},
            "Expected 1 to 4 learned tokens .* the words 'a photo of a', got 5",
        ),
        ("maple", {"words": " "}, "Expected words to start the context from, got ' '"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(name, **changes)


def test_other_towers() -> None:
    with pytest.raises(UserError, match="vision transformer for visual prompts in 'clip-resnet'"):
        MaPLe(tiny_backbone("clip-resnet"), CLASS_NAMES, BEGINNING)
    # A text tower of another kind takes a context at its beginning alone.
    shallow = MaPLe(tiny_backbone("hf-roberta-mean"), CLASS_NAMES, BEGINNING)
    assert shallow.depth == 1 and shallow(pixels(2)).logits.shape == (2, len(CLASS_NAMES))
    with pytest.raises(UserError, match="from 1 to 1, the blocks that take prompts in 'hf-roberta-mean'"):
        Ivlp(tiny_backbone("hf-roberta-mean"), CLASS_NAMES, BEGINNING, depth=2)
    with pytest.raises(UserError, match="Expected a shared context for ivlp, got class-specific ones"):
        Ivlp(deep_backbone(), CLASS_NAMES, ContextOptions(2, per_class=True))
