"""CLIP-Adapter against its formula, one image at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from method_checks import check_files, check_step, cross_entropy_by_loop, images, mixed
from torch import Tensor

from cma_tune.learners import ClipAdapter, Learner, ZeroShot

BACKBONE = tiny_backbone("clip-vit")
TEMPLATES = ["a drawing of a {}."]
RATIO = 0.3


def make(ratio: float = RATIO) -> ClipAdapter:
    return ClipAdapter(BACKBONE, CLASS_NAMES, TEMPLATES, ratio, seed=3).double()


def adapted(learner: Learner) -> Tensor:
    assert isinstance(learner, ClipAdapter)
    rows = []
    for image in images():
        hidden = [torch.clamp(row.dot(image), min=0) for row in learner.down.weight]
        new = torch.stack([row.dot(torch.stack(hidden)) for row in learner.up.weight])
        blend = RATIO * new + (1 - RATIO) * image
        rows.append(blend / blend.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_step_is_that_of_the_formula(weight: float) -> None:
    hand = ZeroShot(BACKBONE, CLASS_NAMES, TEMPLATES).embeddings

    def loss(learner: Learner) -> Tensor:
        features = adapted(learner)
        own = cross_entropy_by_loop(BACKBONE.scale * features @ hand.T)
        return mixed(own, features, hand, weight)

    check_step(make, loss, weight)


def test_its_features_are_the_formulas_and_without_a_share_those_of_zero_shot() -> None:
    output = make()(images())
    torch.testing.assert_close(output.image_features, adapted(make()), rtol=0, atol=1e-12)
    plain = ZeroShot(BACKBONE, CLASS_NAMES, TEMPLATES)(images())
    torch.testing.assert_close(make(0.0)(images()).logits, plain.logits, rtol=0, atol=1e-10)
    assert (output.logits - plain.logits).abs().max() > 1e-3


def test_the_start_is_the_seeds_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = make(), ClipAdapter(BACKBONE, CLASS_NAMES, TEMPLATES, RATIO, seed=4)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.down.weight, make().down.weight)
    assert not torch.equal(first.down.weight.float(), second.down.weight)


def test_files_give_it_back_and_other_classes_take_it(tmp_path: Path) -> None:
    again = check_files(make().float(), tmp_path)
    assert isinstance(again, ClipAdapter) and again.ratio == RATIO
    other = again.for_classes(["forest", "cat"])
    assert [name for name, _ in other.named_parameters()] == ["down.weight", "up.weight"]
    ours, theirs = again(images()).logits[:, 0], other(images()).logits[:, 1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
