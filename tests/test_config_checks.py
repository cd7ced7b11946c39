"""What a run is: mistakes found before anything is loaded, sweeps, identities, folders."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cma_tune.checks import check
from cma_tune.companion_options import SemiSupervisedConfig, SupervisedConfig
from cma_tune.companion_run import expand_companion
from cma_tune.config import (
    AugmentConfig,
    ContextConfig,
    FewShotConfig,
    LossConfig,
    OptimConfig,
    SourceConfig,
    ZeroShotConfig,
)
from cma_tune.errors import UserError
from cma_tune.files import slug
from cma_tune.method_options import (
    ClipAdapterConfig,
    IvlpConfig,
    KgCoOpConfig,
    LoraConfig,
    MapleConfig,
    ProGradConfig,
    PromptSrcConfig,
    TcpConfig,
    TipConfig,
    VptConfig,
    lora_layers,
)
from cma_tune.protocols.selection import choices
from cma_tune.run import Run, expand, resolved_optim

NAN = float("nan")
RESULTS = Path(__file__).parents[1] / "benchmarks/results"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": [1.2]}, "Expected λ between 0 and 1 in --weights, got 1.2."),
        ({"weights": [0.0, -0.1]}, "Expected λ between 0 and 1 in --weights, got -0.1."),
        ({"weights": [NAN]}, "Expected λ between 0 and 1 in --weights, got nan."),
        ({"weights": []}, "Expected at least one value for --weights, got none."),
        ({"shots": []}, "Expected at least one value for --shots, got none."),
        ({"shots": [4, 4]}, "Expected every value of --shots once, got [4, 4]."),
        ({"shots": [0]}, "Expected --shots of at least 1, got 0."),
        ({"seeds": [-1]}, "Expected --seeds from 0 to 4294967295, got -1."),
        ({"seeds": [2**32]}, "Expected --seeds from 0 to 4294967295, got 4294967296."),
        (
            {"weights": ["recipe", 0.0], "loss": LossConfig("sum")},
            "Expected the release's form of the loss for its λ, got --loss.reduction sum; leave it "
            "out (it is mean with 'recipe'), or give numbers in --weights.",
        ),
        (
            {"weights": ["recipe"], "loss": LossConfig("mean", False)},
            "Expected the release's form of the loss for its λ, got --loss.normalize false; leave it out",
        ),
        ({"select_weight": True}, "Expected several λ in --weights to select among, got [0.0]."),
        ({"workers": -1}, "Expected --workers of at least 0, got -1."),
        ({"eval_batch_size": 0}, "Expected --eval-batch-size of at least 1, got 0."),
        ({"context": ContextConfig(tokens=0)}, "Expected --context.tokens of at least 1, got 0."),
        (
            {"learner": "cocoop", "context": ContextConfig(per_class=True)},
            "Expected a shared context for cocoop, got class-specific ones; set --context.per-class false.",
        ),
        (
            {"learner": "tip_adapter", "weights": [0.5]},
            "Expected --weights 0 with tip_adapter, which trains nothing, got [0.5]",
        ),
        ({"kgcoop": KgCoOpConfig(-1.0)}, "Expected a finite --kgcoop.weight of at least 0, got -1.0."),
        ({"tcp": TcpConfig(weight=NAN)}, "Expected a finite --tcp.weight of at least 0, got nan."),
        ({"tcp": TcpConfig(layer=0)}, "Expected --tcp.layer of at least 1, got 0."),
        ({"tip": TipConfig(alpha=-0.5)}, "Expected a finite --tip.alpha of at least 0, got -0.5."),
        ({"tip": TipConfig(beta=0.0)}, "Expected a finite --tip.beta above 0, got 0.0."),
        ({"clip_adapter": ClipAdapterConfig(1.5)}, "Expected --clip-adapter.ratio between 0 and 1, got 1.5."),
        ({"vpt": VptConfig(tokens=0)}, "Expected --vpt.tokens of at least 1, got 0."),
        ({"ivlp": IvlpConfig(image_tokens=0)}, "Expected --ivlp.image-tokens of at least 1, got 0."),
        ({"maple": MapleConfig(depth=0)}, "Expected --maple.depth of at least 1, got 0."),
        ({"prograd": ProGradConfig(temperature=0.0)}, "Expected a finite --prograd.temperature above 0, got"),
        ({"prograd": ProGradConfig(weight=-1.0)}, "Expected a finite --prograd.weight of at least 0, got"),
        (
            {"learner": "lp_plus_plus", "optim": OptimConfig(batch_size=4)},
            "Expected all images in a batch of lp_plus_plus, whose steps follow from all of them",
        ),
        ({"promptsrc": PromptSrcConfig(std=0.0)}, "Expected a finite --promptsrc.std above 0, got 0.0."),
        ({"promptsrc": PromptSrcConfig(mean=-1.0)}, "Expected a finite --promptsrc.mean of at least 0"),
        ({"promptsrc": PromptSrcConfig(text_weight=NAN)}, "Expected a finite --promptsrc.text-weight of at"),
        (
            {"learner": "maple", "train_features": "stored"},
            "Expected --train-features live for maple, which changes the image side, got stored ones",
        ),
        ({"lora": LoraConfig(rank=0)}, "Expected --lora.rank of at least 1, got 0."),
        ({"lora": LoraConfig(alpha=0.0)}, "Expected a finite --lora.alpha above 0, got 0.0."),
        ({"lora": LoraConfig(dropout=1.0)}, "Expected --lora.dropout of at least 0 and below 1, got 1.0."),
        ({"lora": LoraConfig(matrices=[])}, "Expected at least one value for --lora.matrices, got none."),
        (
            {"lora": LoraConfig(matrices=["q", "out"])},
            "Expected --lora.matrices out of q, k, v, o, fc1, fc2, got 'out'",
        ),
        *(
            ({"lora": LoraConfig(layers=layers)}, "Expected --lora.layers all, last:N")
            for layers in ("", "top", "last:", "last:0", "-1", "1,1", "0;1")
        ),
        (
            {"learner": "lora", "lora": LoraConfig(towers="image"), "train_features": "stored"},
            "Expected --train-features live for lora, which changes the image side",
        ),
        ({"views": -1}, "Expected --views of at least 0, got -1."),
        ({"views": 4}, "Expected --views with --train-features stored, got 4 views of live features"),
        ({"checkpoint_every": -1}, "Expected --checkpoint-every of at least 0, got -1."),
        ({"optim": OptimConfig(batch_size=0)}, "Expected --optim.batch-size of at least 1, got 0."),
        ({"optim": OptimConfig(epochs=0)}, "Expected --optim.epochs of at least 1, got 0."),
        ({"optim": OptimConfig(steps_per_shot=0)}, "Expected --optim.steps-per-shot of at least 1, got 0."),
        ({"optim": OptimConfig(lr=0.0)}, "Expected a finite --optim.lr above 0, got 0.0."),
        ({"optim": OptimConfig(lr=NAN)}, "Expected a finite --optim.lr above 0, got nan."),
        (
            {"optim": OptimConfig(momentum=-0.1)},
            "Expected a finite --optim.momentum of at least 0, got -0.1.",
        ),
        ({"optim": OptimConfig(weight_decay=NAN)}, "Expected a finite --optim.weight-decay of at least 0"),
        ({"augment": AugmentConfig(scale_min=0.0)}, "Expected --augment.scale-min above 0 and at most 1"),
        ({"augment": AugmentConfig(flip=1.5)}, "Expected --augment.flip between 0 and 1, got 1.5."),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check(replace(FewShotConfig(), **changes))
    assert str(caught.value).startswith(sentence)


def test_the_defaults_and_the_edges_pass(tmp_path: Path) -> None:
    for changes in (
        {},
        {"weights": [0.0, 1.0], "seeds": [0, 2**32 - 1], "select_weight": True},
        {"weights": ["recipe"], "loss": LossConfig("mean", True)},
        {"weights": ["recipe", 0.0]},
        {"weights": ["recipe"], "loss": LossConfig(normalize=True)},
        {"train_features": "stored", "views": 3, "output": str(tmp_path)},
        {"learner": "lora", "lora": LoraConfig(towers="text", layers="last:2"), "train_features": "stored"},
        {"learner": "lora", "lora": LoraConfig(layers="0,11", matrices=["o", "fc1"], dropout=0.0)},
        {"optim": OptimConfig(epochs=1, warmup_lr=0.0, momentum=0.0, weight_decay=0.0)},
    ):
        check(replace(FewShotConfig(), **changes))
    check(ZeroShotConfig())


def test_the_blocks_that_layers_name() -> None:
    named = {"all": None, "last:3": 3, "0": (0,), "2,0, 5": (2, 0, 5)}
    assert {text: lora_layers(text) for text in named} == named


def test_epochs_or_steps_per_shot_whichever_is_given() -> None:
    def of(learner: Any, **given: Any) -> tuple[int | None, int | None]:
        optim = resolved_optim(FewShotConfig(learner=learner, optim=OptimConfig(**given)), 16)
        return optim.epochs, optim.steps_per_shot

    assert of("coop") == (200, None) and of("lora") == (None, 500)
    assert of("coop", steps_per_shot=7) == (None, 7) and of("lora", epochs=3) == (3, None)
    assert of("lora", epochs=3, steps_per_shot=7) == (3, None)


def test_a_file_for_an_output_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=f"Expected a folder for --output, got the file {file}"):
        check(ZeroShotConfig(output=str(file)))


def test_a_sweep_is_every_combination_once() -> None:
    config = FewShotConfig(shots=[1, 16], seeds=[1, 2, 3], weights=[0.0, 0.5], select_weight=True)
    runs = expand("few-shot", config)
    axes = []
    for run in runs:
        one = run.config
        assert isinstance(one, FewShotConfig) and not one.select_weight
        axes.append((*one.shots, *one.seeds, *one.weights))
        assert one.optim.epochs == (50 if one.shots == [1] else 200)
    assert sorted(axes) == sorted((k, s, w) for k in (1, 16) for s in (1, 2, 3) for w in (0.0, 0.5))
    assert len({run.digest() for run in runs}) == len({run.folder() for run in runs}) == 12


def test_a_weight_that_is_also_the_recipes_is_one_run() -> None:
    config = FewShotConfig(dataset="dtd", shots=[16], weights=["recipe", 0.7], loss=LossConfig("mean", True))
    assert len(expand("few-shot", config)) == 1


@pytest.mark.parametrize(
    ("weights", "given", "form"),
    [
        (["recipe", 0.0], LossConfig(), LossConfig("mean", True)),
        (["recipe"], LossConfig(reduction="mean"), LossConfig("mean", True)),
        ([0.0, 0.5], LossConfig(), LossConfig("sum", False)),
        ([0.5], LossConfig(normalize=True), LossConfig("sum", True)),
    ],
)
def test_a_recipe_brings_the_releases_form_of_the_loss(
    weights: list[Any], given: LossConfig, form: LossConfig
) -> None:
    config = FewShotConfig(dataset="dtd", weights=weights, loss=given)
    runs = expand("few-shot", config)
    assert [run.config.loss for run in runs] == [form] * len(weights)  # type: ignore[union-attr]
    assert [r.digest() for r in runs] == [r.digest() for r in expand("few-shot", replace(config, loss=form))]
    assert runs[0].identity()["loss"] == asdict(form)


def test_the_committed_records_are_still_the_same_runs() -> None:
    paths = list((RESULTS / "caltech101_lite").rglob("record.json"))
    blocks: dict[str, Any] = {"loss": LossConfig, "optim": OptimConfig, "augment": AugmentConfig}
    blocks |= {"context": ContextConfig, "source": SourceConfig}
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        config = content["config"]
        kind = ZeroShotConfig if content["protocol"] == "zero-shot" else FewShotConfig
        known = {entry.name for entry in fields(kind)}
        values = {key: value for key, value in config.items() if key in known}
        values |= {key: block(**config[key]) for key, block in blocks.items() if key in config}
        again = kind(**values)
        if not isinstance(again, FewShotConfig):
            assert Run("zero-shot", again).digest() == content["run"], path
            continue
        if content["selection"]:
            again = replace(again, weights=[weight for weight, _ in content["selection"]["candidates"]])
            run = choices(expand(content["protocol"], again))[0]
        else:
            (run,) = expand(content["protocol"], again)
        assert run.digest() == content["run"], path


def test_the_committed_records_of_the_companion_are_still_the_same_runs() -> None:
    paths = list((RESULTS / "companion").rglob("record.json"))
    assert len(paths) == 72
    kinds: dict[str, type[SupervisedConfig]] = {
        "supervised": SupervisedConfig,
        "semi-supervised": SemiSupervisedConfig,
    }
    for path in paths:
        content = json.loads(path.read_text())
        kind = kinds[content["protocol"]]
        hints: dict[str, Any] = get_type_hints(kind)
        nested = {name: one for name, one in hints.items() if is_dataclass(one)}
        config = content["config"]
        config |= {name: one(**config[name]) for name, one in nested.items()}  # type: ignore[operator]
        (run,) = expand_companion(content["protocol"], kind(**config))
        assert run.digest() == content["run"], path


def test_a_catalogue_of_ones_own_gives_recipe_a_meaning() -> None:
    config = FewShotConfig(dataset="birds", weights=["recipe", 0.0], shots=[1, 16])
    for own, expected in (({0: 0.3}, [0.3, 0, 0.3, 0]), ({1: 0.0, 16: 0.7}, [0, 0.7, 0])):
        assert [run.config.weights[0] for run in expand("few-shot", config, own)] == expected  # type: ignore[union-attr]
    with pytest.raises(UserError, match="for 'birds' at 16 shots"):
        expand("few-shot", config, {1: 0.3})


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "elsewhere"},
        {"features_dir": "elsewhere"},
        {"data_root": "elsewhere"},
        {"workers": 3},
        {"eval_batch_size": 7},
        {"checkpoint_every": 5},
        {"resume": False},
        {"tracker": "tensorboard"},
    ],
)
def test_where_and_how_do_not_decide_what_a_run_is(changes: dict[str, Any]) -> None:
    config = FewShotConfig()
    assert Run("few-shot", replace(config, **changes)).digest() == Run("few-shot", config).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "shapes"},
        {"backbone": "ViT-B-32"},
        {"templates": ["a {}."]},
        {"mixed_precision": "bf16"},
        {"learner": "cocoop"},
        {"learner": "tip_adapter_f", "optim": OptimConfig(optimizer="adam")},
        {"learner": "kgcoop", "kgcoop": KgCoOpConfig(1.0)},
        {"seeds": [2]},
        {"weights": [0.1]},
        {"loss": LossConfig("mean", True)},
        {"optim": OptimConfig(lr=0.003)},
        {"context": ContextConfig(words="a photo of a")},
        {"train_features": "stored"},
        {"augment": AugmentConfig(flip=0.0)},
        {"select_weight": True},
    ],
)
def test_everything_else_does(changes: dict[str, Any]) -> None:
    config = FewShotConfig()
    other = Run("few-shot", replace(config, **changes))
    assert other.digest() != Run("few-shot", config).digest()
    assert Run("base-to-novel", config).digest() != Run("few-shot", config).digest()
    json.dumps(other.identity(), allow_nan=False)


def test_folders_tell_runs_apart_and_can_be_read(tmp_path: Path) -> None:
    config = FewShotConfig(dataset="folder:/my data/x", output=str(tmp_path), backbone="local-dir:a/b/clip")
    path = Run("few-shot", config).folder().relative_to(tmp_path)
    assert path == Path("few-shot/folder__my_data_x/clip/coop/shots16/seed1")
    weighted = replace(config, weights=[0.25], backbone="ViT-B-32", pretrained="dir/own.pt")
    path = Run("few-shot", weighted).folder().relative_to(tmp_path)
    assert path == Path("few-shot/folder__my_data_x/ViT-B-32-own/coop+cma-0.25/shots16/seed1")
    bare = ZeroShotConfig(output=str(tmp_path))
    assert Run("zero-shot", bare).folder() == tmp_path / "zero-shot/digits/embedded/zero_shot"
    assert slug("../..") == ".._.." and slug("/") == "_" and slug("hf-hub:org/repo") == "hf-hub_org_repo"
