"""The companion's training loop against a plain one, its schedule and averages against closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cma_tune.companion.algorithms import BatchOutputs, FixMatch, Supervised
from cma_tune.companion.loop import Schedule, Trained, fit, learning_rate, optimizer_of, outputs_of, whole
from cma_tune.companion.networks import Network, Output, SmallCNN
from cma_tune.companion.objective import Objective
from cma_tune.companion.steps import Step
from cma_tune.errors import UserError
from cma_tune.fitting import NonFiniteLossError
from cma_tune.losses import InterplayLoss, interplay_terms
from cma_tune.train import Checkpointing

CLASSES, SIDE = 3, 8


class Linear(Network):
    """Pixels are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 3 * SIDE * SIDE
        self.classifier = nn.Linear(self.width, CLASSES)

    def forward(self, images: Tensor) -> Output:
        features = images.flatten(1)
        return Output(self.classifier(features), features)


class Made:
    """Steps of made images; labelled ones, and unlabelled ones in two views if asked for."""

    def __init__(self, labelled: int = 4, unlabelled: int = 0) -> None:
        self.sizes = (labelled, unlabelled, unlabelled)

    def step(self, number: int) -> Step:
        generator = torch.Generator().manual_seed(number)
        rows = sum(self.sizes)
        images = torch.randn(rows, 3, SIDE, SIDE, generator=generator)
        labels = torch.randint(CLASSES, (self.sizes[0],), generator=generator)
        return Step(images, torch.arange(rows), labels, torch.arange(self.sizes[1]), self.sizes)


def no_figures(network: Network, step: int) -> dict[str, float]:
    return {"accuracy": float(step)}


def objective(interplay: InterplayLoss | None = None) -> Objective:
    return Objective(Supervised(CLASSES, 0), interplay)


