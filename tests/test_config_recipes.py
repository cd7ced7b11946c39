"""The configs that ship, and the published recipes they stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cma_tune.cli import parse
from cma_tune.config import BaseToNovelConfig, FewShotConfig, LossConfig, OptimConfig
from cma_tune.data.catalog import CATALOG
from cma_tune.errors import UserError
from cma_tune.method_facts import BLOCKS, UNTRAINED
from cma_tune.recipes import recipe_epochs, recipe_weight
from cma_tune.run import Run, expand, resolved_optim

CONFIGS = Path(__file__).parents[1] / "configs"
# The companion's have a test of their own.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "companion")
PROTOCOLS = {
    "few_shot": "few-shot",
    "base_to_novel": "base-to-novel",
    "quickstart.yaml": "few-shot",
    "quickstart_shapes.yaml": "base-to-novel",
}
"""Protocol of a config by its folder, or by its name where it has none."""

SHOTS = (1, 2, 4, 8, 16)
RELEASE = {
    "caltech101": (0.8, 0.8, 0.8, 0.8, 0.8),
    "dtd": (0.4, 0.4, 0.7, 0.7, 0.7),
    "eurosat": (0.1, 0.1, 0.1, 0.1, 0.1),
    "fgvc_aircraft": (0.8, 0.8, 0.8, 0.8, 0.8),
    "food101": (0.8, 0.8, 0.8, 0.8, 0.8),
    "imagenet": (0.1, 0.1, 0.1, 0.1, 0.1),
    "oxford_flowers": (0.7, 0.7, 0.7, 0.7, 0.7),
    "oxford_pets": (0.9, 0.9, 0.9, 0.9, 0.9),
    "stanford_cars": (0.1, 0.1, 0.1, 0.1, 0.1),
    "sun397": (0.2, 0.2, 0.2, 0.2, 0.2),
    "ucf101": (0.8, 0.8, 0.8, 0.6, 0.6),
}
"""λ of the release for 1, 2, 4, 8, 16 shots."""


def load(name: str, *flags: str) -> Any:
    file = CONFIGS / name
    key = file.name if file.parent == CONFIGS else file.parent.name
    return parse(PROTOCOLS[key], ["--config", str(file), *flags])


def of(run: Run) -> FewShotConfig:
    assert isinstance(run.config, FewShotConfig)
    return run.config


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CONFIGS)) for file in FILES])
def test_every_config_loads_and_says_all_it_holds(file: Path) -> None:
    loaded = load(str(file.relative_to(CONFIGS)))
    novel = file.parent.name == "base_to_novel" or file.name == "quickstart_shapes.yaml"
    assert type(loaded) is (BaseToNovelConfig if novel else FewShotConfig)

    def check(written: dict[str, Any], read: Any) -> None:
        for key, value in written.items():
            if isinstance(value, dict):
                check(value, getattr(read, key))
            else:
                assert getattr(read, key) == value, key

    written = yaml.safe_load(file.read_text())
    assert len(written) >= 10
    check(written, loaded)


def test_these_are_the_configs() -> None:
    assert [str(file.relative_to(CONFIGS)) for file in FILES] == [
        "base_to_novel/clip_adapter_vit_b16.yaml",
        "base_to_novel/cma_vit_b16.yaml",
        "base_to_novel/cocoop_vit_b16.yaml",
        "base_to_novel/coop_vit_b16.yaml",
        "base_to_novel/ivlp_vit_b16.yaml",
        "base_to_novel/kgcoop_vit_b16.yaml",
        "base_to_novel/lora_vit_b16.yaml",
        "base_to_novel/maple_vit_b16.yaml",
        "base_to_novel/prograd_vit_b16.yaml",
        "base_to_novel/promptsrc_vit_b16.yaml",
        "base_to_novel/tcp_vit_b16.yaml",
        "base_to_novel/vpt_vit_b16.yaml",
        "few_shot/clip_adapter_rn50.yaml",
        "few_shot/cma_rn50.yaml",
        "few_shot/cocoop_vit_b16.yaml",
        "few_shot/coop_rn50.yaml",
        "few_shot/cross_modal_probe_rn50.yaml",
        "few_shot/ivlp_vit_b16.yaml",
        "few_shot/kgcoop_rn50.yaml",
        "few_shot/linear_probe_rn50.yaml",
        "few_shot/linear_probe_text_rn50.yaml",
        "few_shot/lora_vit_b16.yaml",
        "few_shot/lp_plus_plus_rn50.yaml",
        "few_shot/maple_vit_b16.yaml",
        "few_shot/prograd_rn50.yaml",
        "few_shot/promptsrc_vit_b16.yaml",
        "few_shot/tcp_vit_b16.yaml",
        "few_shot/tip_adapter_f_rn50.yaml",
        "few_shot/tip_adapter_rn50.yaml",
        "few_shot/vpt_vit_b16.yaml",
        "quickstart.yaml",
        "quickstart_shapes.yaml",
    ]


NAMED = [str(file.relative_to(CONFIGS)) for file in FILES if file.parent != CONFIGS]
LIKE_COOP = ("cma", "cocoop", "coop", "kgcoop", "prograd")
"""Methods with CoOp's optimiser."""
OF_ITS_OWN = "few_shot/promptsrc_vit_b16.yaml"
"""Differs from the method's defaults, which are those of base-to-novel."""


def method_of(name: str) -> str:
    """The method's part of a file's name."""
    return Path(name).stem.removesuffix("_rn50").removesuffix("_vit_b16")


