"""CoOp against its own construction, by loops and by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import image_features, logits_by_loop, text_by_coop
from torch import Tensor, nn

from cma_tune.errors import UserError
from cma_tune.learners import CoCoOp, CoOp, ZeroShot
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)

POSITIONS = pytest.mark.parametrize("position", ["end", "middle", "front"])


@POSITIONS
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("family", ["clip-vit", "custom-blocks", "coca", "mobileclip-s"])
def test_coop_against_its_own_construction(family: str, per_class: bool, position: Any) -> None:
    backbone = tiny_backbone(family)
    learner = CoOp(backbone, CLASS_NAMES, ContextOptions(3, position, per_class), seed=5).double()
    with torch.no_grad():
        learner.context.mul_(20)
    images, labels = image_features(), torch.tensor([0, 3, 3, 1])
    output = learner(images)
    text = text_by_coop(backbone, CLASS_NAMES, learner.context, position)
    expected = learner.backbone.scale * images @ text.T
    torch.testing.assert_close(output.text_features, text, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        output.logits.detach(), logits_by_loop(backbone, images, text), rtol=0, atol=1e-11
    )
    (ours,) = torch.autograd.grad(nn.functional.cross_entropy(output.logits, labels), learner.context)
    (reference,) = torch.autograd.grad(nn.functional.cross_entropy(expected, labels), learner.context)
    assert reference.abs().max() > 1e-4
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_class", [False, True])
def test_gradient_of_the_context_by_finite_differences(per_class: bool) -> None:
    backbone = tiny_backbone("clip-vit")
    learner = CoOp(backbone, ["cat", "blue dog"], ContextOptions(2, "middle", per_class)).double()
    images, labels, step = image_features(), torch.tensor([0, 1, 1, 0]), 1e-5

    def loss() -> Tensor:
        return nn.functional.cross_entropy(learner(images).logits, labels)

    (gradient,) = torch.autograd.grad(loss(), learner.context)
    numeric = torch.zeros_like(gradient)
    values, by_number = learner.context.data.view(-1), numeric.view(-1)
    with torch.no_grad():
        for i in range(len(values)):
            before = values[i].clone()
            values[i] = before + step
            above = loss()
            values[i] = before - step
            by_number[i] = (above - loss()) / (2 * step)
            values[i] = before
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, numeric, rtol=0, atol=1e-7 * float(gradient.abs().max()) + 1e-9)


def test_the_random_start() -> None:
    backbone = tiny_backbone("clip-vit", torch.float32)
    names = ("cat", "dog", "forest")
    first = CoOp(backbone, names, ContextOptions(16), seed=1)
    assert first.context.shape == (16, backbone.tower.width) and first.context.dtype == torch.float32
    assert torch.equal(first.context, CoOp(backbone, ["dog"], ContextOptions(16), seed=1).context)
    assert not torch.equal(first.context, CoOp(backbone, names, ContextOptions(16), seed=2).context)
    own = CoOp(backbone, names, ContextOptions(16, per_class=True), seed=1).context
    assert own.shape == (len(names), 16, backbone.tower.width)
    assert not torch.equal(own[0], own[1])
    # 768 draws of N(0, 0.02²): the deviation is within 15 % by more than five standard errors.
    drawn = own.detach()
    assert abs(float(drawn.std()) - 0.02) < 0.003 and abs(float(drawn.mean())) < 0.004


def test_the_start_leaves_the_global_generator_alone() -> None:
    backbone = tiny_backbone("clip-vit", torch.float32)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    CoOp(backbone, CLASS_NAMES, ContextOptions(4), seed=1)
    CoCoOp(backbone, CLASS_NAMES, ContextOptions(4), seed=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_start_from_words_gives_the_words_features(per_class: bool) -> None:
    """With the context untrained, CoOp's prompt "a photo of a NAME." is the template's."""
    backbone = tiny_backbone("clip-vit")
    learner = CoOp(backbone, CLASS_NAMES, ContextOptions(16, "end", per_class, "a_photo_of a"))
    assert learner.options.tokens == 4 and learner.context.shape[-2] == 4
    expected = ZeroShot(backbone, CLASS_NAMES, ["a photo of a {}."]).text_features()
    # The context is kept in float32.
    torch.testing.assert_close(learner.text_features().detach(), expected, rtol=0, atol=1e-6)


def test_a_start_from_no_words_or_tokens_is_refused() -> None:
    backbone = tiny_backbone("clip-vit")
    with pytest.raises(UserError, match="Expected words"):
        CoOp(backbone, CLASS_NAMES, ContextOptions(words=" "))
    with pytest.raises(UserError, match="at least 1 context token, got 0"):
        CoOp(backbone, CLASS_NAMES, ContextOptions(0))


def test_a_context_of_another_shape_is_refused() -> None:
    backbone = tiny_backbone("clip-vit")
    for shape, options, wanted in (
        ((3, 5), ContextOptions(3), r"\[tokens, 16\], got \[3, 5\]"),
        ((2, 3, 16), ContextOptions(3), r"\[tokens, 16\]"),
        ((2, 3, 16), ContextOptions(3, per_class=True), r"\[5, tokens, 16\]"),
        ((3, 16), ContextOptions(3, per_class=True), r"\[5, tokens, 16\]"),
    ):
        with pytest.raises(UserError, match=wanted):
            CoOp(backbone, CLASS_NAMES, options, context=nn.Parameter(torch.zeros(shape)))


@POSITIONS
def test_other_classes_share_the_learned_context(position: Any) -> None:
    backbone = tiny_backbone("clip-vit")
    learner = CoOp(backbone, CLASS_NAMES, ContextOptions(3, position))
    other = learner.for_classes(["forest", "a very much longer name", "cat"])
    assert other.context is learner.context and other.options == learner.options
    assert len(other.class_names) == 3 and other(image_features()).logits.shape == (4, 3)
    # The same name gives the same feature in whichever company, also after another step of learning.
    with torch.no_grad():
        learner.context.add_(0.1)
        torch.testing.assert_close(other.text_features()[2], learner.text_features()[0], rtol=0, atol=1e-12)


def test_class_specific_contexts_stay_with_their_classes() -> None:
    learner = CoOp(tiny_backbone("clip-vit"), CLASS_NAMES, ContextOptions(3, per_class=True))
    with pytest.raises(UserError, match="belong to the classes they were learned on"):
        learner.for_classes(["forest"])


def test_only_the_context_is_learned_and_saved() -> None:
    learner = CoOp(tiny_backbone("clip-vit"), CLASS_NAMES, ContextOptions(3))
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    assert list(learner.state_dict()) == ["context"]


def test_logits_keep_full_precision_under_autocast() -> None:
    """Cosines in bfloat16, scaled by 100, would move by whole units."""
    backbone = tiny_backbone("clip-vit", torch.float32)
    learner, images = CoOp(backbone, CLASS_NAMES, ContextOptions(3)), image_features().float()
    text = learner.text_features().detach()
    expected = learner(images, text).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(learner(images, text).logits, expected)
        assert learner(images).logits.dtype == torch.float32
