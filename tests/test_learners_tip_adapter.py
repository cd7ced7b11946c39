"""Tip-Adapter and Tip-Adapter-F against their formulas, one image and one key at a time."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import penalty
from method_checks import LABELS, check_files, check_step, cross_entropy_by_loop, images
from torch import Tensor

from cma_tune.errors import UserError
from cma_tune.learners import Learner, Support, TipAdapter, TipAdapterF, ZeroShot
from cma_tune.learners.tip_adapter import ALPHAS, BETAS

BACKBONE = tiny_backbone("clip-vit")
CACHED = torch.tensor([0, 0, 1, 2, 3, 3])
"""Classes of the cached images; the last class has none."""


def hand_prompts() -> Tensor:
    return ZeroShot(BACKBONE, CLASS_NAMES, ["a drawing of a {}."]).embeddings


def keys() -> Tensor:
    return images(7)[: len(CACHED)]


def make(
    kind: type[TipAdapter] = TipAdapterF, alpha: float = 1.3, beta: float = 4.0, search: bool = False
) -> TipAdapter:
    return kind(BACKBONE, CLASS_NAMES, hand_prompts(), Support(keys(), CACHED), alpha, beta, search).double()


def logits_of(stored: Tensor, features: Tensor, alpha: float, beta: float) -> Tensor:
    """Tip-Adapter's logits ``[B, C]``, entry by entry."""
    hand, rows = hand_prompts(), []
    for image in features:
        row = [BACKBONE.scale * image.dot(text) for text in hand]
        for key, label in zip(stored, CACHED.tolist(), strict=True):
            row[label] = row[label] + alpha * torch.exp(-beta * (1 - image.dot(key)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def prototypes(stored: Tensor) -> Tensor:
    """The classes' mean keys ``[C, D]`` at unit length, zero where there are none."""
    rows = []
    for c in range(len(CLASS_NAMES)):
        own = stored[c == CACHED]
        mean = own.sum(dim=0) / max(1, len(own))
        rows.append(mean / mean.norm() if len(own) else mean)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [TipAdapter, TipAdapterF])
def test_the_logits_are_those_of_the_formula(kind: type[TipAdapter]) -> None:
    output = make(kind)(images())
    torch.testing.assert_close(output.logits, logits_of(keys(), images(), 1.3, 4.0), rtol=0, atol=1e-10)
    torch.testing.assert_close(output.text_features, prototypes(keys()), rtol=0, atol=1e-12)
    zero_shot = ZeroShot(BACKBONE, CLASS_NAMES, ["a drawing of a {}."])(images()).logits
    torch.testing.assert_close(make(kind, alpha=0.0)(images()).logits, zero_shot, rtol=0, atol=1e-10)


def entropy_of_present(stored: Tensor, weight: float, own: Tensor) -> Tensor:
    """The reference's groups have unit rows; a class without a key has a zero row, which has no direction."""
    text = prototypes(stored)
    keyed = torch.ne(LABELS, len(CLASS_NAMES) - 1)
    assert not keyed.all()
    if weight == 0:
        return own
    value = penalty(images()[keyed], text, LABELS[keyed], release=False)
    # The group of one image and a zero row: eigenvalues 1/2 and 0 of G/n, so −½·ln ½.
    return (1 - weight) * own + weight * (value + 0.5 * math.log(2))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_step_of_the_keys_is_that_of_the_formula(weight: float) -> None:
    def loss(learner: Learner) -> Tensor:
        assert isinstance(learner, TipAdapterF)
        own = cross_entropy_by_loop(logits_of(learner.keys, images(), 1.3, 4.0))
        return entropy_of_present(learner.keys, weight, own)

    check_step(make, loss, weight)


def test_without_training_nothing_is_a_parameter() -> None:
    assert not list(make(TipAdapter).parameters())
    assert [name for name, _ in make().named_parameters()] == ["keys"]


def test_alpha_and_beta_are_chosen_by_accuracy_and_stay_where_none_is_better() -> None:
    features, labels = images(11), LABELS.flip(0)

    def correct(alpha: float, beta: float) -> int:
        return int((logits_of(keys(), features, alpha, beta).argmax(dim=1) == labels).sum())

    assert make().choose(features, labels) == {}
    counts = {pair: correct(*pair) for pair in itertools.product(ALPHAS[::4], BETAS[::4])}
    learner = make(alpha=1.0, beta=5.5, search=True)
    chosen = learner.choose(features, labels)
    assert chosen == {"alpha": learner.alpha, "beta": learner.beta}
    assert correct(**chosen) >= max(counts.values()) and len(set(counts.values())) > 1
    # The best keeps its place whatever else is as good.
    again = make(alpha=chosen["alpha"], beta=chosen["beta"], search=True)
    assert again.choose(features, labels) == chosen
    worst = min(counts, key=lambda pair: counts[pair])
    moved = make(alpha=worst[0], beta=worst[1], search=True).choose(features, labels)
    assert correct(**moved) > counts[worst]


@pytest.mark.parametrize("kind", [TipAdapter, TipAdapterF])
def test_files_give_it_back_for_its_own_classes_alone(kind: type[TipAdapter], tmp_path: Path) -> None:
    again = check_files(make(kind), tmp_path)
    assert isinstance(again, kind) and (again.alpha, again.beta) == (1.3, 4.0)
    with pytest.raises(UserError, match=f"that '{kind.name}' was learned on, got others"):
        again.for_classes(["forest"])
