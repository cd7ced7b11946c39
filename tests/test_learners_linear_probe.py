"""Linear probes against their formulas, one sample at a time, and scikit-learn's logistic regression."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import logits_by_loop
from method_checks import LABELS, check_files, check_step, cross_entropy_by_loop, images, mixed, step
from sklearn.linear_model import LogisticRegression
from tiny_runs import cpu
from torch import Tensor, nn

from cma_tune.data.batches import StoredBatches
from cma_tune.errors import UserError
from cma_tune.learners import CrossModalProbe, Learner, LinearProbe, TextLinearProbe, ZeroShot
from cma_tune.learners.zero_shot import template_features
from cma_tune.train import Recipe, fit

BACKBONE = tiny_backbone("clip-vit")
TEMPLATES = ["a drawing of a {}.", "itap of a {}."]


def hand_prompts() -> Tensor:
    return ZeroShot(BACKBONE, CLASS_NAMES, TEMPLATES).embeddings


def make(kind: type[LinearProbe]) -> LinearProbe:
    start = 1.5 * hand_prompts()  # not of unit length, so that the difference counts
    if kind is CrossModalProbe:
        samples = template_features(BACKBONE, CLASS_NAMES, TEMPLATES)
        return CrossModalProbe(BACKBONE, CLASS_NAMES, start, samples).double()
    return kind(BACKBONE, CLASS_NAMES, start).double()


def rows_of(learner: Learner) -> Tensor:
    assert isinstance(learner, LinearProbe)
    return learner.rows


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", [LinearProbe, CrossModalProbe])
def test_a_step_is_that_of_the_formula(kind: type[LinearProbe], weight: float) -> None:
    def loss(learner: Learner) -> Tensor:
        rows, scale = rows_of(learner), BACKBONE.scale
        logits = torch.stack([torch.stack([scale * image.dot(row) for row in rows]) for image in images()])
        own = cross_entropy_by_loop(logits)
        if kind is CrossModalProbe:
            texts = [
                BACKBONE.encode_texts([template.replace("{}", name)])[0]
                for template in TEMPLATES
                for name in CLASS_NAMES
            ]
            of_texts = torch.stack([torch.stack([scale * text.dot(row) for row in rows]) for text in texts])
            labels = torch.tensor([*range(len(CLASS_NAMES))] * len(TEMPLATES))
            own = own + cross_entropy_by_loop(of_texts, labels)
        return mixed(own, images(), rows, weight)

    check_step(lambda: make(kind), loss, weight)


def test_started_from_text_it_is_zero_shot() -> None:
    learner = TextLinearProbe(BACKBONE, CLASS_NAMES, hand_prompts()).double()
    output = learner(images())
    torch.testing.assert_close(
        output.logits.detach(), logits_by_loop(BACKBONE, images(), hand_prompts()), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(output.text_features, hand_prompts(), rtol=0, atol=1e-6)


def test_started_at_zero_it_knows_nothing_and_a_penalty_does_not_hurt() -> None:
    learner = LinearProbe(BACKBONE, CLASS_NAMES).double()
    assert not learner(images()).logits.any()
    assert torch.equal(step(learner, images(), weight=1.0)["rows"], torch.zeros_like(learner.rows))
    halved = step(LinearProbe(BACKBONE, CLASS_NAMES).double(), images(), weight=0.5)["rows"]
    whole = step(LinearProbe(BACKBONE, CLASS_NAMES).double(), images())["rows"]
    torch.testing.assert_close(halved, whole / 2, rtol=0, atol=1e-12)


def test_trained_to_the_end_it_is_logistic_regression() -> None:
    """Weight decay δ on W is δ/2·‖W‖² beside the mean loss: scikit-learn's C is 1/(δ·N)."""
    learner, decay, scale = LinearProbe(BACKBONE, CLASS_NAMES).double(), 0.5, float(BACKBONE.scale)
    data = StoredBatches(images()[None], LABELS, len(LABELS), 0)
    fit(learner, data, Recipe(400, lr=0.05, warmup_lr=0.05, weight_decay=decay), cpu())
    reference = LogisticRegression(C=1 / (decay * len(LABELS)), fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit((scale * images()).numpy(), LABELS.numpy())
    expected = torch.from_numpy(reference.predict_proba((scale * images(3)).numpy()))
    probabilities = learner(images(3)).logits.softmax(dim=1).detach()
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [LinearProbe, TextLinearProbe, CrossModalProbe])
def test_files_give_it_back_for_its_own_classes_alone(kind: type[LinearProbe], tmp_path: Path) -> None:
    again = check_files(make(kind).float(), tmp_path)
    assert again.for_classes(CLASS_NAMES) is again
    with pytest.raises(UserError, match=f"that '{kind.name}' was learned on, got others"):
        again.for_classes(["forest"])


def test_the_cross_modal_probe_trains_with_text_alone() -> None:
    with pytest.raises(ValueError, match="Expected text samples"):
        step(CrossModalProbe(BACKBONE, CLASS_NAMES).double(), images())


def test_a_linear_probe_is_one_layer() -> None:
    learner = make(LinearProbe)
    layer = nn.Linear(learner.rows.shape[1], len(CLASS_NAMES), bias=False).double()
    layer.weight.data = learner.rows.data * BACKBONE.scale
    torch.testing.assert_close(learner(images()).logits, layer(images()), rtol=0, atol=1e-10)
