"""LP++ against its formulas, class by class and step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from method_checks import LABELS, check_files, cross_entropy_by_loop, images, mixed
from tiny_runs import cpu
from torch import Tensor

from cma_tune.data.batches import StoredBatches
from cma_tune.errors import UserError
from cma_tune.learners import LpPlusPlus, Support, ZeroShot
from cma_tune.learners.cards import read_card
from cma_tune.learners.model_card import model_card
from cma_tune.train import Recipe, fit

BACKBONE = tiny_backbone("clip-vit")
CLASSES = range(len(CLASS_NAMES))


def hand_prompts() -> Tensor:
    return ZeroShot(BACKBONE, CLASS_NAMES, ["a drawing of a {}."]).embeddings


def make() -> LpPlusPlus:
    return LpPlusPlus(BACKBONE, CLASS_NAMES, hand_prompts(), Support(images(), LABELS))


def own(c: int) -> list[Tensor]:
    """The images of class c."""
    return [image for image, label in zip(images(), LABELS.tolist(), strict=True) if label == c]


def start() -> tuple[Tensor, Tensor]:
    """w and α before the first step."""
    text = hand_prompts()
    prototypes = torch.stack([torch.stack(own(c)).sum(dim=0) for c in CLASSES])
    cosines = [sum(float(image.dot(text[c])) for image in own(c)) / len(own(c)) for c in CLASSES]
    return prototypes, torch.full((len(text),), 250 * sum(cosines) / len(cosines), dtype=torch.float64)


def rows(prototypes: Tensor, multipliers: Tensor) -> Tensor:
    return torch.stack([w + a * t for w, a, t in zip(prototypes, multipliers, hand_prompts(), strict=True)])


def test_the_start_and_the_steps_are_the_formulas() -> None:
    learner, (prototypes, multipliers) = make(), start()
    torch.testing.assert_close(learner.prototypes.detach(), prototypes, rtol=0, atol=1e-12)
    torch.testing.assert_close(learner.multipliers.detach(), multipliers, rtol=1e-12, atol=0)
    outer = torch.stack([torch.outer(image, image) for image in images()]).sum(dim=0)
    largest = float(torch.linalg.matrix_norm(outer, 2))  # of a positive matrix, the largest eigenvalue
    along = max(sum(float(image.dot(text)) ** 2 for image in images()) for text in hand_prompts())
    assert learner.rates == pytest.approx((4 * 7 / largest, 7 / (4 * along)), rel=1e-10)
    output = learner(images())
    expected = torch.stack([torch.stack([image.dot(row) for row in rows(*start())]) for image in images()])
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_training_is_the_plain_loop(weight: float) -> None:
    """Twelve steps: w moves at each with momentum, α at the tenth alone and without."""
    learner, steps = make(), 12
    recipe = Recipe(steps, lr=1.0, schedule="constant", weight_decay=0.0, cma_weight=weight)
    fit(learner, StoredBatches(images()[None], LABELS, 1_000_000, 0), recipe, cpu())
    prototypes, multipliers = (value.clone().requires_grad_() for value in start())
    momentum = torch.zeros_like(prototypes)
    rates = make().rates
    assert rates is not None
    of_w, of_alpha = rates
    for number in range(1, steps + 1):
        blended = rows(prototypes, multipliers)
        loss = mixed(cross_entropy_by_loop(images() @ blended.T), images(), blended, weight)
        by_w, by_alpha = torch.autograd.grad(loss, (prototypes, multipliers))
        momentum = 0.9 * momentum + by_w
        with torch.no_grad():
            prototypes -= of_w * momentum
            if number == 10:
                multipliers -= of_alpha * by_alpha
    first = start()
    assert (prototypes - first[0]).abs().max() > 1e-2 and (multipliers - first[1]).abs().max() > 1e-5
    torch.testing.assert_close(learner.prototypes, prototypes, rtol=0, atol=1e-9)
    torch.testing.assert_close(learner.multipliers, multipliers, rtol=0, atol=1e-9)


def test_a_class_without_images_starts_from_its_text_alone() -> None:
    few = Support(images()[:4], LABELS[:4])  # classes 0, 3, 3, 1
    learner = LpPlusPlus(BACKBONE, CLASS_NAMES, hand_prompts(), few)
    assert not learner.prototypes[2].any() and learner.prototypes[1].any()
    assert learner.multipliers.isfinite().all() and learner.multipliers.unique().numel() == 1


def test_files_give_it_back_for_its_own_classes_alone(tmp_path: Path) -> None:
    again = check_files(make(), tmp_path)
    assert isinstance(again, LpPlusPlus) and again.rates == make().rates
    assert "| step of the prototypes w |" in model_card(read_card(tmp_path))
    with pytest.raises(UserError, match="that 'lp_plus_plus' was learned on, got others"):
        again.for_classes(["forest"])
