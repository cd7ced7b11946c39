"""The features command, and runs that find every image's features stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_processes import launch
from tiny_runs import backbone, base_to_novel_config, few_shot_config, tiny_clip
from torch import Tensor

from cma_tune.build import Setup
from cma_tune.checks import check
from cma_tune.cli import main, parse
from cma_tune.clip.backbone import Backbone
from cma_tune.commands import COMMANDS, FeaturesConfig
from cma_tune.config import FewShotConfig, ZeroShotConfig
from cma_tune.data import feature_index
from cma_tune.data.feature_shards import shard_paths
from cma_tune.data.feature_upkeep import verify
from cma_tune.errors import UserError
from cma_tune.protocols.base_to_novel import base_to_novel
from cma_tune.protocols.few_shot import few_shot

CLIP = f"local-dir:{tiny_clip()}"
DIGITS = {"train": 896, "val": 355, "test": 546}

Images = Callable[[], int]
"""Images the image encoder has seen since the last look."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Images:
    seen = []
    encode = Backbone.encode_image

    def counting(self: Backbone, images: Tensor) -> Tensor:
        seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Backbone, "encode_image", counting)

    def look() -> int:
        count = sum(seen)
        seen.clear()
        return count

    return look


def command(action: str, *arguments: str) -> None:
    """Run the command in this process."""
    main(["features", action, *arguments])


def build(output: Path, *arguments: str) -> None:
    main(["features", "build", f"--backbone={CLIP}", f"--output={output}", *arguments])


def run(config: FewShotConfig) -> Setup:
    """Few-shot with a setup of its own, as another process has."""
    setup = Setup(config, backbone())
    few_shot(config, setup)
    return setup


def test_a_second_run_encodes_no_image(tmp_path: Path, encoded: Images) -> None:
    config = few_shot_config(tmp_path / "a", features_dir=str(tmp_path / "features"))
    setup = run(config)
    picks = setup.picks(config)
    assert encoded() == setup.store.encoded == len(picks.train) + len(picks.val) + DIGITS["test"]
    again = few_shot_config(tmp_path / "b", features_dir=str(tmp_path / "features"), weights=[0.4])
    assert run(again).store.encoded == encoded() == 0


def test_picks_of_other_seeds_and_shots_encode_only_new_images(tmp_path: Path, encoded: Images) -> None:
    there: set[str] = set()
    for number, change in enumerate([{}, {"seeds": [2]}, {"shots": [5]}, {"shots": [1]}, {"seeds": [2]}]):
        output, store = tmp_path / str(number), str(tmp_path / "features")
        config = few_shot_config(output, features_dir=store, **change)
        setup = Setup(config, backbone())
        split = setup.picks(config)
        wanted = {item.key for item in (*split.train, *split.val, *split.test)}
        few_shot(config, setup)
        assert encoded() == len(wanted - there)
        assert number != 1 or there & {item.key for item in split.train}  # the seeds do share images
        there |= wanted


def test_after_build_even_the_first_run_encodes_no_image(tmp_path: Path, encoded: Images) -> None:
    build(tmp_path)
    assert encoded() == sum(DIGITS.values())
    few_shot(few_shot_config(tmp_path, features_dir=None, seeds=[1, 2], shots=[2]), None)
    base_to_novel(base_to_novel_config(tmp_path, features_dir=None, dataset="digits"))
    main(["zero-shot", f"--backbone={CLIP}", f"--output={tmp_path}"])
    assert encoded() == 0


def test_views_are_built_ahead_too(tmp_path: Path, encoded: Images) -> None:
    build(tmp_path, "--parts=train,test,val", "--views=2", "--seeds=1,3", "--augment.flip=0.25")
    assert encoded() == 4 * DIGITS["train"] + DIGITS["test"] + DIGITS["val"]
    config = few_shot_config(tmp_path, features_dir=None, seeds=[3], views=2)
    config.augment.flip = 0.25
    run(config)
    assert encoded() == 0
    config.augment.flip = 0.5
    config.resume = False
    setup = Setup(config, backbone())
    setup.train_batches(setup.picks(config).train, config)
    assert encoded() == 2 * len(setup.picks(config).train)


