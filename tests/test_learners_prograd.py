"""ProGrad against its formulas, and its rule against gradients made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import text_by_coop
from method_checks import LABELS, check_files, cross_entropy_by_loop, images, mixed, step
from torch import Tensor

from cma_tune.fitting import project_gradient
from cma_tune.learners import CoOp, ProGrad
from cma_tune.learners.coop import ContextOptions

BACKBONE = tiny_backbone("clip-vit")
OPTIONS = ContextOptions(3)


def coop() -> CoOp:
    learner = CoOp(BACKBONE, CLASS_NAMES, OPTIONS, seed=2).double()
    learner.context.data.mul_(20)
    return learner


def made_up_prompts(pull: float) -> Tensor:
    """What hand-written prompts' features could be: the start's, drawn to or away from the classes' images.

    So zero-shot is right more often, or less, and training goes its way, or against it.
    """
    text = text_by_coop(BACKBONE, CLASS_NAMES, coop().context.detach(), "end")
    own = torch.stack([images()[torch.eq(LABELS, c)].mean(dim=0) for c in range(len(CLASS_NAMES))])
    return torch.nn.functional.normalize(text + pull * own, dim=1)


def make(anchors: Tensor, guide_weight: float = 1.0, temperature: float = 1.0) -> ProGrad:
    learner = ProGrad(
        BACKBONE,
        CLASS_NAMES,
        OPTIONS,
        seed=2,
        weight=guide_weight,
        temperature=temperature,
        anchors=anchors,
    ).double()
    learner.context.data.mul_(20)
    return learner


def gradients(anchors: Tensor, weight: float, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of the objective and of the mean KL divergence, by open_clip's own forward and loops."""
    learner = make(anchors)
    text = text_by_coop(BACKBONE, CLASS_NAMES, learner.context, "end")
    logits = BACKBONE.scale * images() @ text.T
    objective = mixed(cross_entropy_by_loop(logits), images(), text, weight)
    divergences = []
    for image, row in zip(images(), logits, strict=True):
        before = (BACKBONE.scale * anchors @ image / temperature).softmax(dim=0)
        now = (row / temperature).softmax(dim=0)
        divergences.append(sum(p * (p.log() - q.log()) for p, q in zip(before, now, strict=True)))
    divergence = torch.stack([torch.as_tensor(value) for value in divergences]).mean()
    (own,) = torch.autograd.grad(objective, learner.context, retain_graph=True)
    (guide,) = torch.autograd.grad(divergence, learner.context)
    return own, guide


@pytest.mark.parametrize(
    ("weight", "guide_weight", "temperature"), [(0.0, 1, 1), (0.4, 1, 1), (1.0, 1, 1), (0.4, 0.3, 2.5)]
)
def test_a_step_is_that_of_the_formula_in_both_cases(
    weight: float, guide_weight: float, temperature: float
) -> None:
    opposed = set()
    for pull in (2.0, -2.0):
        anchors = made_up_prompts(pull)
        own, guide = gradients(anchors, weight, temperature)
        product = float((own * guide).sum())
        opposed.add(product < 0)
        taken = guide_weight * product / float((guide**2).sum()) * guide
        expected = own - taken if product < 0 else own
        moved = step(make(anchors, guide_weight, temperature), images(), weight)["context"]
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-10)
    assert opposed == {True, False}


def test_where_nothing_is_opposed_it_is_coop() -> None:
    for pull in (2.0, -2.0):
        anchors = made_up_prompts(pull)
        own, guide = gradients(anchors, 0.0)
        same = torch.equal(step(make(anchors), images())["context"], step(coop(), images())["context"])
        assert same == bool((own * guide).sum() >= 0)


def test_the_rule_keeps_aligned_gradients_and_removes_what_opposes() -> None:
    guide = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    along = torch.tensor([[3.0, 1.0], [1.0, -1.0]])
    assert torch.equal(project_gradient(along, guide), along)
    against = torch.tensor([[3.0, -1.0], [1.0, -1.0]])
    assert torch.equal(project_gradient(against, guide), torch.tensor([[3.0, 0.0], [1.0, -1.0]]))
    assert torch.equal(
        project_gradient(1024 * against, 1024 * guide), 1024 * project_gradient(against, guide)
    )
    assert torch.equal(project_gradient(against, torch.zeros(2, 2)), against)
    overflown = torch.tensor([[torch.inf, 0.0], [0.0, 0.0]])
    assert not project_gradient(against, overflown).isfinite().all()  # so that fp16's scaler sees it


def test_files_give_it_back_and_other_classes_take_it(tmp_path: Path) -> None:
    again = check_files(make(made_up_prompts(1.0), 0.5, 2.0).float(), tmp_path)
    assert isinstance(again, ProGrad) and (again.guide_weight, again.temperature) == (0.5, 2.0)
    other = again.for_classes(["forest", "cat"])
    torch.testing.assert_close(other.text_features()[1], again.text_features()[0], rtol=0, atol=1e-6)


def test_it_trains_with_hand_written_prompts_alone() -> None:
    with pytest.raises(ValueError, match="hand-written prompts' features"):
        step(ProGrad(BACKBONE, CLASS_NAMES, OPTIONS).double(), images())
