"""The semi-supervised algorithms against plain loops over several steps, and against published numbers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from ssl_references import (
    FlexMatchReference,
    FreeMatchReference,
    SoftMatchReference,
    argmax,
    cross_entropy,
    mean,
    softmax,
)
from torch import Tensor

from cma_tune.companion.algorithms import (
    ALGORITHMS,
    Algorithm,
    BatchOutputs,
    FlexMatch,
    FreeMatch,
    Losses,
    OTMatch,
    SoftMatch,
    algorithm,
)
from cma_tune.companion.networks import Output

CLASSES, POOL, LABELLED, UNLABELLED, WIDTH = 4, 9, 5, 7, 3
STEPS = 6
UNLABELLED_METHODS = [name for name, kind in ALGORITHMS.items() if kind.uses_unlabelled]


class Batch:
    """Logits of one step, float64 leaves, and what goes with them."""

    def __init__(self, seed: int, sharpness: float = 3.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def logits(rows: int) -> Tensor:
            values = sharpness * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
            return values.requires_grad_()

        self.labelled, self.weak, self.strong = logits(LABELLED), logits(UNLABELLED), logits(UNLABELLED)
        self.labels = torch.randint(CLASSES, (LABELLED,), generator=generator)
        self.indices = torch.randperm(POOL, generator=generator)[:UNLABELLED]
        self.classifier = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)

    def losses(self, method: Algorithm) -> Losses:
        outputs = BatchOutputs(
            self._output(self.labelled),
            self.labels,
            self._output(self.weak) if method.uses_unlabelled else None,
            self._output(self.strong) if method.uses_strong else None,
            self.indices,
            self.classifier,
        )
        losses: Losses = method(outputs)
        return losses

    @staticmethod
    def _output(logits: Tensor) -> Output:
        return Output(logits, torch.zeros(len(logits), WIDTH, dtype=torch.float64))

    def supervised(self) -> float:
        rows = zip(self.labelled.tolist(), self.labels.tolist(), strict=True)
        return mean([cross_entropy(row, label) for row, label in rows])

    def unlabelled(self, weights: list[float], learns: str = "strong") -> float:
        rows = zip(weights, getattr(self, learns).tolist(), self.weak.tolist(), strict=True)
        return mean([weight * cross_entropy(row, argmax(weak)) for weight, row, weak in rows])


def made(name: str, **options: Any) -> Algorithm:
    return algorithm(name, CLASSES, POOL, **options)


def test_supervised_is_cross_entropy_of_the_labelled_rows() -> None:
    batch = Batch(0)
    losses = batch.losses(made("supervised"))
    assert losses.total.item() == pytest.approx(batch.supervised(), abs=1e-12)
    assert losses.mask is None and losses.pseudo_labels is None


@pytest.mark.parametrize(("name", "learns"), [("fixmatch", "strong"), ("pseudo-label", "weak")])
def test_a_fixed_threshold_lets_the_sure_rows_count(name: str, learns: str) -> None:
    method = made(name, unlabelled_weight=0.7, threshold=0.8)
    counted = 0
    for seed in range(STEPS):
        batch = Batch(seed)
        losses = batch.losses(method)
        mask = [max(softmax(row)) >= 0.8 for row in batch.weak.tolist()]
        assert losses.mask is not None and losses.mask.tolist() == mask
        expected = batch.supervised() + 0.7 * batch.unlabelled([float(m) for m in mask], learns)
        assert losses.total.item() == pytest.approx(expected, abs=1e-12)
        assert losses.terms["confident"].item() == pytest.approx(mean([float(m) for m in mask]))
        counted += sum(mask)
    assert 0 < counted < STEPS * UNLABELLED


def test_flexmatch_lowers_the_threshold_of_classes_that_are_learned_badly() -> None:
    method = made("flexmatch")
    reference = FlexMatchReference(CLASSES, pool=POOL)
    shares = []
    for seed in range(12):
        batch = Batch(seed)
        losses = batch.losses(method)
        mask = reference.mask(batch.weak.tolist(), batch.indices.tolist())
        assert losses.mask is not None and losses.mask.tolist() == mask
        expected = batch.supervised() + batch.unlabelled([float(m) for m in mask])
        assert losses.total.item() == pytest.approx(expected, abs=1e-12)
        shares.append(mean([float(m) for m in mask]))
    assert shares[0] == 1.0 and min(shares) < 1.0  # at first no class is known, and all count


def test_flexmatch_threshold_of_a_half_learned_class() -> None:
    method = FlexMatch(CLASSES, 6)
    method.selected.copy_(torch.tensor([0, 0, 1, -1, -1, 2]))  # β = 1, .5, .5, 0 of two unused ones
    assert method.learned().tolist() == [1.0, 0.5, 0.5, 0.0]
    largest = torch.tensor([0.3166, 0.3168])
    assert method.confident(largest, torch.tensor([1, 1]), torch.tensor([3, 4])).tolist() == [False, True]


def test_the_last_row_of_an_image_that_comes_twice_decides() -> None:
    method = FlexMatch(CLASSES, 3)
    labels, indices = torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1])
    method.confident(torch.tensor([0.99, 0.97, 0.2]), labels, indices)
    assert method.selected.tolist() == [2, -1, -1]


def test_freematch_follows_a_loop() -> None:
    method = made("freematch", unlabelled_weight=0.7, fairness_weight=0.3, momentum=0.6)
    reference = FreeMatchReference(CLASSES, momentum=0.6)
    masks = []
    for seed in range(STEPS):
        batch = Batch(seed, sharpness=1.5)
        losses = batch.losses(method)
        mask = reference.mask(batch.weak.tolist())
        assert losses.mask is not None and losses.mask.tolist() == mask
        fairness = reference.fairness(batch.strong.tolist(), mask)
        assert losses.terms["fairness"].item() == pytest.approx(fairness, abs=1e-5)
        unlabelled = batch.unlabelled([float(m) for m in mask])
        assert losses.terms["unlabelled"].item() == pytest.approx(unlabelled, abs=1e-12)
        expected = batch.supervised() + 0.7 * unlabelled + 0.3 * fairness
        assert losses.total.item() == pytest.approx(expected, abs=1e-5)
        masks += mask
    assert 0 < sum(masks) < len(masks)


def test_freematch_gives_the_published_numbers() -> None:
    weak = torch.tensor([[2.0, 0, -1], [0.5, 1, 0], [0, 0, 3], [1, 0.9, 0.8]])
    strong = torch.tensor([[1, 0.5, 0], [0, 2.0, 0], [0.2, 0, 0.1], [0, 0, 1]])
    method = FreeMatch(3, 4)
    nothing = torch.zeros(4, 2)
    outputs = BatchOutputs(
        Output(torch.zeros(1, 3), torch.zeros(1, 2)),
        torch.tensor([0]),
        Output(weak, nothing),
        Output(strong, nothing),
        torch.arange(4),
        torch.zeros(3, 2),
    )
    losses = method(outputs)
    assert method.time.item() == pytest.approx(0.33365672, abs=1e-7)
    assert method.mean.tolist() == pytest.approx([0.33339086, 0.33324954, 0.33335960], abs=1e-7)
    assert method.histogram.tolist() == pytest.approx([0.3335, 0.33325, 0.33325], abs=1e-7)
    assert losses.mask is not None and losses.mask.all()
    assert losses.terms["unlabelled"].item() == pytest.approx(0.89330050, abs=1e-6)
    assert losses.terms["fairness"].item() == pytest.approx(-1.17817246, abs=1e-6)


def test_the_gradient_of_fairness_takes_the_mean_prediction_alone() -> None:
    method = FreeMatch(CLASSES, POOL)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(rows: Tensor) -> Tensor:
        # Small steps change no argmax, so histograms stay; everything else is differentiated by differences.
        return method.fairness(rows)

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("alignment", ["torchssl", "usb", "none"])
def test_softmatch_weighs_by_a_gaussian_of_the_confidence(alignment: str) -> None:
    method = made("softmatch", momentum=0.6, alignment=alignment)
    reference = SoftMatchReference(CLASSES, momentum=0.6, alignment=alignment)
    for seed in range(STEPS):
        batch = Batch(seed)
        losses = batch.losses(method)
        weights = reference.weights(batch.weak.tolist(), batch.labelled.tolist())
        assert losses.terms["weight"].item() == pytest.approx(mean(weights), abs=1e-6)
        expected = batch.supervised() + batch.unlabelled(weights)
        assert losses.total.item() == pytest.approx(expected, abs=1e-5)
        assert losses.mask is not None
        assert losses.mask.tolist() == [weight > 1 - 1e-9 for weight in weights]
    assert min(weights) < 0.9


def test_softmatch_weight_in_numbers() -> None:
    method = SoftMatch(CLASSES, POOL)
    method.center.fill_(0.8)
    method.variance.fill_(0.01)
    assert method.weight(torch.tensor([0.7, 0.9])).tolist() == pytest.approx([math.exp(-2), 1.0], abs=1e-5)


def test_softmatch_takes_a_single_image() -> None:
    method = SoftMatch(CLASSES, POOL)
    one = Output(torch.zeros(1, CLASSES), torch.zeros(1, WIDTH))
    classifier = torch.zeros(CLASSES, WIDTH)
    losses = method(BatchOutputs(one, torch.tensor([1]), one, one, torch.tensor([0]), classifier))
    assert math.isfinite(losses.total.item()) and method.variance.item() == 1.0


def test_an_unknown_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected `alignment` out of"):
        SoftMatch(CLASSES, POOL, alignment="other")  # type: ignore[arg-type]


def test_otmatch_adds_the_transport_cost_to_freematch() -> None:
    method = made("otmatch", momentum=0.6, transport_weight=0.4, fairness_weight=0.3)
    plain = made("freematch", momentum=0.6, fairness_weight=0.3)
    cost = [[0.0 if a == b else 1.0 for b in range(CLASSES)] for a in range(CLASSES)]
    for seed in range(STEPS):
        batch = Batch(seed, sharpness=1.5)
        losses, without = batch.losses(method), batch.losses(plain)
        rows = batch.classifier.tolist()
        for a in range(CLASSES):
            for b in range(CLASSES):
                dot = sum(x * y for x, y in zip(rows[a], rows[b], strict=True))
                cosine = dot / math.hypot(*rows[a]) / math.hypot(*rows[b])
                cost[a][b] = 0.6 * cost[a][b] + 0.4 * (1 - cosine)
        assert losses.mask is not None and without.mask is not None
        assert losses.mask.tolist() == without.mask.tolist()
        transport = 0.0
        for counts, weak, strong in zip(
            losses.mask.tolist(), batch.weak.tolist(), batch.strong.tolist(), strict=True
        ):
            moved = sum(c * q for c, q in zip(cost[argmax(weak)], softmax(strong), strict=True))
            transport += moved / UNLABELLED if counts else 0.0
        assert losses.terms["transport"].item() == pytest.approx(transport, abs=1e-5)
        expected = without.total.item() + 0.4 * transport
        assert losses.total.item() == pytest.approx(expected, abs=1e-5)


def test_otmatch_lets_no_gradient_reach_the_classifier_by_the_cost() -> None:
    batch = Batch(1)
    batch.classifier.requires_grad_()
    batch.losses(OTMatch(CLASSES, POOL)).total.backward()
    assert batch.classifier.grad is None


@pytest.mark.parametrize("name", UNLABELLED_METHODS)
def test_targets_have_no_gradient(name: str) -> None:
    batch = Batch(2, sharpness=6.0)
    batch.losses(made(name)).total.backward()
    assert batch.labelled.grad is not None and batch.labelled.grad.abs().sum() > 0
    learns, target = ("weak", "strong") if name == "pseudo-label" else ("strong", "weak")
    assert getattr(batch, learns).grad.abs().sum() > 0
    assert getattr(batch, target).grad is None


@pytest.mark.parametrize("name", ["fixmatch", "pseudo-label", "freematch", "otmatch"])
def test_without_a_confident_row_nothing_is_learned_from_the_unlabelled(name: str) -> None:
    batch = Batch(4, sharpness=0.1)
    method = made(name)
    if isinstance(method, FreeMatch):
        method.time.fill_(1e6)
    losses = batch.losses(method)
    losses.total.backward()
    assert losses.mask is not None and not losses.mask.any()
    assert losses.total.item() == pytest.approx(batch.supervised(), abs=1e-12)
    learns = batch.weak if name == "pseudo-label" else batch.strong
    assert learns.grad is not None and learns.grad.abs().max() == 0


@pytest.mark.parametrize("name", UNLABELLED_METHODS)
def test_what_a_method_remembers_is_its_state(name: str) -> None:
    # Short memories, and rows that are sure enough: else no loss shows in six steps what is remembered.
    options = {"momentum": 0.5} if name in ("freematch", "softmatch", "otmatch") else {}

    def following(one: Algorithm) -> list[float]:
        return [Batch(seed, sharpness=4.0).losses(one).total.item() for seed in range(9, 15)]

    method = made(name, **options)
    for seed in range(9):
        Batch(seed, sharpness=4.0).losses(method)
    other = made(name, **options)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    remembers = any(True for _ in method.buffers())
    expected = following(method)
    assert following(other) == expected
    # One that had forgotten everything would give other losses, where there is anything to remember.
    assert (following(made(name, **options)) != expected) == remembers


def test_every_method_has_a_file_and_a_name_of_its_own() -> None:
    assert list(ALGORITHMS) == [
        *("supervised", "pseudo-label", "fixmatch", "flexmatch", "freematch", "softmatch", "otmatch")
    ]
    for name, kind in ALGORITHMS.items():
        assert kind.__module__.endswith("." + name.replace("-", "_"))
