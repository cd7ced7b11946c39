"""λ is chosen on the few-shot validation images and on nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import backbone, base_to_novel_config, few_shot_config

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, LossConfig
from cma_tune.data.splits import Split
from cma_tune.errors import UserError
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.selection import choices, choose, select_weights
from cma_tune.records import Record, load_record, save_record
from cma_tune.run import Run, expand


def record(weight: float, validation: float | None, test: float = 50.0, seed: int = 1) -> Record:
    figures = {"accuracy": test, "class_similarity": 0.3, "modal_similarity": 0.2}
    if validation is not None:
        figures["validation_accuracy"] = validation
    config = {"weights": [weight], "shots": [4], "seeds": [seed], "select_weight": False}
    config |= {"learner": "coop", "optim": {"epochs": 3}}
    return Record(f"run {weight} {seed}", "few-shot", config, {}, {}, figures, {})


def test_the_highest_validation_accuracy_is_chosen() -> None:
    best = choose([record(0.0, 60), record(0.3, 70), record(0.7, 65)])
    assert best.weight == 0.3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_ties_go_to_the_smaller_weight(order: tuple[int, ...]) -> None:
    candidates = [record(0.9, 70), record(0.2, 70), record(0.0, 69)]
    assert choose([candidates[i] for i in order]).weight == 0.2


def test_test_figures_do_not_change_the_choice() -> None:
    generator = random.Random(0)
    for _ in range(50):
        validation = [generator.choice([60.0, 61.0, 62.0]) for _ in range(4)]
        weights = [0.0, 0.1, 0.5, 1.0]
        tests = [generator.uniform(0, 100) for _ in weights]
        expected = weights[validation.index(max(validation))]
        for shuffled in (tests, tests[::-1], [100 - t for t in tests]):
            candidates = [record(*each) for each in zip(weights, validation, shuffled, strict=True)]
            assert choose(candidates).weight == expected


def test_without_validation_there_is_no_choice() -> None:
    with pytest.raises(UserError, match="Expected validation images to choose λ on"):
        choose([record(0.0, None), record(0.3, 70)])


def test_the_choice_is_a_record_that_says_what_it_was_made_from(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, weights=[0.5, 0.0, 0.3], shots=[1, 2], select_weight=True)
    records = few_shot(config, Setup(config, backbone=backbone()))
    assert len(records) == 3 * 2 + 2
    for shots, chosen in zip([1, 2], records[6:], strict=True):
        own = [r for r in records[:6] if r.shots == shots]
        assert chosen.shots == shots and chosen.selection is not None
        assert chosen.selection["on"] == "few-shot validation images"
        assert chosen.selection["candidates"] == [[r.weight, r.figures["validation_accuracy"]] for r in own]
        best = max(r.figures["validation_accuracy"] for r in own)
        weight = min(r.weight for r in own if r.figures["validation_accuracy"] == best)
        (source,) = (r for r in own if r.weight == weight)
        assert chosen.selection["chosen"] == chosen.weight == weight
        assert chosen.figures == source.figures and chosen.per_class == source.per_class
        assert chosen.config == {**source.config, "select_weight": True} and chosen.run != source.run
        path = next(tmp_path.rglob(f"coop+cma-selected/shots{shots}/seed1/record.json"))
        assert load_record(path) == chosen
    # Again, in another order of the same λ: nothing is left to do, and nothing changes.
    again = replace(config, weights=[0.0, 0.3, 0.5])
    assert few_shot(again)[6:] == records[6:]


def test_other_candidates_are_another_choice(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, weights=[0.0, 0.3], select_weight=True)
    few_shot(config, Setup(config, backbone=backbone()))
    wider = replace(config, weights=[0.0, 0.3, 0.5])
    with pytest.raises(
        UserError, match=r"coop\+cma-selected/shots3/seed1, got one of .*\(it differs in weights\)"
    ):
        few_shot(wider, Setup(wider, backbone=backbone()))
    assert len(list(tmp_path.rglob("record.json"))) == 3  # found before λ = 0.5 was trained


def test_the_choice_is_made_anew_from_altered_validation_and_not_from_altered_test_figures(
    tmp_path: Path,
) -> None:
    config = replace(few_shot_config(tmp_path, shots=[4], weights=[0.0, 0.3]), mixed_precision="no")
    setup = Setup(config, backbone=backbone())
    chosen = []
    for number, (validation, test) in enumerate(
        [((50, 60), (90, 10)), ((50, 60), (10, 90)), ((60, 50), (10, 90))]
    ):
        one = replace(config, output=str(tmp_path / str(number)), select_weight=True)
        candidates = [record(w, v, t) for w, v, t in zip([0.0, 0.3], validation, test, strict=True)]
        chosen += select_weights(choices(expand("few-shot", one)), setup, candidates)
    assert [r.weight for r in chosen] == [0.3, 0.3, 0.0]


@pytest.mark.parametrize("validation", ["none", "test"])
def test_without_validation_images_of_its_own_a_dataset_is_refused_at_once(
    tmp_path: Path, validation: str
) -> None:
    config = few_shot_config(tmp_path, weights=[0.0, 0.3], select_weight=True)
    setup = Setup(config)
    split: Split = setup.dataset.split
    setup.dataset = replace(
        setup.dataset, split=replace(split, val=() if validation == "none" else split.test)
    )
    expected = (
        "Expected validation images in 'digits' for --select-weight, got none"
        if validation == "none"
        else "that are no test images for --select-weight, got 30 test images among 30"
    )
    with pytest.raises(UserError, match=expected):
        few_shot(config, setup)
    assert not list(tmp_path.rglob("*.json"))


def test_base_to_novel_chooses_on_base_validation_images(tmp_path: Path) -> None:
    config = base_to_novel_config(tmp_path, weights=[0.0, 0.5], select_weight=True)
    *candidates, chosen = base_to_novel(config, Setup(config, backbone=backbone()))
    assert choose(candidates).figures == chosen.figures and "novel_accuracy" in chosen.figures


def test_the_folder_of_a_choice_does_not_depend_on_the_candidates(tmp_path: Path) -> None:
    base = FewShotConfig(output=str(tmp_path), loss=LossConfig("mean", True), select_weight=True)
    folders = {
        Run("few-shot", replace(base, weights=list(weights))).folder()
        for weights in ((0.0, 0.3), (0.3, 0.0), ("recipe", 0.1))
    }
    assert len(folders) == 1 and "coop+cma-selected" in str(folders.pop())


def test_a_record_of_another_run_where_the_choice_goes_is_refused(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, weights=[0.0, 0.3], select_weight=True)
    records = few_shot(config, Setup(config, backbone=backbone()))
    path = next(tmp_path.rglob("coop+cma-selected/shots3/seed1/record.json"))
    save_record(path.parent, replace(records[0], run="another"))
    with pytest.raises(UserError, match="choose another --output"):
        few_shot(config)
