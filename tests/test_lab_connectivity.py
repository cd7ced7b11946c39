"""Linear mode connectivity: the blend by hand, statistics of BatchNorm by a loop, ends that are the ends."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_runs import curves_of, lab_config, left_in
from torch import Tensor, nn

from cma_tune.companion.lab import connectivity
from cma_tune.companion.lab.command import lab
from cma_tune.companion.loop import Trained, outputs_of
from cma_tune.companion.networks import Network, network
from cma_tune.companion.runs import evaluator
from cma_tune.companion.setup import CompanionSetup
from cma_tune.metrics import entropy_difference_ratio, gram_matrix, mutual_information_ratio


def two_networks() -> tuple[Network, Network]:
    torch.manual_seed(0)
    return network("small-cnn", 10), network("small-cnn", 10)


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
def test_the_blend_is_made_parameter_by_parameter(omega: float) -> None:
    first, second = two_networks()
    before = [copy.deepcopy(one.state_dict()) for one in (first, second)]
    made = connectivity.interpolated(first, second, omega)
    for name, value in made.named_parameters():
        a, b = (state[name].double().numpy() for state in before)
        assert value.double().numpy() == pytest.approx((1 - omega) * a + omega * b, abs=1e-7)
    if omega in (0.0, 1.0):
        end = (first, second)[int(omega)]
        assert all(torch.equal(x, y) for x, y in zip(made.parameters(), end.parameters(), strict=True))
    for one, state in zip((first, second), before, strict=True):
        assert all(torch.equal(one.state_dict()[name], value) for name, value in state.items())


def test_the_distance_is_euclidean() -> None:
    first, second = two_networks()
    flat = [torch.cat([p.detach().double().flatten() for p in one.parameters()]) for one in (first, second)]
    assert connectivity.distance(first, second) == pytest.approx(float((flat[0] - flat[1]).norm()), rel=1e-12)


def by_a_loop(network: Network, batches: list[Tensor], setup: CompanionSetup) -> Network:
    """A copy whose statistics are means over the batches of what enters every norm."""
    made = copy.deepcopy(network).train()
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: list[list[Any]] = [[0.0, 0.0] for _ in norms]
    with torch.no_grad():
        for batch in batches:
            entered: dict[nn.Module, Tensor] = {}

            def keep(module: nn.Module, inputs: Any, kept: dict[nn.Module, Tensor] = entered) -> None:
                kept[module] = inputs[0].double()

            hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
            made(setup.prepare(setup.config)(setup.images.train.images[batch]))
            for hook in hooks:
                hook.remove()
            for own, norm in zip(sums, norms, strict=True):
                columns = entered[norm].transpose(0, 1).flatten(1)
                own[0] += columns.mean(1) / len(batches)
                own[1] += ((columns - columns.mean(1, keepdim=True)) ** 2).sum(1) / (
                    (columns.shape[1] - 1) * len(batches)
                )
    for (mean, variance), norm in zip(sums, norms, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return made.eval()


def test_statistics_are_those_of_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "STATISTICS_BATCH", 30)
    config = lab_config("connectivity", tmp_path, network="small-cnn", flip=0.0, labels=[70])
    setup = CompanionSetup(config)
    batches = connectivity.statistics_batches(setup, config)
    assert sorted(map(len, batches)) == [23, 23, 24]
    assert sorted(torch.cat(batches).tolist()) == setup.labelled(config)
    made = network("small-cnn", 10)
    expected = by_a_loop(made, batches, setup)
    connectivity.re_estimate(made, batches, setup)
    assert not made.training
    for name, value in expected.named_buffers():
        if "running" in name:
            assert torch.allclose(made.get_buffer(name), value, atol=1e-6), name
    momenta = {module.momentum for module in made.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.1}  # as it was


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Trained, list[dict[str, float]], Any]]:
    """Networks, evaluations and orders of all trainings of an experiment."""
    made: list[tuple[Trained, list[dict[str, float]], Any]] = []
    train: Callable[..., tuple[Trained, list[dict[str, float]]]] = connectivity.part_of_experiment

    def kept(*arguments: Any) -> tuple[Trained, list[dict[str, float]]]:
        trained, history = train(*arguments)
        made.append((trained, history, arguments[-1]))
        return trained, history

    monkeypatch.setattr(connectivity, "part_of_experiment", kept)
    return made


def test_the_ends_of_the_line_are_the_networks(tmp_path: Path, trainings: list[Any]) -> None:
    config = lab_config("connectivity", tmp_path, network="small-cnn", flip=0.0)
    (folder,) = lab(config)
    entries = curves_of(folder)
    line = [entry for entry in entries if not entry["own_statistics"]]
    ends = [entry for entry in entries if entry["own_statistics"]]
    assert [entry["omega"] for entry in line] == [0.0, 0.5, 1.0]
    assert [entry["omega"] for entry in ends] == [0.0, 1.0]
    setup = CompanionSetup(config)
    batches = connectivity.statistics_batches(setup, config)
    evaluate = evaluator(setup, config)
    assert trainings[0][2] != trainings[1][2]
    for number, (trained, history, _) in enumerate(trainings):
        measured = {name: value for name, value in ends[number].items() if name in history[-1]}
        assert len(measured) > 10 and measured == {name: history[-1][name] for name in measured}
        re_estimated = evaluate(by_a_loop(trained.network, batches, setup), 0)
        at_end = {name: line[-number][name] for name in re_estimated}
        assert at_end == pytest.approx(re_estimated, rel=1e-3, abs=1e-4)
        assert at_end["accuracy"] == re_estimated["accuracy"]
        output = outputs_of(
            by_a_loop(trained.network, batches, setup),
            setup.images.test.images,
            setup.prepare(config),
            setup.accelerator,
            100,
        )
        rows = trained.network.get_parameter("classifier.weight")[setup.images.test.labels].detach()
        grams = gram_matrix(output.features.double()), gram_matrix(rows.double())
        for name, metric in (
            ("mutual_information_ratio", mutual_information_ratio),
            ("entropy_difference_ratio", entropy_difference_ratio),
        ):
            assert at_end[name] == pytest.approx(float(metric(*grams)), abs=1e-4)


def test_both_networks_start_alike_and_see_the_images_in_different_orders(tmp_path: Path) -> None:
    config = lab_config("connectivity", tmp_path, network="small-cnn", flip=0.0)
    setup = CompanionSetup(config)
    first, second = setup.network(config).state_dict(), setup.network(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    orders = [connectivity.order_seed(1, number) for number in (0, 1)]
    steps = [setup.steps(config, setup.labelled(config), order).step(0) for order in orders]
    assert not torch.equal(steps[0].labels, steps[1].labels)
    labelled = set(setup.images.train.labels[setup.labelled(config)].tolist())
    assert set(steps[0].labels.tolist()) <= labelled


def test_the_record_holds_the_barrier_and_how_statistics_were_made(tmp_path: Path) -> None:
    lab(lab_config("connectivity", tmp_path, rates=[0.03, 0.3]))
    ((record, entries),) = left_in(tmp_path).values()
    for rate in (0.03, 0.3):
        of_rate = [e["accuracy"] for e in entries if e["rate"] == rate and not e["own_statistics"]]
        assert len(of_rate) == 3
        barrier = (of_rate[0] + of_rate[-1]) / 2 - min(of_rate)
        assert record["figures"][f"accuracy_barrier_lr_{rate:g}"] == pytest.approx(barrier)
    distances = [record["figures"][f"distance_of_ends_lr_{rate:g}"] for rate in (0.03, 0.3)]
    assert 0 < distances[0] < distances[1]
    norm = record["training"]["batch_norm"]
    assert (norm["images"], norm["batches"]) == (40, 1) and "every ω" in norm["estimated_on"]
    assert record["training"]["orders"] == [connectivity.order_seed(1, number) for number in (0, 1)]