def test_features_of_picks_are_those_of_the_whole_part(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path, features_dir=str(tmp_path / "picks"))
    whole = few_shot_config(tmp_path, features_dir=str(tmp_path / "whole"))
    one, two = Setup(config, backbone()), Setup(whole, backbone())
    items = one.picks(config).train
    place = {item.key: number for number, item in enumerate(two.dataset.split.train)}
    everything, labels = two.features(two.dataset.split.train, "training images")
    chosen = [place[item.key] for item in items]
    features, own = one.features(items, "training images")
    torch.testing.assert_close(features, everything[chosen], atol=1e-6, rtol=0)  # other batches
    assert torch.equal(own, labels[chosen])
    assert torch.equal(two.features(items, "training images")[0], everything[chosen])


def test_build_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, "--parts=test,val")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("encoded 546 test images in ") and lines[0].endswith(" images/s)")
    assert lines[1] == "test: 546 images, 546 of them encoded now"
    assert lines[3:] == [
        "val: 355 images, 355 of them encoded now",
        f"stored in {tmp_path / 'features'}",
    ]
    build(tmp_path, "--parts=val")
    assert capsys.readouterr().out.splitlines()[0] == "val: 355 images, 0 of them encoded now"


def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, "--parts=val")
    build(tmp_path, "--parts=val", "--dataset=shapes")
    build(tmp_path, "--parts=train", "--views=1", "--seed=7")
    capsys.readouterr()
    command("list", f"--output={tmp_path}")
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "backbone", "images", "go", "through", "datasets", "images", "dim", "MB"]
    crops, plain = rows
    assert (
        f"{CLIP}  32x32 bicubic shortest, float32, crop 1 of seed 7 (scale 0.08-1, flip 0.5)  digits" in crops
    )
    assert crops.split()[-3:-1] == ["896", "12"]
    assert f"{CLIP}  32x32 bicubic shortest, float32, test transform " in plain
    assert "digits, shapes" in plain
    folders = {path.name: path for path in (tmp_path / "features").iterdir() if len(path.name) == 16}
    assert folders.keys() == {crops.split()[0], plain.split()[0]}
    size = sum(path.stat().st_size for path in folders[plain.split()[0]].iterdir())
    assert float(plain.split()[-1]) == round(size / 1e6, 2) > 0


def test_list_says_that_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("list", f"--features-dir={tmp_path}")
    assert capsys.readouterr().out == f"{tmp_path}: no stored image features\n"
    command("verify", f"--features-dir={tmp_path}")
    assert "0 files, 0 images" in capsys.readouterr().out
    command("prune", f"--features-dir={tmp_path}")
    assert capsys.readouterr().out == f"{tmp_path}: nothing to remove\n"


def test_verify_and_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoded: Images) -> None:
    build(tmp_path, "--parts=val,test")
    store, there = tmp_path / "features", f"--output={tmp_path}"
    capsys.readouterr()
    command("verify", there)
    assert capsys.readouterr().out.splitlines()[-1].endswith("nothing wrong")
    shards = sorted(store.glob("*/*.safetensors"))
    broken = shards[0]
    index = json.loads((store / "cma_tune_features.json").read_text())["shards"]
    rows = index[f"{broken.parent.name}/{broken.name}"]["rows"]
    content = broken.read_bytes()
    broken.write_bytes(content[:-9] + bytes(9))
    with pytest.raises(SystemExit) as stop:
        command("verify", there)
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{broken.parent.name}/{broken.name}: its checksum is another one"
    assert lines[1].endswith("; 1 damaged") and "prune" in lines[2]
    command("prune", there)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{broken.parent.name}/{broken.name}: ")
    assert lines[1] == f"{store}: {len(content) / 1e6:.2f} MB freed"
    command("verify", there)
    encoded()
    build(tmp_path, "--parts=val,test")
    assert encoded() == rows > 0
    assert verify(store).problems == []