@pytest.mark.parametrize("name", [name for name in NAMED if method_of(name) not in LIKE_COOP])
def test_recipes_and_defaults_of_the_other_methods_agree(name: str) -> None:
    config = load(name)
    assert config.learner == method_of(name) and config.weights == [0.0] and config.seeds == [1, 2, 3]
    assert config.backbone == ("RN50-quickgelu" if "rn50" in name else "ViT-B-16-quickgelu")
    assert config.pretrained == "openai" and config.shots == ([16] if "novel" in name else list(SHOTS))
    written = yaml.safe_load((CONFIGS / name).read_text())
    # What the method is beside data and schedule stands in the file, and is the default too.
    plain = FewShotConfig(learner=config.learner)
    for block in BLOCKS[config.learner]:
        assert block == "context" or set(written[block]) == set(vars(getattr(plain, block)))
        assert block == "context" or name == OF_ITS_OWN or getattr(config, block) == getattr(plain, block)
    if config.learner not in UNTRAINED:
        assert set(written["optim"]) >= {"optimizer", "batch_size", "lr", "warmup_lr", "weight_decay"}
        default = resolved_optim(replace(config, optim=OptimConfig()), 16)
        assert name == OF_ITS_OWN or resolved_optim(config, 16) == default


def test_promptsrcs_few_shot_differs_in_epochs_and_their_mean_alone() -> None:
    config, novel = load(OF_ITS_OWN), load("base_to_novel/promptsrc_vit_b16.yaml")
    assert config.optim == replace(novel.optim, epochs=50)
    assert config.promptsrc == replace(novel.promptsrc, mean=30.0, std=30.0)


@pytest.mark.parametrize("name", [name for name in NAMED if method_of(name) in LIKE_COOP])
def test_what_all_references_share(name: str) -> None:
    config = load(name)
    optim = config.optim
    assert (optim.lr, optim.warmup_lr, optim.momentum, optim.weight_decay) == (0.002, 1e-5, 0.9, 5e-4)
    assert (config.augment.scale_min, config.augment.flip) == (0.08, 0.5)
    assert config.train_features == "live" and config.eval_batch_size == 100 and config.seeds == [1, 2, 3]
    assert config.pretrained == "openai" and not config.select_weight and not config.context.per_class
    assert config.backbone == ("RN50-quickgelu" if "rn50" in name else "ViT-B-16-quickgelu")
    assert config.context.position == "end"


def test_few_shot_as_the_references_ran_it() -> None:
    for name in ("coop", "cma"):
        config = load(f"few_shot/{name}_rn50.yaml")
        assert config.learner == "coop" and config.shots == list(SHOTS)
        assert (config.context.tokens, config.context.words) == (16, None)
        assert config.optim.batch_size == 32 and config.optim.epochs is None
    assert load("few_shot/coop_rn50.yaml").weights == [0.0]
    cma = load("few_shot/cma_rn50.yaml")
    assert cma.weights == ["recipe"] and cma.loss == LossConfig("mean", True)


def test_base_to_novel_as_the_references_ran_it() -> None:
    coop, cocoop, cma = (load(f"base_to_novel/{name}_vit_b16.yaml") for name in ("coop", "cocoop", "cma"))
    assert all(config.shots == [16] for config in (coop, cocoop, cma))
    assert (coop.learner, coop.context.words, coop.optim.batch_size) == ("coop", "a photo of a", 32)
    assert (cocoop.learner, cocoop.context.words) == ("cocoop", "a photo of a")
    assert (cocoop.optim.batch_size, cocoop.optim.epochs) == (1, 10)
    # The release's: no conditional net, 16 random tokens, batch 1, 10 epochs.
    assert (cma.learner, cma.context.words, cma.context.tokens) == ("coop", None, 16)
    assert (cma.optim.batch_size, cma.optim.epochs) == (1, 10)
    assert cma.loss == LossConfig("mean", True)
    assert cma.weights == pytest.approx([tenth / 10 for tenth in range(11)])
    epochs = {
        name: of(expand("base-to-novel", config)[0]).optim.epochs
        for name, config in [("coop", coop), ("cocoop", cocoop), ("cma", cma)]
    }
    assert epochs == {"coop": 200, "cocoop": 10, "cma": 10}
    imagenet = load("base_to_novel/coop_vit_b16.yaml", "--dataset=imagenet")
    assert of(expand("base-to-novel", imagenet)[0]).optim.epochs == 50


def test_the_releases_weights_for_all_eleven() -> None:
    assert set(RELEASE) == set(CATALOG) and len(RELEASE) == 11
    for dataset, weights in RELEASE.items():
        runs = expand("few-shot", load("few_shot/cma_rn50.yaml", f"--dataset={dataset}"))
        assert len(runs) == len(SHOTS) * 3
        for run in runs:
            config = of(run)
            expected = weights[SHOTS.index(config.shots[0])]
            assert config.weights == [expected] == [recipe_weight(dataset, config.shots[0])], dataset


def test_epochs_follow_the_shots() -> None:
    expected = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
    for dataset in CATALOG:
        for shots, epochs in expected.items():
            assert recipe_epochs(dataset, shots) == (50 if dataset == "imagenet" else epochs)
    runs = expand("few-shot", load("few_shot/coop_rn50.yaml", "--dataset=dtd"))
    assert {of(run).shots[0]: of(run).optim.epochs for run in runs} == expected


@pytest.mark.parametrize(
    ("dataset", "shots", "at"),
    [("dtd", 3, "3 shots"), ("digits", 16, "16 shots"), ("folder:x", 1, "1 shot")],
)
def test_where_the_release_has_no_weight_one_must_be_given(dataset: str, shots: int, at: str) -> None:
    with pytest.raises(UserError, match=rf"Expected a λ of the release for '{dataset}' at {at}, but it "):
        recipe_weight(dataset, shots)
