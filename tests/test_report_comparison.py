"""What is said of the figures, from made-up records: higher, lower, or too close to tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report_tables import base_to_novel, few_shot, zero_shot

from cma_tune.config import BaseToNovelConfig, ContextConfig, FewShotConfig
from cma_tune.report import comparison_sentence

START = "What the CMA loss changed here, in points of the mean: "
CLOSE = "; 'within the intervals' is too close to tell from these seeds."


def test_every_number_of_shots_is_told_by_its_own_figures() -> None:
    # Means 71, 80, 90 against 74, 79, 90.5; half widths 1.96·1/√2 = 1.39 each, but none at 4 shots.
    records = [
        *few_shot({1: [70.0, 72.0], 4: [80.0, 80.0], 16: [89.0, 91.0]}),
        *few_shot({1: [73.0, 75.0], 4: [79.0, 79.0], 16: [89.5, 91.5]}, weight=0.3),
        zero_shot(99.0),
    ]
    assert comparison_sentence(records) == (
        f"{START}CoOp on digits, accuracy: λ=0.3 at 1 shot +3.00 (higher), at 4 shots −1.00 (lower), "
        f"at 16 shots +0.50 (within the intervals){CLOSE}"
    )


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([72.78, 74.78], "higher"),  # 2.78 apart: two half widths of 1.3859 are 2.7719
        ([72.77, 74.77], "within the intervals"),
        ([67.23, 69.23], "within the intervals"),
        ([67.22, 69.22], "lower"),
    ],
)
def test_a_word_needs_intervals_that_do_not_overlap(values: list[float], word: str) -> None:
    sentence = comparison_sentence([*few_shot({1: [70.0, 72.0]}), *few_shot({1: values}, weight=0.8)])
    assert sentence is not None and f"({word})" in sentence
    assert ("too close" in sentence) == (word == "within the intervals")


def test_base_to_novel_is_told_in_the_harmonic_mean_for_every_lambda() -> None:
    records = [
        *base_to_novel([(60, 60), (60, 60)], 0.0),
        *base_to_novel([(90, 50), (90, 50)], 0.3),  # H = 64.29
        *base_to_novel([(95, 40), (95, 40)], 0.7),  # H = 56.30
    ]
    assert comparison_sentence(records) == (
        f"{START}CoOp on digits at 16 shots, H: λ=0.3 +4.29 (higher), λ=0.7 −3.70 (lower)."
    )


def test_one_seed_has_no_interval_to_speak_of() -> None:
    records = [*few_shot({1: [70.0]}), *few_shot({1: [90.0]}, weight=0.8)]
    assert comparison_sentence(records) == (
        f"{START}CoOp on digits, accuracy: λ=0.8 at 1 shot +20.00 (one seed, no interval)."
    )


def test_only_what_was_run_both_ways_is_compared() -> None:
    plain, penalty = few_shot({1: [70.0, 72.0]}), few_shot({1: [80.0, 82.0], 4: [90.0, 90.0]}, weight=0.5)
    assert comparison_sentence([]) is None
    assert comparison_sentence(plain) is None and comparison_sentence(penalty) is None
    assert comparison_sentence([*few_shot({16: [70.0, 72.0]}), *penalty]) is None
    sentence = comparison_sentence([*plain, *penalty])
    assert sentence is not None and "1 shot" in sentence and "4 shots" not in sentence
    # Another method's figures, or two settings of the plain one, are nothing to compare to.
    other = FewShotConfig(learner="cocoop")
    assert comparison_sentence([*few_shot({1: [70.0, 72.0]}, config=other), *penalty]) is None
    longer = FewShotConfig(context=ContextConfig(tokens=4))
    assert comparison_sentence([*plain, *few_shot({1: [60.0, 61.0]}, config=longer), *penalty]) is None


def test_datasets_and_protocols_stand_side_by_side() -> None:
    shapes = BaseToNovelConfig(dataset="shapes")
    few = [*few_shot({1: [70.0, 70.0]}), *few_shot({1: [71.0, 71.0]}, weight=0.3)]
    novel = [*base_to_novel([(50, 50)], 0.0, shapes), *base_to_novel([(40, 40)], 0.3, shapes)]
    chosen = [
        replace(
            one,
            run=f"chosen {one.seed}",
            selection={"on": "validation", "candidates": [[0.3, 1.0]]},
        )
        for one in few_shot({1: [72.0, 72.0]}, weight=0.3)
    ]
    assert comparison_sentence([*few, *chosen, *novel]) == (
        f"{START}CoOp on digits, accuracy: λ=0.3 at 1 shot +1.00 (higher), "
        "λ chosen on validation at 1 shot +2.00 (higher); "
        "CoOp on shapes at 16 shots, H: λ=0.3 −10.00 (one seed, no interval)."
    )
