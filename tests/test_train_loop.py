"""`fit` against loops written here: own batches, own losses, own SGD."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from learner_references import penalty
from tiny_runs import backbone, coop, cpu, random_features
from torch import Tensor

from cma_tune.clip.backbone import Backbone
from cma_tune.data.batches import StoredBatches, epoch_order
from cma_tune.learners import CoCoOp, CoOp
from cma_tune.learners.coop import ContextLearner, ContextOptions
from cma_tune.train import Recipe, fit, learning_rate

NAMES = ("cat", "red dog", "ship")
COUNT, BATCH, SEED = 17, 5, 3
EPOCHS = 4


def recipe(weight: float = 0.0, release: bool = True, epochs: int = EPOCHS, lr: float = 0.1) -> Recipe:
    return Recipe(
        epochs,
        lr=lr,
        cma_weight=weight,
        reduction="mean" if release else "sum",
        normalize=release,
    )


def reference_rate(epoch: int, epochs: int, lr: float) -> float:
    return 1e-5 if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def train_by_hand(
    learner: ContextLearner, features: Tensor, labels: Tensor, settings: Recipe, release: bool
) -> list[float]:
    """The run as a plain loop; returns the mean loss of every epoch."""
    parameters = list(learner.parameters())
    momenta: list[Tensor | None] = [None for _ in parameters]
    means = []
    for epoch in range(settings.epochs):
        rate = reference_rate(epoch, settings.epochs, settings.lr)
        losses = []
        for batch in epoch_order(len(labels), BATCH, SEED, epoch):
            image, label = features[epoch % len(features)][batch], labels[batch]
            text = learner.text_features(image)
            per_class = text if text.dim() == 3 else text[None].expand(len(batch), -1, -1)
            probability = (learner.backbone.scale * (per_class @ image[:, :, None])[..., 0]).softmax(dim=1)
            loss = -probability[range(len(batch)), label].log().mean()
            if settings.cma_weight > 0:
                weight = settings.cma_weight
                loss = (1 - weight) * loss + weight * penalty(image, text, label, release)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                    step = gradient + settings.weight_decay * parameter
                    before = momenta[i]
                    momentum = step if before is None else settings.momentum * before + step
                    momenta[i] = momentum
                    parameter.sub_(rate * momentum)
            losses.append(float(loss.detach()))
        means.append(sum(losses) / len(losses))
    return means


def compare(
    learner: ContextLearner, twin: ContextLearner, settings: Recipe, release: bool, tolerance: float = 1e-9
) -> None:
    """Train both, one by `fit` and one by hand; the same parameters and the same last mean loss."""
    start = [parameter.detach().clone() for parameter in learner.parameters()]
    features, labels = random_features(COUNT, len(NAMES), views=2)
    features = features.double()
    report = fit(learner, StoredBatches(features, labels, BATCH, SEED), settings, cpu())
    means = train_by_hand(twin, features, labels, settings, release)
    assert report.steps == settings.epochs * (COUNT // BATCH)
    assert report.losses["loss"] == pytest.approx(means[-1], abs=1e-5)
    for ours, theirs, before in zip(learner.parameters(), twin.parameters(), start, strict=True):
        assert (theirs - before).abs().max() > 3e-3  # it has gone somewhere at all
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@cache
def exact_backbone() -> Backbone:
    """The tiny CLIP in float64, where two right ways to compute agree to the last digits."""
    return copy.deepcopy(backbone()).double()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("release", [True, False], ids=["release", "paper"])
def test_coop_equals_a_plain_loop(weight: float, release: bool) -> None:
    learner, twin = (CoOp(exact_backbone(), NAMES, ContextOptions(tokens=3)).double() for _ in range(2))
    compare(learner, twin, recipe(weight, release), release)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_cocoop_equals_a_plain_loop(weight: float) -> None:
    options = ContextOptions(tokens=3)
    learner, twin = (CoCoOp(exact_backbone(), NAMES, options, seed=1).double() for _ in range(2))
    # Texts that nearly coincide leave small eigenvalues, whose logarithms cost digits.
    compare(learner, twin, recipe(weight, lr=0.3), release=True, tolerance=1e-7)


def test_weight_zero_is_coop_step_for_step() -> None:
    # With torch's own SGD and cross-entropy: CoOp's loop, whatever the form of a penalty of weight 0.
    learner, twin = coop(NAMES), coop(NAMES)
    features, labels = random_features(COUNT, len(NAMES))
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    fit(learner, StoredBatches(features, labels, BATCH, SEED), recipe(0.0, release=False), cpu())
    for epoch in range(EPOCHS):
        sgd.param_groups[0]["lr"] = reference_rate(epoch, EPOCHS, 0.1)
        for batch in epoch_order(COUNT, BATCH, SEED, epoch):
            logits = backbone().scale * (features[0][batch] @ twin.text_features().T)
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
            sgd.step()
    assert (twin.context - coop(NAMES).context).abs().max() > 1e-2
    assert torch.equal(learner.context, twin.context)


def test_the_form_and_the_weight_of_the_penalty_change_the_result() -> None:
    # Guards the tests above: none of these runs could stand in for another.
    features, labels = random_features(COUNT, len(NAMES))
    contexts = []
    for weight, release in [(0.0, True), (0.3, True), (0.3, False), (1.0, True)]:
        learner = coop(NAMES)
        fit(learner, StoredBatches(features, labels, BATCH, SEED), recipe(weight, release), cpu())
        contexts.append(learner.context.detach())
    for i, context in enumerate(contexts):
        for other in contexts[:i]:
            assert (context - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("epochs", "epoch", "expected"),
    [(200, 0, 1e-5), (10, 0, 1e-5), (200, 1, 0.002), (200, 199, 4.9e-7), (10, 9, 1.9e-4), (1, 0, 1e-5)],
)
def test_the_schedule_is_the_references(epochs: int, epoch: int, expected: float) -> None:
    # The figures of the recipe, to the digits it gives.
    assert learning_rate(epoch, Recipe(epochs)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("epochs", [1, 2, 10, 200])
def test_the_schedule_is_the_formula_at_every_epoch(epochs: int) -> None:
    settings = Recipe(epochs, lr=0.3, warmup_lr=0.07)
    assert learning_rate(0, settings) == 0.07
    for epoch in range(1, epochs):
        expected = 0.15 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        assert learning_rate(epoch, settings) == pytest.approx(expected, rel=1e-12)


def test_the_schedule_is_a_cosine_annealing_after_a_constant_warm_up() -> None:
    # torch's own schedulers, put together as the reference does: the warm-up's epoch counts for T alone.
    epochs = 7
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.002)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=epochs)
    rates = []
    for epoch in range(epochs):
        rates.append(1e-5 if epoch == 0 else sgd.param_groups[0]["lr"])
        sgd.step()
        if epoch > 0:
            cosine.step()
    assert [learning_rate(epoch, Recipe(epochs)) for epoch in range(epochs)] == pytest.approx(rates, rel=1e-9)


def test_the_default_recipe_is_the_references() -> None:
    settings = Recipe(200)
    assert (settings.lr, settings.warmup_lr, settings.momentum) == (0.002, 1e-5, 0.9)
    assert settings.weight_decay == 5e-4 and settings.cma_weight == 0


def test_only_the_learner_is_trained() -> None:
    learner = coop(NAMES)
    before = {name: value.clone() for name, value in backbone().state_dict().items()}
    features, labels = random_features(COUNT, len(NAMES))
    fit(learner, StoredBatches(features, labels, BATCH, SEED), recipe(0.5), cpu())
    assert not learner.training and not backbone().model.training
    for name, value in backbone().state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in backbone().parameters())
