"""KgCoOp against its formulas, written out class by class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import text_by_coop
from method_checks import check_files, check_step, cross_entropy_by_loop, images, mixed, step
from torch import Tensor

from cma_tune.learners import CoOp, KgCoOp, Learner, ZeroShot
from cma_tune.learners.coop import ContextOptions

BACKBONE = tiny_backbone("clip-vit")
OPTIONS = ContextOptions(3)
TEMPLATES = ["a drawing of a {}."]


def anchors() -> Tensor:
    return ZeroShot(BACKBONE, CLASS_NAMES, TEMPLATES).embeddings


def learner(weight: float = 8.0) -> KgCoOp:
    made = KgCoOp(BACKBONE, CLASS_NAMES, OPTIONS, seed=2, weight=weight, anchors=anchors()).double()
    made.context.data.mul_(20)
    return made


def text_of(made: Learner) -> Tensor:
    """The learned prompts by open_clip's own forward."""
    assert isinstance(made, KgCoOp)
    return text_by_coop(BACKBONE, CLASS_NAMES, made.context, "end")


def distance(text: Tensor) -> Tensor:
    hand = anchors()
    return sum(((text[c] - hand[c]) ** 2).sum() for c in range(len(hand))) / torch.tensor(len(hand))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_step_is_that_of_the_formula(weight: float) -> None:
    def loss(made: Learner) -> Tensor:
        text = text_of(made)
        own = cross_entropy_by_loop(BACKBONE.scale * images() @ text.T) + 8.0 * distance(text)
        return mixed(own, images(), text, weight)

    check_step(learner, loss, weight)


def test_without_its_weight_it_is_coop_and_with_it_another() -> None:
    coop = CoOp(BACKBONE, CLASS_NAMES, OPTIONS, seed=2).double()
    coop.context.data.mul_(20)
    plain = step(coop, images())["context"]
    assert torch.equal(step(learner(0.0), images())["context"], plain)
    assert (step(learner(8.0), images())["context"] - plain).abs().max() > 1e-3


def test_files_give_it_back_and_other_classes_take_it(tmp_path: Path) -> None:
    again = check_files(learner(3.0), tmp_path)
    assert isinstance(again, KgCoOp) and again.weight == 3.0
    other = again.for_classes(["forest", "cat"])
    assert other.describe() == again.describe()
    torch.testing.assert_close(other.text_features()[1], again.text_features()[0], rtol=0, atol=1e-6)


def test_it_trains_with_hand_written_prompts_alone() -> None:
    with pytest.raises(ValueError, match="hand-written prompts' features"):
        step(KgCoOp(BACKBONE, CLASS_NAMES, OPTIONS).double(), images())
