"""Few-shot and zero-shot from end to end: what a record holds, what is skipped, what is refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import backbone, few_shot_config, tiny_clip

import cma_tune.build
import cma_tune.protocols.runs
from cma_tune.build import Setup
from cma_tune.config import ContextConfig, FewShotConfig, OptimConfig, ZeroShotConfig
from cma_tune.data.dataset import BuiltinImages
from cma_tune.data.few_shot import few_shot_split
from cma_tune.data.sources import Dataset, load_dataset
from cma_tune.errors import UserError
from cma_tune.learners import from_pretrained
from cma_tune.method_facts import BLOCKS
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.zero_shot import zero_shot
from cma_tune.records import load_record
from cma_tune.run import expand
from cma_tune.train import NonFiniteLossError


def run(config: FewShotConfig) -> list[Any]:
    return few_shot(config, Setup(config, backbone=backbone()))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights would be loaded."""

    def fail(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(cma_tune.build, "load_backbone", fail)


def test_a_record_says_all_there_is_to_say(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, shots=[2], seeds=[3], weights=[0.3])
    (record,) = run(config)
    folder = tmp_path / "few-shot/digits" / tiny_clip().name / "coop+cma-0.3/shots2/seed3"
    assert record == load_record(folder / "record.json")
    split = load_dataset("digits", Path()).split
    picked = few_shot_split(split, 2, 3)
    assert record.protocol == "few-shot"
    # The whole config, what was left open filled in: precision by accelerate, the optimiser by the method.
    optim = OptimConfig("sgd", 3, 7, 0.05, warmup_lr=1e-5, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    expected = asdict(replace(config, mixed_precision="no", optim=optim))
    others = {block for blocks in BLOCKS.values() for block in blocks} - {"context"}  # of other methods
    assert record.config == {name: value for name, value in expected.items() if name not in others}
    assert (record.shots, record.seed, record.weight, record.learner) == (2, 3, 0.3, "coop")
    assert record.dataset["split"] == split.digest() and record.dataset["picks"] == picked.digest()
    assert record.dataset["test_images"] == len(split.test) and record.dataset["train_images"] == 20
    assert record.dataset["val_images"] == 20 and record.dataset["classes"] == 10
    assert record.dataset["name"] == "digits" and "embedded" in record.dataset["origin"]
    assert record.backbone["weights"] == backbone().weights_digest
    assert record.backbone["preprocessing"] == backbone().preprocessing.digest()
    similarities = {"class_similarity", "modal_similarity"}
    assert set(record.figures) == {"accuracy", "validation_accuracy", "ece", *similarities}
    assert set(record.per_class) == {"test"} and list(record.per_class["test"]) == list(split.class_names)
    counts = [sum(item.label == label for item in split.test) for label in range(10)]
    percents = [value for value in record.per_class["test"].values() if value is not None]
    mean = sum(p * n for p, n in zip(percents, counts, strict=True)) / sum(counts)
    assert record.figures["accuracy"] == pytest.approx(mean, abs=1e-9)
    assert {"cma_tune", "torch", "open_clip_torch", "accelerate", "python"} <= set(record.versions)
    assert record.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record.training["setting"] == "inductive"
    assert record.training["steps"] == 3 * 2 and record.training["processes"] == 1
    assert record.training["losses"].keys() == {"loss", "cross_entropy", "cma"}
    assert record.selection is None
    card = json.loads((folder / "prompt/card.json").read_text())
    assert card["split"] == split.digest() and card["run"] == record.run
    assert not (folder / "checkpoint.safetensors").exists()


def accuracy_by_hand(folder: Path, dataset: Dataset, part: str, labels: range) -> float:
    """Accuracy of a saved prompt, an image at a time, among the names of `labels` alone."""
    names = [dataset.split.class_names[label] for label in labels]
    learner = from_pretrained(folder / "prompt", backbone()).for_classes(names)
    right = []
    with torch.no_grad():
        text = learner.text_features()
        for item in dataset.split.parts()[part]:
            if item.label in labels:
                image = backbone().transform(dataset.images.load(item.key))
                feature = backbone().encode_image(image[None])[0]
                right.append(labels[int((text @ feature).argmax())] == item.label)
    return 100 * sum(right) / len(right)


def test_the_figures_are_those_of_the_saved_prompt(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, optim=OptimConfig(epochs=4, batch_size=7, lr=0.3))
    (record,) = run(config)
    folder = next(tmp_path.rglob("record.json")).parent
    dataset = load_dataset("digits", Path())
    assert record.figures["accuracy"] == pytest.approx(
        accuracy_by_hand(folder, dataset, "test", range(10)), abs=1e-9
    )
    picked = replace(dataset, split=few_shot_split(dataset.split, 3, 1))
    assert record.figures["validation_accuracy"] == pytest.approx(
        accuracy_by_hand(folder, picked, "val", range(10)), abs=1e-9
    )


def test_a_finished_sweep_is_skipped_and_loads_no_weights(
    tmp_path: Path, fits: list[str], no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = few_shot_config(tmp_path, shots=[1, 2], weights=[0.0, 0.3], seeds=[1])
    first = run(config)
    assert len(first) == len(fits) == 4
    capsys.readouterr()
    assert few_shot(config) == first
    assert len(fits) == 4 and capsys.readouterr().out.count("finished before, skipped") == 4
    # A wider sweep does what is missing, however many at a time the rest is evaluated in.
    wider = replace(config, seeds=[1, 2], eval_batch_size=17, workers=1)
    again = few_shot(wider, Setup(wider, backbone=backbone()))
    assert (
        len(fits) == 8
        and all("seed 2" in made for made in fits[4:])
        and {record.run for record in first} < {record.run for record in again}
    )


def test_without_resume_a_finished_run_is_done_again(tmp_path: Path, fits: list[str]) -> None:
    config = few_shot_config(tmp_path)
    first = run(config)
    (again,) = run(replace(config, resume=False))
    assert len(fits) == 2 and again.figures == first[0].figures


def test_a_checkpoint_left_after_the_record_is_dropped(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path)
    run(config)
    left = next(tmp_path.rglob("record.json")).with_name("checkpoint.safetensors")
    left.write_bytes(b"of a run killed between its last two steps")
    run(config)
    assert not left.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim": OptimConfig(epochs=4, batch_size=7, lr=0.05)}, "optim.epochs"),
        ({"context": ContextConfig(tokens=5)}, "context.tokens"),
        ({"views": 2, "allow_fewer_shots": True}, "allow_fewer_shots, views"),
    ],
)
def test_a_folder_with_another_runs_record_is_refused(
    tmp_path: Path, no_weights: None, changes: dict[str, Any], named: str
) -> None:
    config = few_shot_config(tmp_path)
    run(config)
    with pytest.raises(UserError, match=rf"got one of another run \(it differs in {named}\); choose another"):
        few_shot(replace(config, **changes))


def test_a_changed_split_under_a_finished_record_is_refused(
    tmp_path: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = few_shot_config(tmp_path)
    run(config)
    bare = ZeroShotConfig(**{name: getattr(config, name) for name in ("dataset", "backbone", "output")})
    zero_shot(bare, Setup(bare, backbone=backbone()))
    load = cma_tune.build.load_dataset

    def changed(*arguments: Any) -> Dataset:
        dataset = load(*arguments)
        return replace(dataset, split=replace(dataset.split, test=dataset.split.test[1:]))

    monkeypatch.setattr(cma_tune.build, "load_dataset", changed)
    for again in (lambda: few_shot(config), lambda: zero_shot(bare)):
        with pytest.raises(
            UserError, match=r"Expected the split of digits that the record in .* was made with"
        ):
            again()


def test_a_changed_split_under_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = few_shot_config(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cma_tune.protocols.runs, "save_prompt", _interrupt)
        run(config)
    assert list(tmp_path.rglob("checkpoint.safetensors")) and not list(tmp_path.rglob("record.json"))
    setup = Setup(config, backbone=backbone())
    split = setup.dataset.split
    setup.dataset = replace(setup.dataset, split=replace(split, train=split.train[1:]))
    with pytest.raises(UserError, match=r"got one of another run \(its config, the dataset's split"):
        few_shot(config, setup)
    assert len(run(config)) == 1  # under the old split it goes on


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_zero_shot_is_computed_once_and_agrees_with_a_loop(tmp_path: Path, no_weights: None) -> None:
    config = ZeroShotConfig(backbone=f"local-dir:{tiny_clip()}", output=str(tmp_path))
    record = zero_shot(config, Setup(config, backbone=backbone()))
    dataset = load_dataset("digits", Path())
    texts = [dataset.templates[0].replace("{}", name) for name in dataset.split.class_names]
    with torch.no_grad():
        text = backbone().encode_texts(texts)
        images = torch.stack([backbone().transform(dataset.images.load(i.key)) for i in dataset.split.test])
        predictions = (backbone().encode_image(images) @ text.T).argmax(dim=1).tolist()
    right = sum(p == item.label for p, item in zip(predictions, dataset.split.test, strict=True))
    assert record.figures["accuracy"] == pytest.approx(100 * right / len(predictions), abs=1e-9)
    assert (record.shots, record.seed, record.weight, record.learner) == (0, 0, 0.0, "zero_shot")
    assert record.protocol == "zero-shot"
    assert set(record.training) == {"setting", "wall_seconds_since_last_start"}
    assert zero_shot(config) == record


def test_a_runs_digest_is_that_of_what_decides_its_result(tmp_path: Path) -> None:
    config = replace(few_shot_config(tmp_path), mixed_precision="no")
    (record,) = run(config)
    content = expand("few-shot", config)[0].identity()
    assert record.run == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_a_run_that_diverges_in_its_last_steps_leaves_neither_prompt_nor_record(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, shots=[2], optim=OptimConfig(epochs=2, batch_size=32, lr=1e35))
    with pytest.raises(NonFiniteLossError, match="smaller learning rate"):
        run(config)
    assert not list(tmp_path.rglob("record.json")) + list(tmp_path.rglob("prompt"))


def test_the_chosen_weights_prompt_lies_beside_its_record(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, shots=[2], weights=[0.0, 0.5], select_weight=True)
    *candidates, chosen = run(config)
    (best,) = [record for record in candidates if record.weight == chosen.weight]
    folders = {path.parent.parts[-3]: path.parent for path in tmp_path.rglob("record.json")}
    mine = folders["coop+cma-selected"]
    its = folders["coop+cma-0.5" if best.weight else "coop"]
    for name in ("prompt.safetensors", "card.json"):
        assert (mine / "prompt" / name).read_bytes() == (its / "prompt" / name).read_bytes()


def test_zero_shot_is_measured_on_both_halves_among_their_own_names(tmp_path: Path) -> None:
    config = ZeroShotConfig(dataset="shapes", output=str(tmp_path))
    setup = Setup(config, backbone=backbone())
    record = zero_shot(config, setup)
    features, labels = setup.test_features()
    logits = features @ setup.zero_shot(setup.dataset.split.class_names).text_features().T
    half = len(setup.dataset.split.class_names) // 2
    base, novel = labels < half, labels >= half
    expected = {
        "base_accuracy": (logits[base][:, :half].argmax(1) == labels[base]).double().mean(),
        "novel_accuracy": (logits[novel][:, half:].argmax(1) + half == labels[novel]).double().mean(),
        "base_accuracy_among_all": (logits[base].argmax(1) == labels[base]).double().mean(),
        "novel_accuracy_among_all": (logits[novel].argmax(1) == labels[novel]).double().mean(),
    }
    for name, share in expected.items():
        assert record.figures[name] == pytest.approx(100 * float(share))


def test_stored_features_are_refused_where_the_image_side_learns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected --train-features live for lora, which changes the image"):
        run(few_shot_config(tmp_path, learner="lora", train_features="stored"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the images that are decoded, as they come."""
    keys: list[str] = []
    load = BuiltinImages.load

    def counted(self: BuiltinImages, key: str) -> Any:
        keys.append(key)
        return load(self, key)

    monkeypatch.setattr(BuiltinImages, "load", counted)
    return keys


def test_training_images_are_decoded_once_for_all_epochs(tmp_path: Path, loads: list[str]) -> None:
    config = few_shot_config(tmp_path, train_features="live", optim=OptimConfig(epochs=3))
    (record,) = run(config)
    picked = Counter(key for key in loads if key.startswith("train/"))
    assert set(picked.values()) == {1} and len(picked) == record.dataset["train_images"]
    loads.clear()
    run(replace(config, output=str(tmp_path / "none"), image_memory=0.0))
    assert set(Counter(key for key in loads if key.startswith("train/")).values()) == {3}


def test_test_images_are_decoded_once_for_all_runs_of_a_learned_image_tower(
    tmp_path: Path, loads: list[str]
) -> None:
    config = few_shot_config(
        tmp_path, learner="vpt", train_features="live", optim=OptimConfig(epochs=1), weights=(0.0, 0.5)
    )
    records = run(config)
    tested = Counter(key for key in loads if key.startswith("test/"))
    assert len(records) == 2 and set(tested.values()) == {1}
    assert len(tested) == records[0].dataset["test_images"]
