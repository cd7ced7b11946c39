"""The collapse monitor as a torchmetrics metric: over batches and two gloo processes what one call gives."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from cma_tune import collapse_metric
from cma_tune.collapse_metric import CollapseMetric
from cma_tune.metrics import CollapseMonitor

torch.set_num_threads(1)

SIZE, DIMS, CLASSES = 20, 6, 4
SHARES = {"12 and 8": (12, 8), "20 and 0": (20, 0), "0 and 20": (0, 20)}


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SIZE, DIMS, generator=generator, dtype=torch.float64)
    classifier = torch.randn(CLASSES, DIMS, generator=generator)
    return features, torch.randint(CLASSES, (SIZE,), generator=generator), classifier


def check(found: dict[str, Tensor], center: bool = False) -> None:
    expected = {name: value for name, value in CollapseMonitor(center)(*data()).items() if value is not None}
    assert expected["nc1"] > 0.1 and expected["mutual_information"] > 0.1
    assert tuple(found) == CollapseMonitor.names
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-10)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    features, labels, classifier = data()
    results = {}
    for shares, (first, _) in SHARES.items():
        metric = CollapseMetric()
        mine = range(first) if rank == 0 else range(first, SIZE)
        for start in range(mine.start, mine.stop, 5):
            part = slice(start, min(start + 5, mine.stop))
            metric.update(features[part], labels[part], classifier)
        results[shares] = metric.compute()
        results[f"{shares}, kept"] = {"rows": torch.tensor(sum(map(len, metric.labels)))}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes found."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_give_the_figures_of_one(two: list[dict[str, dict[str, Tensor]]], shares: str) -> None:
    for process, rows in zip(two, SHARES[shares], strict=True):
        check(process[shares])
        assert process[f"{shares}, kept"]["rows"] == rows  # each goes on with its own


@pytest.mark.parametrize("center", [False, True])
def test_batches_give_the_figures_of_all_rows(center: bool) -> None:
    features, labels, classifier = data()
    metric = CollapseMetric(center)
    for _ in range(2):
        metric.update(features[:3], labels[:3], classifier * 9 - 1)
        metric.update(features[3:3], labels[3:3], classifier)
        metric.update(features[3:], labels[3:], classifier)  # the last classifier counts
        check(metric.compute(), center)
        metric.reset()


def test_a_call_gives_the_batch_and_keeps_the_rest() -> None:
    features, labels, classifier = data()
    metric = CollapseMetric()
    metric.update(features[:8], labels[:8], classifier + 1)
    values = metric(features[8:], labels[8:], classifier)
    expected = CollapseMonitor()(features[8:], labels[8:], classifier)
    assert values["feature_entropy"].item() == pytest.approx(expected["feature_entropy"], abs=1e-12)
    check(metric.compute())


def test_what_is_undefined_is_nan() -> None:
    features, _, classifier = data()
    metric = CollapseMetric()
    metric.update(features, torch.zeros(SIZE, dtype=torch.int64), classifier)
    values = metric.compute()
    assert values["nc1"].isnan() and values["mutual_information_ratio"].isnan()
    assert values["samples"] == SIZE and values["feature_entropy"] > 1


def test_wrong_inputs_are_refused_saying_what_came() -> None:
    features, labels, classifier = data()
    metric = CollapseMetric()
    with pytest.raises(ValueError, match="Expected an update before compute, got none"):
        metric.compute()
    with pytest.raises(ValueError, match=r"Expected `labels` of shape \[20\]"):
        metric.update(features, labels[1:], classifier)
    with pytest.raises(ValueError, match=r"Expected `labels` in 0\.\.1 for 2 classes"):
        metric.update(features, labels, classifier[:2])
    metric.update(features, labels, classifier)
    with pytest.raises(
        ValueError, match=r"Expected `classifier` of shape \[4, 6\] as before, got .* \[5, 6\]"
    ):
        metric.update(features, labels, classifier[[0, 1, 2, 3, 3]])


def test_without_torchmetrics_one_sentence_says_what_to_install() -> None:
    script = "import sys; sys.modules['torchmetrics'] = None; import cma_tune.collapse_metric"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: Expected the package torchmetrics for CollapseMetric, but it is not installed; "
        "pip install 'cma_tune[torchmetrics]'."
    )


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(collapse_metric)
    assert results.attempted > 2 and results.failed == 0
