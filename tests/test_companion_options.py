"""What a companion's config means: defaults that go with the dataset, and what decides a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cma_tune.companion_checks import check_companion
from cma_tune.companion_options import (
    InterplayConfig,
    LabConfig,
    MatchingConfig,
    ScheduleConfig,
    SemiSupervisedConfig,
    SupervisedConfig,
)
from cma_tune.companion_run import CompanionRun, expand_companion, unread_entries
from cma_tune.errors import UserError


def only(config: SupervisedConfig) -> CompanionRun:
    (run,) = expand_companion("any", config)
    return run


@pytest.mark.parametrize(
    ("dataset", "network", "steps", "ema", "decay", "flip"),
    [
        ("cifar10", "wrn-28-2", 2**20, 0.999, 5e-4, 0.5),
        ("cifar100", "wrn-28-8", 2**20, 0.999, 1e-3, 0.5),
        ("stl10", "wrn-37-2", 2**20, 0.999, 5e-4, 0.5),
        ("digits", "small-cnn", 1000, 0.98, 5e-4, 0.0),
        ("folder:images", "wrn-28-2", 1000, 0.98, 5e-4, 0.5),
    ],
)
def test_defaults_go_with_the_dataset(
    dataset: str, network: str, steps: int, ema: float, decay: float, flip: float
) -> None:
    config = only(SupervisedConfig(dataset=dataset)).config
    schedule = config.schedule
    assert (config.network, schedule.steps, schedule.ema) == (network, steps, ema)
    assert (schedule.weight_decay, config.flip, config.eval_every) == (decay, flip, steps // 20)


def test_what_is_given_stays() -> None:
    schedule = ScheduleConfig(steps=7, ema=0.0, weight_decay=0.1)
    config = only(SupervisedConfig("cifar10", network="small-cnn", schedule=schedule, eval_every=3)).config
    assert (config.schedule, config.network, config.eval_every) == (schedule, "small-cnn", 3)
    paper = SupervisedConfig("cifar100", schedule=ScheduleConfig(weight_decay="paper"))
    assert only(paper).config.schedule.weight_decay == 5e-4


def schedule(**entries: float) -> SupervisedConfig:
    return SupervisedConfig(schedule=replace(ScheduleConfig(), **entries))  # type: ignore[arg-type]


FIXMATCH = SemiSupervisedConfig(algorithm="fixmatch")


@pytest.mark.parametrize(
    ("config", "same", "other"),
    [
        (
            SupervisedConfig(),
            SupervisedConfig(schedule=ScheduleConfig(ratio=3), output="elsewhere", compile=True),
            SupervisedConfig(schedule=ScheduleConfig(batch_size=3)),
        ),
        (
            SupervisedConfig(),
            SupervisedConfig(interplay=InterplayConfig(view="weak")),
            SupervisedConfig(interplay=InterplayConfig(center=True)),
        ),
        (
            FIXMATCH,
            replace(FIXMATCH, matching=MatchingConfig(alignment="usb", fairness_weight=3.0)),
            replace(FIXMATCH, matching=MatchingConfig(threshold=0.5)),
        ),
        (
            replace(FIXMATCH, max_mi=0.1),
            replace(FIXMATCH, max_mi=0.1, eval_batch_size=3),
            replace(FIXMATCH, max_mi=0.1, interplay=InterplayConfig(view="weak")),
        ),
        (LabConfig(), LabConfig(points=3), LabConfig(experiment="connectivity")),
    ],
)
def test_what_takes_no_part_does_not_make_another_run(
    config: SupervisedConfig, same: SupervisedConfig, other: SupervisedConfig
) -> None:
    assert only(same).digest() == only(config).digest() != only(other).digest()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (SupervisedConfig(max_mi=-1.0), "Expected a finite --max-mi of at least 0, got -1.0."),
        (SupervisedConfig(min_hd=float("nan")), "Expected a finite --min-hd of at least 0, got nan."),
        (SupervisedConfig(image_size=4), "Expected --image-size of at least 8, got 4."),
        (SupervisedConfig(labels=[]), "Expected at least one value for --labels, got none."),
        (SupervisedConfig(seeds=[1, 1]), "Expected every value of --seeds once"),
        (SupervisedConfig(flip=2.0), "Expected --flip between 0 and 1, got 2.0."),
        (
            SupervisedConfig(schedule=ScheduleConfig(steps=0)),
            "Expected --schedule.steps of at least 1, got 0.",
        ),
        (
            SupervisedConfig(schedule=ScheduleConfig(ema=1.0)),
            "Expected --schedule.ema of at least 0 and below 1",
        ),
        (
            SupervisedConfig(schedule=ScheduleConfig(lr=0.0)),
            "Expected a finite --schedule.lr above 0, got 0.0.",
        ),
        (SemiSupervisedConfig(labels=[0]), "use cma-tune supervised to train on all labels."),
        (
            SemiSupervisedConfig(matching=MatchingConfig(threshold=1.5)),
            "Expected --matching.threshold between 0 and 1, got 1.5.",
        ),
        (LabConfig(points=1), "Expected --points of at least 2, got 1."),
        (LabConfig(temperatures=[1.0, 0.0]), "Expected a finite --temperatures above 0, got 0.0."),
    ],
)
def test_mistakes_are_named(config: SupervisedConfig, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_companion(config)
    assert sentence in str(caught.value)


def test_all_labels_are_fine_where_the_unlabelled_are_ignored() -> None:
    check_companion(SemiSupervisedConfig(labels=[0], algorithm="supervised"))


def test_options_that_nothing_reads_are_told() -> None:
    plain = SemiSupervisedConfig(algorithm="fixmatch")
    assert unread_entries(plain) == unread_entries(SupervisedConfig()) == unread_entries(LabConfig()) == []
    assert unread_entries(replace(plain, matching=MatchingConfig(threshold=0.9, momentum=0.5))) == [
        "matching.momentum"
    ]
    ratio = ScheduleConfig(ratio=3, steps=7)
    assert unread_entries(SupervisedConfig(schedule=ratio)) == ["schedule.ratio"]
    assert unread_entries(replace(plain, schedule=ratio)) == []
    view = InterplayConfig(view="weak", order=2)
    assert unread_entries(SupervisedConfig(interplay=view)) == ["interplay.view", "interplay.order"]
    assert unread_entries(SupervisedConfig(interplay=view, max_mi=0.1)) == ["interplay.view"]
    assert unread_entries(replace(plain, interplay=view, max_mi=0.1)) == []
    pseudo = replace(plain, algorithm="pseudo-label", interplay=view, max_mi=0.1)
    assert unread_entries(pseudo) == ["interplay.view"]  # it has weak views alone
    lab = LabConfig(experiment="grokking", max_mi=0.1, labels=[20], rates=[1.0])
    assert sorted(unread_entries(lab)) == ["labels", "max_mi", "rates"]
    assert unread_entries(replace(lab, experiment="connectivity")) == []
    logged = LabConfig(experiment="grokking", tracker="tensorboard", output="elsewhere", resume=False)
    assert unread_entries(logged) == ["tracker"]
