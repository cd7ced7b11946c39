"""Grokking: the task, the transformer against sums written out, the split, going on after a stop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lab_runs import GROKKING, curves_of, lab_config, left_in
from torch import Tensor

from cma_tune.companion.lab import grokking
from cma_tune.companion.lab.command import lab
from cma_tune.companion.lab.modular_addition import (
    AdditionTransformer,
    addition_loss,
    all_sums,
    train_positions,
)
from cma_tune.companion_options import GrokkingConfig
from cma_tune.errors import UserError
from cma_tune.metrics import entropy_difference_ratio, gram_matrix, matrix_entropy, mutual_information_ratio


def test_every_sum_is_there_once() -> None:
    pairs, answers = all_sums(5)
    assert pairs.tolist() == [[a, b] for a in range(5) for b in range(5)]
    assert answers.tolist() == [(a + b) % 5 for a in range(5) for b in range(5)]


@pytest.mark.parametrize(("modulus", "share", "count"), [(7, 0.6, 29), (113, 0.3, 3831)])
def test_the_split_is_a_share_of_all_sums_and_of_the_seed_alone(
    modulus: int, share: float, count: int
) -> None:
    train = train_positions(modulus, share, 1)
    assert len(set(train)) == len(train) == count and train == sorted(train)
    assert train[0] >= 0 and train[-1] < modulus**2
    torch.manual_seed(5)
    assert train_positions(modulus, share, 1) == train != train_positions(modulus, share, 2)


def reference(network: AdditionTransformer, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """All positions with a causal mask, head by head, with einsum: logits and residual of the last one."""
    p, heads = network.modulus, network.heads
    tokens = torch.cat([pairs, torch.full((len(pairs), 1), p)], dim=1)
    stream = network.tokens[tokens] + network.positions[None]
    size = network.width // heads
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    added = torch.zeros_like(stream)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        query, key, value = (
            torch.einsum("npd,hd->nph", stream, layer.weight[own])
            for layer in (network.query, network.key, network.value)
        )
        scores = torch.einsum("nqh,nkh->nqk", query, key) / math.sqrt(size)
        shares = scores.masked_fill(mask, -math.inf).softmax(dim=-1)
        mixed = torch.einsum("nqk,nkh->nqh", shares, value)
        added = added + torch.einsum("nqh,dh->nqd", mixed, network.attended.weight[:, own])
    stream = stream + added
    hidden = torch.einsum("npd,md->npm", stream, network.inner.weight) + network.inner.bias
    hidden = torch.where(hidden > 0, hidden, 0.0)
    stream = stream + torch.einsum("npm,dm->npd", hidden, network.outer.weight) + network.outer.bias
    return torch.einsum("nd,cd->nc", stream[:, -1], network.classifier.weight), stream[:, -1]


def test_the_transformer_is_the_sums_written_out() -> None:
    torch.manual_seed(0)
    network = AdditionTransformer(7, width=12, heads=3, hidden=20).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # the biases too
    pairs, _ = all_sums(7)
    output = network(pairs)
    logits, last = reference(network, pairs)
    assert torch.allclose(output.logits, logits, atol=1e-12, rtol=0)
    assert torch.allclose(output.features, last, atol=1e-12, rtol=0)
    parameters = list(network.parameters())
    gradients = [torch.autograd.grad(x.square().sum(), parameters) for x in (output.logits, logits)]
    assert all(torch.allclose(a, b, atol=1e-9, rtol=0) for a, b in zip(*gradients, strict=True))


def test_the_sizes_are_those_of_the_task() -> None:
    network = AdditionTransformer(113)
    attention, mlp = 4 * 128 * 128, 2 * 128 * 512 + 512 + 128
    assert sum(p.numel() for p in network.parameters()) == 114 * 128 + 3 * 128 + attention + mlp + 128 * 113
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in network.modules())
    assert float(network.inner.weight.detach().std()) == pytest.approx(1 / math.sqrt(128), rel=0.02)


def test_the_loss_sees_what_float32_rounds_away() -> None:
    logits = torch.zeros(1, 3)
    logits[0, 1] = 20.0
    loss = addition_loss(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-20)), rel=1e-12)
    assert torch.nn.functional.cross_entropy(logits, torch.tensor([1])).item() == 0.0


def test_figures_are_of_the_last_residual_against_the_answers_rows() -> None:
    torch.manual_seed(0)
    network = AdditionTransformer(7, width=12, heads=3, hidden=20)
    pairs, answers = all_sums(7)
    trained = torch.zeros(49, dtype=torch.bool)
    trained[train_positions(7, 0.6, 1)] = True
    figures = grokking.evaluate_addition(network, pairs, answers, trained, 3)
    with torch.no_grad():
        logits, last = reference(network, pairs)
        for part, rows in (("train", trained), ("test", ~trained)):
            features = gram_matrix(last[rows].double())
            targets = gram_matrix(network.classifier.weight[answers[rows]].double())
            expected = {
                "accuracy": 100 * (logits[rows].argmax(1) == answers[rows]).double().mean().item(),
                "feature_entropy": matrix_entropy(features).item(),
                "classifier_entropy": matrix_entropy(targets).item(),
                "mutual_information_ratio": mutual_information_ratio(features, targets).item(),
                "entropy_difference_ratio": entropy_difference_ratio(features, targets).item(),
                "samples": float(rows.sum()),
            }
            assert {name: figures[f"{part}_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_early_evaluations_lie_closer() -> None:
    options = GrokkingConfig(epochs=70, eval_every=30)
    assert [e for e in range(1, 71) if grokking.is_evaluated(e, options)] == [1, 2, 5, 10, 20, 30, 60, 70]


def test_a_step_is_that_of_adamw_on_all_training_sums(tmp_path: Path) -> None:
    config = lab_config("grokking", tmp_path, grokking=replace(GROKKING, epochs=2))
    (folder,) = lab(config)
    torch.manual_seed(1)
    network = AdditionTransformer(7, 8, 2, 16)
    pairs, answers = all_sums(7)
    rows = train_positions(7, 0.6, 1)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    for step in (1, 2):
        logits, _ = reference(network, pairs[rows])
        chosen = logits.double().log_softmax(1)[torch.arange(len(rows)), answers[rows]]
        gradients = torch.autograd.grad(-chosen.mean(), list(network.parameters()))
        with torch.no_grad():
            for p, g, (m, v) in zip(network.parameters(), gradients, moments, strict=True):
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.98).add_(g * g, alpha=0.02)
                p.mul_(1 - 1e-3 * 1.0)
                p.sub_(1e-3 * (m / (1 - 0.9**step)) / ((v / (1 - 0.98**step)).sqrt() + 1e-8))
    with torch.no_grad():
        logits = reference(network, pairs[rows])[0]
    loss = addition_loss(logits, answers[rows]).item()
    assert curves_of(folder)[-1]["train_loss"] == pytest.approx(loss, rel=1e-5)


class StoppedError(Exception):
    """Stands for a kill."""


def test_a_stopped_run_ends_as_one_that_was_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (lab_config("grokking", tmp_path / name, checkpoint_every=3) for name in "ab")
    lab(whole)
    evaluate = grokking.evaluate_addition
    taken: list[int] = []

    def stopping(*arguments: object) -> dict[str, float]:
        taken.append(int(str(arguments[-1])))
        if taken[-1] in (5, 10) and taken.count(taken[-1]) == 1:
            raise StoppedError
        return evaluate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(grokking, "evaluate_addition", stopping)
    for _ in range(2):
        with pytest.raises(StoppedError):
            lab(stopped)
    lab(stopped)
    assert taken == [1, 2, 5, 5, 10, 10, 12]  # the early ones were not made again
    assert left_in(tmp_path / "b") == left_in(tmp_path / "a")


def test_a_finished_run_is_skipped_and_another_one_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = lab_config("grokking", tmp_path)
    lab(config)
    monkeypatch.setattr(grokking, "fit_addition", None)
    lab(replace(config, temperatures=[3.0], max_mi=0.5, dataset="shapes"))  # of no account here
    assert "finished before, skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"differs in grokking\.lr"):
        lab(replace(config, grokking=replace(GROKKING, lr=0.1)))


def test_a_share_has_to_leave_both_sets(tmp_path: Path) -> None:
    for share in (0.001, 0.999):
        with pytest.raises(UserError, match=r"leave training and test sums out of 49, got 0\.\d+"):
            lab(lab_config("grokking", tmp_path, grokking=replace(GROKKING, train_share=share)))


def test_the_record_says_what_was_trained(tmp_path: Path) -> None:
    (folder,) = lab(lab_config("grokking", tmp_path, seeds=[4]))
    assert folder == tmp_path / "lab/modular-addition-7/transformer/grokking/labels_all/seed4"
    ((record, curves),) = left_in(tmp_path).values()
    assert [entry["epoch"] for entry in curves] == [1, 2, 5, 10, 12]
    assert record["figures"] == {name: v for name, v in curves[-1].items() if name != "epoch"}
    assert record["dataset"]["train_sums"] == 29 and record["dataset"]["test_sums"] == 20
    assert record["dataset"]["classes"] == 7 and record["training"]["steps"] == 12
