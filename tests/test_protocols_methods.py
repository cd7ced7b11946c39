"""Every method through the protocols: records, files, resume, what is refused before weights load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import backbone, base_to_novel_config, cpu, few_shot_config, random_features

from cma_tune.build import Setup
from cma_tune.config import FewShotConfig, OptimConfig
from cma_tune.data.batches import Batch, StoredBatches
from cma_tune.errors import UserError
from cma_tune.learners import (
    Learner,
    LinearProbe,
    Support,
    TipAdapterF,
    from_pretrained,
    save_prompt,
)
from cma_tune.learners.base import OwnClasses
from cma_tune.learners.cards import LEARNERS
from cma_tune.method_facts import BLOCKS, OWN_CLASSES, TRAINS_IMAGES, UNTRAINED
from cma_tune.method_options import LearnerName, LoraConfig, TipConfig
from cma_tune.methods import MAKERS, Given, make_learner
from cma_tune.predict import class_probabilities, words
from cma_tune.predictions import FILE
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot
from cma_tune.report.groups import LEARNERS as NAMES
from cma_tune.run import Run, expand
from cma_tune.train import Checkpointing, Recipe, fit

OTHERS = [name for name in get_args(LearnerName) if name not in ("coop", "cocoop")]
"""CoOp and CoCoOp have tests of their own."""


def batch_of(name: str) -> int | None:
    """LP++ goes by full batches."""
    return None if name == "lp_plus_plus" else 7


def config(name: str, output: Path, **changes: Any) -> FewShotConfig:
    weights = [0.0] if name in UNTRAINED else [0.0, 0.5]
    optim = OptimConfig(epochs=2, batch_size=batch_of(name), lr=0.01)
    features = features_of(name)
    return few_shot_config(
        output, learner=name, optim=optim, weights=weights, train_features=features, **changes
    )


def features_of(name: str) -> str:
    return "live" if name in TRAINS_IMAGES else "stored"


def test_every_method_is_known_everywhere() -> None:
    names = set(get_args(LearnerName))
    assert names == set(LEARNERS) == set(MAKERS) == set(BLOCKS) == set(NAMES) - {"zero_shot"}
    assert {name for name, kind in LEARNERS.items() if issubclass(kind, OwnClasses)} == set(OWN_CLASSES)
    assert {name for name, kind in LEARNERS.items() if kind.trains_images} == set(TRAINS_IMAGES)
    assert set(UNTRAINED) <= names
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"\n| `{name}` |" not in readme] == []


@pytest.mark.parametrize("name", OTHERS)
def test_few_shot_leaves_what_can_be_read_again(name: str, tmp_path: Path) -> None:
    setup = Setup(config(name, tmp_path), backbone())
    records = few_shot(config(name, tmp_path), setup)
    runs = expand("few-shot", replace(config(name, tmp_path), mixed_precision="no"))
    for run, record in zip(runs, records, strict=True):
        assert record.learner == name and record.run == run.digest()
        assert ("cma" in record.training["losses"]) == (record.weight > 0)
        learner = from_pretrained(run.prompt_folder(), backbone())
        features, _ = setup.test_features(learner)
        predicted = load_file(run.folder() / FILE)["test"][:, 0]
        assert torch.equal(learner(features).logits.argmax(dim=1), predicted)
    again = few_shot(config(name, tmp_path), Setup(config(name, tmp_path), backbone()))
    assert again == records


@pytest.mark.parametrize("name", OTHERS)
def test_base_to_novel_takes_what_goes_to_other_classes(name: str, tmp_path: Path) -> None:
    optim = OptimConfig(epochs=1, batch_size=batch_of(name))
    one = base_to_novel_config(tmp_path, learner=name, optim=optim, train_features=features_of(name))
    if name in OWN_CLASSES:
        with pytest.raises(ValueError, match=f"for base-to-novel, got {name}, which learns"):
            base_to_novel(one)
        assert not list(tmp_path.iterdir())
        return
    (record,) = base_to_novel(one, Setup(one, backbone()))
    assert {"base_accuracy", "novel_accuracy", "harmonic_mean"} <= record.figures.keys()


def test_a_search_is_on_validation_images_and_the_record_says_so(tmp_path: Path) -> None:
    one = config("tip_adapter_f", tmp_path, tip=TipConfig(search=True))
    setup = Setup(one, backbone())
    records = few_shot(one, setup)
    runs = expand("few-shot", replace(one, mixed_precision="no"))
    for run, record in zip(runs, records, strict=True):
        chosen = record.training["chosen"]
        assert chosen["on"] == "few-shot validation images"
        learner = from_pretrained(run.prompt_folder(), backbone())
        assert isinstance(learner, TipAdapterF)
        assert (learner.alpha, learner.beta) == (chosen["alpha"], chosen["beta"])
    setup.dataset = replace(setup.dataset, split=replace(setup.dataset.split, val=()))
    setup._picks.clear()
    with pytest.raises(UserError, match=r"validation images in 'digits' for --tip.search, got none"):
        few_shot(replace(one, output=str(tmp_path / "other")), setup)


def test_lora_on_the_text_alone_takes_stored_features_and_leaves_pefts_files(tmp_path: Path) -> None:
    one = few_shot_config(
        tmp_path,
        learner="lora",
        lora=LoraConfig(towers="text", matrices=["v", "fc1"], layers="last:1"),
        optim=OptimConfig(steps_per_shot=3, batch_size=7, lr=0.01),
        weights=[0.0, 0.5],
        select_weight=True,
    )
    setup = Setup(one, backbone())
    *records, chosen = few_shot(one, setup)
    # 30 images in batches of 7 are 4 steps an epoch; 3 shots want 9, which 3 epochs reach.
    assert [record.training["steps"] for record in records] == [12, 12]
    assert records[0].config["optim"]["epochs"] is None
    runs = expand("few-shot", replace(one, mixed_precision="no"))
    (best,) = [run for run in runs if run.config.weights == [chosen.weight]]  # type: ignore[union-attr]
    (folder,) = tmp_path.glob("**/lora+cma-selected/shots3/seed1/prompt")
    names = {"adapter_config.json", "adapter_model.safetensors", "card.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert (folder / name).read_bytes() == (best.prompt_folder() / name).read_bytes()
    learner = from_pretrained(folder, backbone())
    assert not learner.trains_images
    predicted = load_file(folder.parent / FILE)["test"][:, 0]
    assert torch.equal(learner(setup.test_features()[0]).logits.argmax(dim=1), predicted)


def test_a_penalty_for_what_trains_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected --weights 0 with tip_adapter, which trains nothing"):
        few_shot(few_shot_config(tmp_path, learner="tip_adapter", weights=[0.0, 0.5]))


def test_runs_of_before_there_were_these_methods_are_still_the_same() -> None:
    """Digests as version 0.1.0 made them."""
    digests = {
        "coop": "40e8183bfaef7f1642add7f4f23f9756489b1b17551d5cdf47e9c4724c318894",
        "cocoop": "194deca4f60e0b034a6b3b238fb51feba29665ebc5fd257ef19467b41d83abd6",
    }
    for name, digest in digests.items():
        before = FewShotConfig(dataset="dtd", learner=name, weights=[0.3], shots=[4])  # type: ignore[arg-type]
        assert expand("few-shot", before)[0].digest() == digest


def test_what_does_not_fit_a_saved_method_is_told_before_its_backbone_loads(tmp_path: Path) -> None:
    names = ("cat", "dog")
    save_prompt(LinearProbe(backbone(), names), tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    card["backbone"]["name"] = "local-dir:nowhere"
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="class names that 'linear_probe' was learned on, got others"):
        class_probabilities(["x.png"], tmp_path, ["dog", "cat"])
    with pytest.raises(UserError, match="Expected a learned context, got a 'linear_probe', which has none"):
        words(str(tmp_path))


class Stopping(StoredBatches):
    """Batches that end in a kill before the fifth step."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(epoch, start), start=start):
            if epoch * self.steps_per_epoch() + step == 4:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clip_adapter", Recipe(4, "adam", lr=0.01)),
        ("linear_probe_text", Recipe(4, "adamw", lr=0.01)),
        # α moves at every tenth step, which lies behind the kill.
        ("lp_plus_plus", Recipe(4, lr=0.1, schedule="constant")),
        ("vpt", Recipe(4, lr=0.1)),
        ("ivlp", Recipe(4, lr=0.1, cma_weight=0.3)),
        ("maple", Recipe(4, lr=0.1)),
        # The prompts' mean over the epochs so far is part of the checkpoint.
        ("promptsrc", Recipe(4, lr=0.1, cma_weight=0.3)),
        # Dropout is drawn for each step.
        ("lora", Recipe(4, "adamw", lr=0.01, cma_weight=0.3)),
    ],
)
def test_optimisers_and_steps_of_their_own_go_on_where_they_were(
    name: LearnerName, settings: Recipe, tmp_path: Path
) -> None:
    names = ("cat", "red dog", "ship")
    features, labels = random_features(12, len(names))
    if name in TRAINS_IMAGES:
        features = torch.randn(1, 12, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def made() -> Learner:
        given = Given(backbone(), names, ["a {}."], 3, lambda: Support(features[0], labels))
        return make_learner(FewShotConfig(learner=name), given)

    whole, stopped, resumed = made(), made(), made()
    data = (features, labels, 4, 0)
    fit(whole, StoredBatches(*data), settings, cpu())
    saved = Checkpointing(tmp_path / "checkpoint.safetensors", "run", every=1)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, Stopping(*data), settings, cpu(), saved)
    fit(resumed, StoredBatches(*data), settings, cpu(), saved)
    states = [learner.state_dict() for learner in (whole, resumed, made())]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    for key, value in whole.named_parameters():
        assert not torch.equal(value, states[2][key]), key


def test_options_of_other_methods_decide_nothing() -> None:
    plain = FewShotConfig()
    for name in OTHERS:
        assert not (set(BLOCKS[name]) - {"context"}) & Run("few-shot", plain).identity().keys()
        assert set(BLOCKS[name]) <= Run("few-shot", replace(plain, learner=name)).identity().keys()