def fitted(
    trained: Trained, schedule: Schedule, data: Made | None = None, **options: object
) -> list[dict[str, float]]:
    evaluate: Callable[[Network, int], dict[str, float]] = no_figures
    return fit(
        trained,
        data or Made(),  # type: ignore[arg-type]
        options.pop("objective", objective()),  # type: ignore[arg-type]
        schedule,
        Accelerator(),
        options.pop("evaluate", evaluate),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


def test_the_learning_rate_ends_at_a_fifth() -> None:
    schedule = Schedule(steps=1000, lr=0.03)
    assert learning_rate(0, schedule) == 0.03
    assert learning_rate(1000, schedule) == pytest.approx(0.03 * math.cos(7 * math.pi / 16))
    assert learning_rate(1000, schedule) / 0.03 == pytest.approx(0.1950903, abs=1e-6)


def test_decay_spares_biases_and_norms() -> None:
    network = SmallCNN(CLASSES)
    groups = optimizer_of(network, Schedule(steps=1, weight_decay=0.5)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in network.named_parameters():
        module = network.get_submodule(name.rpartition(".")[0])
        plain = isinstance(module, (nn.Conv2d, nn.Linear)) and name.endswith("weight")
        assert (id(parameter) in decayed) == plain, name


def test_the_loop_is_sgd_with_nesterov_and_an_average() -> None:
    torch.manual_seed(0)
    start = Linear()
    schedule = Schedule(steps=7, lr=0.1, momentum=0.8, weight_decay=0.01, ema=0.7, eval_every=3)
    trained = Trained(copy.deepcopy(start), Supervised(CLASSES, 0), schedule.ema)
    history = fitted(trained, schedule)

    weight, bias = (p.detach().double().clone() for p in start.classifier.parameters())
    moved = [torch.zeros_like(weight), torch.zeros_like(bias)]
    averages = [weight.clone(), bias.clone()]
    losses = []
    for number in range(7):
        step = Made().step(number)
        x = step.images.flatten(1).double()
        probabilities = (x @ weight.T + bias).softmax(dim=1)
        losses.append(-probabilities[range(4), step.labels].log().mean().item())
        error = (probabilities - nn.functional.one_hot(step.labels, CLASSES)) / 4
        rate = 0.1 * math.cos(7 * math.pi * number / (16 * 7))
        gradients = [error.T @ x + 0.01 * weight, error.sum(dim=0)]
        for index, (value, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
            moved[index] = 0.8 * moved[index] + gradient
            value -= rate * (gradient + 0.8 * moved[index])
            averages[index] = 0.7 * averages[index] + 0.3 * value
    torch.testing.assert_close(trained.network.classifier.weight.double(), weight, rtol=0, atol=1e-5)
    assert trained.average is not None
    torch.testing.assert_close(trained.average.classifier.weight.double(), averages[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(trained.average.classifier.bias.double(), averages[1], rtol=0, atol=1e-5)
    assert [entry["step"] for entry in history] == [3, 6, 7]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [entry["loss"] for entry in history] == pytest.approx(means, abs=1e-5)


def test_the_average_is_evaluated_with_the_current_statistics() -> None:
    torch.manual_seed(0)
    trained = Trained(SmallCNN(CLASSES), Supervised(CLASSES, 0), 0.9)
    seen: list[Network] = []

    def evaluate(network: Network, step: int) -> dict[str, float]:
        assert not network.training
        seen.append(copy.deepcopy(network))
        return {}

    fitted(trained, Schedule(steps=2, ema=0.9, eval_every=2), evaluate=evaluate)
    (evaluated,) = seen
    for (name, own), current in zip(evaluated.named_buffers(), trained.network.buffers(), strict=True):
        assert torch.equal(own, current), name
    assert not torch.equal(evaluated.classifier.weight, trained.network.classifier.weight)


def test_the_start_is_evaluated_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    trained = Trained(SmallCNN(CLASSES), Supervised(CLASSES, 0), 0)
    start = copy.deepcopy(trained.network.state_dict())
    seen: dict[int, bool] = {}

    def evaluate(network: Network, step: int) -> dict[str, float]:
        assert not network.training
        seen[step] = all(torch.equal(v, start[name]) for name, v in network.state_dict().items())
        return no_figures(network, step)

    schedule = Schedule(steps=3, eval_every=2, eval_start=True)
    history = fitted(trained, schedule, evaluate=evaluate)
    assert seen == {0: True, 2: False, 3: False}
    assert [(entry["step"], entry["accuracy"]) for entry in history] == [(0, 0), (2, 2), (3, 3)]


def test_without_an_average_the_network_itself_is_evaluated() -> None:
    trained = Trained(Linear(), Supervised(CLASSES, 0), 0)
    assert trained.evaluated() is trained.network and trained.average is None


def test_the_interplay_terms_are_taken_from_the_whole_batch() -> None:
    torch.manual_seed(1)
    network = Linear().double()
    x = torch.randn(6, network.width, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rows = Output(network.classifier(x), x)
    losses = objective(InterplayLoss(0.4, 0.7))(
        BatchOutputs(rows, labels, None, None, labels, network.classifier.weight)
    )
    terms = interplay_terms(x, network.classifier.weight, labels)
    expected = cross_entropy(rows.logits, labels) - 0.4 * terms.mutual_information
    expected = expected + 0.7 * terms.entropy_difference
    assert losses["loss"].item() == pytest.approx(expected.item(), abs=1e-12)
    (mine,) = torch.autograd.grad(losses["loss"], x, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_unlabelled_rows_take_part_where_they_are_confident(view: str, labelled: bool) -> None:
    generator = torch.Generator().manual_seed(5)

    def rows(count: int) -> Output:
        logits = 3 * torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
        return Output(logits, torch.randn(count, 5, generator=generator, dtype=torch.float64))

    ours, weak, strong = rows(4), rows(8), rows(8)
    labels, classifier = torch.tensor([0, 1, 2, 1]), torch.randn(CLASSES, 5, generator=generator).double()
    method = FixMatch(CLASSES, 8, threshold=0.8)
    made = Objective(method, InterplayLoss(1.0, 0.5), view, labelled)
    batch = BatchOutputs(ours, labels, weak, strong, torch.arange(8), classifier)
    losses = made(batch)
    sure = weak.logits.softmax(dim=1).max(dim=1).values >= 0.8
    assert 0 < sure.sum() < 8
    chosen = weak if view == "weak" else strong
    features, targets = chosen.features[sure], weak.logits.argmax(dim=1)[sure]
    if labelled:
        features, targets = torch.cat([ours.features, features]), torch.cat([labels, targets])
    terms = interplay_terms(features, classifier, targets)
    plain = method(batch).total
    expected = plain - terms.mutual_information + 0.5 * terms.entropy_difference
    assert losses["loss"].item() == pytest.approx(expected.item(), abs=1e-12)


def test_without_a_confident_row_the_interplay_losses_are_0_and_finite() -> None:
    network = Linear()
    x = torch.randn(3, network.width, requires_grad=True)
    unsure = Output(torch.zeros(3, CLASSES), x)
    made = Objective(FixMatch(CLASSES, 3), InterplayLoss(1.0, 1.0), labelled=False)
    labelled = Output(network.classifier(torch.randn(2, network.width)), torch.randn(2, network.width))
    weight = network.classifier.weight
    batch = BatchOutputs(labelled, torch.tensor([0, 1]), unsure, unsure, torch.arange(3), weight)
    losses = made(batch)
    losses["loss"].backward()
    assert losses["mutual_information"].item() == 0 == losses["entropy_difference"].item()
    assert x.grad is not None and x.grad.abs().max() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_temperature_divides_all_logits() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [0.5, 3.0, -1.0]]), torch.tensor([0, 2])
    rows = Output(logits, torch.zeros(2, 4))
    made = Objective(Supervised(CLASSES, 0), temperature=4.0)
    losses = made(BatchOutputs(rows, labels, None, None, labels, torch.zeros(CLASSES, 4)))
    expected = -torch.log_softmax(logits / 4, dim=1)[range(2), labels].mean()
    assert losses["loss"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_rows_go_back_to_the_order_of_the_batch() -> None:
    # Two processes: each brings its labelled, weak and strong rows one after another.
    order = torch.tensor([0, 2, 3, 5, 1, 4])  # labelled 0 1 | weak 2 .. | as ranks bring them
    logits = torch.eye(6)[order]
    step = Step(torch.zeros(0), order, torch.tensor([1, 0]), torch.tensor([3, 4]), (2, 2, 2))
    labelled, labels, weak, strong, indices, _ = whole(Output(logits, logits), step, torch.eye(6))
    assert weak is not None and strong is not None
    together = torch.cat([labelled.logits, weak.logits, strong.logits])
    assert torch.equal(together, torch.eye(6)) and torch.equal(labels, step.labels)
    assert torch.equal(indices, step.indices)


def test_outputs_come_in_order_whatever_the_batches() -> None:
    network = Linear().eval()
    images = torch.randint(256, (7, 3, SIDE, SIDE), dtype=torch.uint8)
    at_once, in_parts = (outputs_of(network, images, Tensor.float, Accelerator(), size) for size in (100, 3))
    torch.testing.assert_close(in_parts.logits, at_once.logits)
    assert torch.equal(at_once.features, images.float().flatten(1))
    with pytest.raises(ValueError, match="at least one image"):
        outputs_of(network, images[:0], Tensor.float, Accelerator(), 3)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    trained = Trained(Linear(), Supervised(CLASSES, 0), 0)
    nn.init.constant_(trained.network.classifier.weight, float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"Expected a finite loss, got nan in step 0 \(from 0\)"):
        fitted(
            trained, Schedule(steps=3, ema=0), checkpointing=Checkpointing(tmp_path / "c.safetensors", "run")
        )
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    schedule = Schedule(steps=6, lr=0.1, eval_every=4)

    def start() -> Trained:
        torch.manual_seed(0)
        return Trained(Linear(), Supervised(CLASSES, 0), schedule.ema)

    plain = start()
    expected = fitted(plain, schedule)

    def stop_at_5(network: Network, step: int) -> dict[str, float]:
        if step == 6:
            raise KeyboardInterrupt
        return no_figures(network, step)

    place = Checkpointing(tmp_path / "c.safetensors", "run", every=5)
    with pytest.raises(KeyboardInterrupt):
        fitted(start(), schedule, evaluate=stop_at_5, checkpointing=place)
    resumed = start()
    assert fitted(resumed, schedule, checkpointing=place) == expected
    for own, theirs in zip(resumed.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(own, theirs)
    with pytest.raises(UserError, match="one of another run"):
        fitted(start(), schedule, checkpointing=Checkpointing(place.path, "other"))
