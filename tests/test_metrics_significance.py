"""Paired tests against scipy, and against a bootstrap that draws image by image."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from cma_tune.metrics.significance import fair_coin_p, image_test, paired_t_test, sign_test, student_t_p


@pytest.mark.parametrize("count", [2, 3, 4, 5, 11, 30])
def test_paired_t_is_scipys(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for shift in (0.0, 0.3, 3.0):
        first = torch.randn(count, generator=generator, dtype=torch.float64)
        second = first + shift + torch.randn(count, generator=generator, dtype=torch.float64)
        found = paired_t_test(first.tolist(), second.tolist())
        expected = stats.ttest_rel(second.numpy(), first.numpy())
        assert found is not None and found.degrees == count - 1
        assert found.t == pytest.approx(expected.statistic, rel=1e-10)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-14)
        assert found.difference == pytest.approx(float((second - first).mean()))


def test_student_t_by_closed_form_and_scipy() -> None:
    assert student_t_p(1.0, 1) == pytest.approx(0.5)  # Cauchy's quartiles are ±1
    assert student_t_p(2.0, 2) == pytest.approx(1 - 2 / math.sqrt(6))  # ν = 2: 1 − t/√(2+t²)
    for degrees in (1, 2, 3, 4, 7, 10, 100, 1001):
        for t in (0.0, 0.1, -1.3, 2.5, 8.0, 50.0):
            expected = 2 * stats.t.sf(abs(t), degrees)
            assert student_t_p(t, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-13)
    with pytest.raises(ValueError, match="at least 1 degree"):
        student_t_p(1.0, 0)


def test_without_spread_the_difference_alone_decides() -> None:
    assert paired_t_test([1.0], [2.0]) is None
    same, apart = paired_t_test([1.0, 2.0], [1.0, 2.0]), paired_t_test([1.0, 2.0], [3.0, 4.0])
    scipys = stats.ttest_rel([1.0, 2.0], [1.0, 2.0])  # nan, nan
    assert same is not None and [same.t, same.p] == pytest.approx(
        [scipys.statistic, scipys.pvalue], nan_ok=True
    )
    assert apart is not None and (apart.t, apart.p) == (math.inf, pytest.approx(0.0, abs=1e-15))
    with pytest.raises(ValueError, match="as many figures of both, got 1 and 2"):
        paired_t_test([1.0], [2.0, 3.0])


def test_a_fair_coin_is_scipys_also_for_many_throws() -> None:
    for heads, tails in ((0, 1), (0, 3), (1, 5), (4, 4), (3, 11), (40, 71), (900, 1100), (20_000, 20_500)):
        expected = stats.binomtest(heads, heads + tails).pvalue
        assert fair_coin_p(heads, tails) == pytest.approx(expected, rel=1e-9)
        assert fair_coin_p(tails, heads) == fair_coin_p(heads, tails)
    assert fair_coin_p(0, 0) == 1.0


def test_sign_test_drops_ties() -> None:
    assert sign_test([1.0, 1.0, 1.0, 5.0], [2.0, 2.0, 2.0, 5.0]) == pytest.approx(0.25)  # 2·(1/2)³
    assert sign_test([1.0], [1.0]) == 1.0


def test_images_by_mcnemar_and_a_bootstrap_that_draws_images() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(300, generator=generator) < 0.7
    second = torch.where(torch.rand(300, generator=generator) < 0.8, first, torch.ones(300, dtype=torch.bool))
    found = image_test(first, second, samples=20_000)
    lost = sum(a and not b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    won = sum(b and not a for a, b in zip(first.tolist(), second.tolist(), strict=True))
    assert (found.first_only, found.second_only, found.images) == (lost, won, 300)
    assert found.p == pytest.approx(stats.binomtest(lost, lost + won).pvalue, rel=1e-9)
    assert found.difference == pytest.approx(100 * float(second.double().mean() - first.double().mean()))
    drawn = torch.randint(300, (20_000, 300), generator=generator)
    gain = 100 * (second.double() - first.double())
    low, high = torch.quantile(gain[drawn].mean(dim=1), torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert found.low == pytest.approx(float(low), abs=0.35)  # a third of a point is one image
    assert found.high == pytest.approx(float(high), abs=0.35)
    assert image_test(first, second, samples=20_000) == found  # the same numbers every time


def test_both_kinds_of_images_widen_the_bootstrap() -> None:
    # 40 wins and 40 losses of 100: the variance of a draw is 0.8, so a mean of 100 has ±1.96·√0.8/10·100.
    first = torch.tensor([True] * 40 + [False] * 40 + [True] * 20)
    second = torch.tensor([False] * 40 + [True] * 40 + [True] * 20)
    found = image_test(first, second)
    assert found.difference == 0 and found.p == 1.0
    assert found.high == pytest.approx(17.5, abs=1.0) and found.low == pytest.approx(-17.5, abs=1.0)


def test_every_image_won_has_no_spread_and_wrong_vectors_are_refused() -> None:
    none, every = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    found = image_test(none, every)
    assert (found.low, found.high, found.p) == (100.0, 100.0, pytest.approx(0.125))
    for wrong in (torch.ones(4), torch.ones(3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="Expected two bool vectors"):
            image_test(none, wrong)
    with pytest.raises(ValueError, match="N above 0"):
        image_test(none[:0], none[:0])