def test_prune_one_or_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, "--parts=val")
    build(tmp_path, "--parts=train", "--views=1")
    capsys.readouterr()
    store, there = tmp_path / "features", f"--output={tmp_path}"
    command("list", there)
    first, second = (line.split()[0] for line in capsys.readouterr().out.splitlines()[1:])
    command("prune", there, "--only", first)
    assert capsys.readouterr().out.startswith(f"{first}: ")
    assert not (store / first).exists() and (store / second).exists()
    command("prune", there, "--everything", "true")
    assert f"{second}: " in capsys.readouterr().out
    assert not store.exists()


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ([], "Expected ACTION"),
        (["biuld"], "build, list, verify, prune"),
        (["build", "list"], "one action"),
        (["build", "--parts", "tests"], "train, val, test, got 'tests' (did you mean 'test'?)"),
        (["build", "--parts", "[]"], "got none"),
        (["build", "--parts", "val,val"], "once in --parts"),
        (["build", "--parts", "val", "--views", "2"], "train among --parts"),
        (["build", "--views", "-1"], "--views of at least 0"),
        (["build", "--seeds", "-1"], "--seeds"),
        (["build", "--dataset", "digit"], "digits"),
        (["build", "--only", "abc"], "with prune"),
        (["list", "--everything"], "with prune"),
        (["list", "--output", "nowhere"], "nowhere/features, but there is no such folder"),
        (["verify", "--features-dir", "nowhere"], "nowhere, but there is no such folder"),
        (["prune", "--features-dir", "nowhere"], "nowhere, but there is no such folder"),
        (["prune", "--features-dir", "HERE", "--only", "0123"], "got '0123'"),
        (["prune", "--features-dir", "HERE", "--only", "0123", "--everything"], "got both"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(
    typed: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["features", *(str(tmp_path) if word == "HERE" else word for word in typed)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("cma-tune: Expected ") and captured.err.count("\n") == 1
    assert part in captured.err and captured.out == ""


def sentence(action: str, *arguments: str, said: pytest.CaptureFixture[str]) -> str:
    """What the command says to a mistake."""
    said.readouterr()
    with pytest.raises(SystemExit) as stop:
        command(action, *arguments)
    captured = said.readouterr()
    assert (stop.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    return captured.err


@pytest.mark.parametrize("action", ["verify", "prune"])
def test_another_folder_is_no_store(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    found = sentence(action, f"--features-dir={tmp_path}", said=capsys)
    assert "got a folder without any; name theirs with --features-dir" in found


@pytest.mark.parametrize("how", [[], ["--only", "SPACE"], ["--everything", "true"]])
def test_a_store_that_can_only_be_read_is_not_pruned(
    how: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, "--parts=test")
    store = tmp_path / "features"
    (space,) = feature_index.space_folders(store)
    (shard,) = shard_paths(space)[:1]
    shard.write_bytes(b"torn")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    how = [space.name if word == "SPACE" else word for word in how]
    found = sentence("prune", f"--features-dir={store}", *how, said=capsys)
    assert f"in {store}, but it can't be written (Permission denied)" in found and shard.exists()


def test_only_what_is_written_to_has_to_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can be written to for --output, got .*/below \(Not a directory\)"):
        check(FewShotConfig(output=f"{tmp_path}/file/below"))
    check(FewShotConfig(output=f"{tmp_path}/file/below"), writes_output=False)
    check(FewShotConfig(output=f"{tmp_path}/new/below"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is left of the trial


def test_options_are_those_of_zero_shot() -> None:
    def of(config: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(config).items() if name != "templates"}

    assert COMMANDS["features"].positional == "action"
    config = parse("features", ["build", "--eval-batch-size", "7", "--mixed-precision", "bf16"])
    assert isinstance(config, FeaturesConfig) and config.parts == ["train", "val", "test"]
    zero = of(ZeroShotConfig(eval_batch_size=7, mixed_precision="bf16"))
    assert {name: getattr(config, name) for name in zero} == zero


def test_build_under_two_processes(tmp_path: Path, encoded: Images) -> None:
    arguments = ["features", "build", f"--backbone={CLIP}", f"--output={tmp_path}"]
    done = launch("-m", "cma_tune", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "of them encoded now" in line]
    assert lines == [f"{part}: {count} images, {count} of them encoded now" for part, count in DIGITS.items()]
    checked = verify(tmp_path / "features")
    assert (checked.rows, checked.doubled, checked.problems) == (sum(DIGITS.values()), 0, [])
    build(tmp_path)
    assert encoded() == 0
