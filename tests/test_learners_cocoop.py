"""CoCoOp against a loop over images, whole and in turns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import CLASS_NAMES, FEATURES, tiny_backbone
from learner_references import image_features, text_by_coop
from torch import Tensor, nn

from cma_tune.clip import context_prompts
from cma_tune.clip.backbone import TextOptions
from cma_tune.errors import UserError
from cma_tune.learners import CoCoOp, CoOp
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)

POSITIONS = pytest.mark.parametrize("position", ["end", "middle", "front"])


def cocoop_learner(position: Any = "end") -> CoCoOp:
    learner = CoCoOp(tiny_backbone("clip-vit"), CLASS_NAMES, ContextOptions(3, position), seed=2).double()
    with torch.no_grad():
        learner.context.mul_(20)
        for parameter in learner.meta_net.parameters():
            parameter.add_(0.3)
    return learner


def text_by_cocoop(learner: CoCoOp, images: Tensor, position: str) -> Tensor:
    """One image at a time: the meta-net's shift by hand, then CoOp's construction: ``[B, C, D]``."""
    weights = dict(learner.meta_net.named_parameters())
    features = []
    for image in images:
        hidden = (weights["0.weight"] @ image + weights["0.bias"]).clamp(min=0)
        shift = weights["2.weight"] @ hidden + weights["2.bias"]
        context = torch.stack([vector + shift for vector in learner.context])
        features.append(text_by_coop(learner.backbone, CLASS_NAMES, context, position))
    return torch.stack(features)


def gradients(loss: Tensor, learner: CoCoOp, images: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*learner.parameters(), images]))


@POSITIONS
def test_cocoop_against_a_loop_over_images(position: Any) -> None:
    learner = cocoop_learner(position)
    images, labels = image_features().requires_grad_(), torch.tensor([0, 3, 3, 1])
    output = learner(images)
    text = text_by_cocoop(learner, images, position)
    expected = learner.backbone.scale * (images[:, None] * text).sum(dim=-1)
    assert (text[0] - text[1]).abs().max() > 1e-3, "the text must depend on the image"
    torch.testing.assert_close(output.text_features, text, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-11)
    ours = gradients(nn.functional.cross_entropy(output.logits, labels), learner, images)
    reference = gradients(nn.functional.cross_entropy(expected, labels), learner, images)
    for gradient, wanted in zip(ours, reference, strict=True):
        assert wanted.abs().max() > 1e-5
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 15])
def test_cocoop_in_turns_gives_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, labels = cocoop_learner(), torch.tensor([0, 3, 3, 1])
    images = image_features().requires_grad_()
    whole = learner(images)
    expected = gradients(nn.functional.cross_entropy(whole.logits, labels), learner, images)
    monkeypatch.setattr(learner.backbone, "text_options", TextOptions(chunk=chunk))
    at_once: list[int] = []
    encode = context_prompts.encode_packed

    def counted(*arguments: Any) -> Tensor:
        features = encode(*arguments)
        at_once.append(features.shape[0] * features.shape[1])
        return features

    monkeypatch.setattr(context_prompts, "encode_packed", counted)
    parts = learner(images)
    assert max(at_once) <= chunk and sum(at_once) == 4 * len(CLASS_NAMES)
    torch.testing.assert_close(parts.text_features, whole.text_features, rtol=0, atol=1e-13)
    ours = gradients(nn.functional.cross_entropy(parts.logits, labels), learner, images)
    for gradient, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(learner(images).logits, whole.logits, rtol=0, atol=1e-12)


def test_cocoop_meta_net_is_the_papers() -> None:
    backbone = tiny_backbone("clip-vit")
    first, second, third = CoCoOp(backbone, CLASS_NAMES, ContextOptions(3)).meta_net
    assert isinstance(first, nn.Linear) and isinstance(second, nn.ReLU) and isinstance(third, nn.Linear)
    assert (first.in_features, first.out_features) == (FEATURES, max(1, FEATURES // 16))
    assert (third.in_features, third.out_features) == (first.out_features, backbone.tower.width)
    again = CoCoOp(backbone, CLASS_NAMES, ContextOptions(3))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.meta_net[0].parameters(), strict=True)
    )
    other = CoCoOp(backbone, CLASS_NAMES, ContextOptions(3), seed=1).meta_net[0]
    assert isinstance(other, nn.Linear) and not torch.equal(first.weight, other.weight)


def test_cocoop_shares_its_parameters_over_other_classes() -> None:
    learner = cocoop_learner()
    other = learner.for_classes(["forest", "cat"])
    assert other.context is learner.context and other.meta_net is learner.meta_net
    images = image_features()
    torch.testing.assert_close(
        other.text_features(images)[:, 1], learner.text_features(images)[:, 0], rtol=0, atol=1e-12
    )


def test_cocoop_refuses_what_it_is_not() -> None:
    backbone = tiny_backbone("clip-vit")
    with pytest.raises(UserError, match="shared context for CoCoOp"):
        CoCoOp(backbone, CLASS_NAMES, ContextOptions(3, per_class=True))
    with pytest.raises(ValueError, match="conditioned on the image"):
        CoCoOp(backbone, CLASS_NAMES, ContextOptions(3)).text_features()


def test_an_empty_batch() -> None:
    for learner in (cocoop_learner(), CoOp(tiny_backbone("clip-vit"), CLASS_NAMES, ContextOptions(3))):
        output = learner(image_features()[:0])
        assert output.logits.shape == (0, len(CLASS_NAMES))
        output.logits.sum().backward()
        assert learner.context.grad is not None and not learner.context.grad.any()


def test_training_leaves_the_backbone_as_it_was() -> None:
    backbone = tiny_backbone("clip-vit", torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    learner, images = CoOp(backbone, CLASS_NAMES, ContextOptions(3)), image_features().float()
    optimizer = torch.optim.SGD(learner.parameters(), lr=5.0)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(learner(images).logits, torch.tensor([0, 3, 3, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
