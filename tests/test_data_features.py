"""Stored features: every image encoded once, trusted only when whole and of the same thing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stored_images import DIM, SPACE, Encoder, fill, folder_of, shards, write_file
from torch import Tensor

from cma_tune.data import features as features_module
from cma_tune.data.dataset import FileImages
from cma_tune.data.feature_index import entries, sizes
from cma_tune.data.feature_shards import DamagedShardError, Space, read_shard
from cma_tune.data.feature_upkeep import prune, verify
from cma_tune.data.features import FeatureStore
from cma_tune.data.splits import Item
from cma_tune.errors import UserError


def keys(items: list[Item]) -> list[str]:
    return [item.key for item in items]


def test_only_missing_images_are_encoded_in_the_order_of_the_items(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 9)
    store = tmp_path / "store"
    assert fill(store, images, items[2:5]) == keys(items[2:5])
    assert fill(store, images, items[2:5]) == []
    assert fill(store, images, items[4:0:-1]) == ["001"]  # other picks, another order
    assert fill(store, images, items[::-1]) == ["008", "007", "006", "005", "000"]
    assert fill(store, images, [Item(item.key, 5) for item in items]) == []  # a label is no part of a feature
    assert len(shards(store)) == 3


def test_images_that_come_twice_are_encoded_once(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 3)
    write_file(tmp_path / "images/copy", "image 001")
    assert fill(tmp_path / "store", images, [*items, Item("copy", 0), items[0]]) == keys(items)


def test_the_same_content_is_found_under_another_name_and_in_another_folder(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 4)
    store = tmp_path / "store"
    fill(store, images, items)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere/deep")
    os.rename(tmp_path / "elsewhere/deep/001", tmp_path / "elsewhere/deep/renamed")
    moved = [Item("deep/renamed", 0), Item("deep/000", 0)]
    assert fill(store, FileImages(tmp_path / "elsewhere"), moved) == []


def test_another_content_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 3)
    store = tmp_path / "store"
    fill(store, images, items)
    write_file(tmp_path / "images/001", "changed", modified=2_000_000_000)
    assert fill(store, images, items) == ["001"]
    write_file(tmp_path / "images/001", "image 001", modified=3_000_000_000)
    assert fill(store, images, items) == []  # what it was before


def test_every_entry_of_a_space_keeps_rows_apart(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 2)
    view = {"seed": 1, "epoch": 0, "scale": [0.08, 1.0], "flip": 0.5}
    spaces = [
        SPACE,
        replace(SPACE, backbone="other"),
        replace(SPACE, preprocessing="other"),
        replace(SPACE, precision="bf16"),
        *(
            replace(SPACE, view={**view, **change})
            for change in ({}, {"seed": 2}, {"epoch": 1}, {"flip": 0.0})
        ),
        replace(SPACE, view={**view, "scale": [0.5, 1.0]}),
    ]
    for salt, space in enumerate(spaces):
        assert fill(tmp_path / "store", images, items, space, str(salt)) == keys(items)
    for salt, space in enumerate(spaces):
        assert fill(tmp_path / "store", images, items, space, str(salt)) == []
    assert len({space.id for space in spaces}) == len(list((tmp_path / "store").glob("*/"))) - 1  # contents/
    tuples = replace(SPACE, view={**view, "scale": (0.08, 1.0)})
    assert tuples.id == spaces[4].id  # a view may hold tuples


def test_copies_differ_in_an_augmented_view(tmp_path: Path) -> None:
    # The noise depends on the key, so the crop of a copy is another one.
    images, items = folder_of(tmp_path / "images", 1)
    write_file(tmp_path / "images/copy", "image 000")
    view = replace(SPACE, view={"seed": 1, "epoch": 0})
    both = [*items, Item("copy", 0)]
    assert fill(tmp_path / "store", images, both, view) == ["000", "copy"]
    assert fill(tmp_path / "store", images, both, view) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rows_are_float32_and_the_same_bits_read_or_encoded(dtype: torch.dtype, tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 3)
    made = torch.randn(3, 4).to(dtype)
    made = made.T.contiguous().T.requires_grad_()  # neither contiguous nor free of a graph
    for _ in range(2):
        back = FeatureStore(tmp_path / "store").features(SPACE, images, items, lambda *_: made)
        assert back.dtype == torch.float32 and not back.requires_grad
        assert torch.equal(back, made.detach().float())


def test_no_items_are_a_mistake(tmp_path: Path) -> None:
    images, _ = folder_of(tmp_path / "images", 1)
    with pytest.raises(ValueError, match="at least one image"):
        FeatureStore(tmp_path / "store").features(SPACE, images, [], Encoder(images))


def test_a_process_that_does_not_write(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 3)
    reader, encoder = FeatureStore(tmp_path / "store"), Encoder(images)
    assert torch.equal(reader.features(SPACE, images, items, encoder, writer=False), encoder.expected(items))
    assert encoder.take() == keys(items) and not (tmp_path / "store").exists()
    fill(tmp_path / "store", images, items)
    reader.features(SPACE, images, items, encoder, writer=False)
    assert encoder.take() == []


def test_a_store_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 1)
    (tmp_path / "store").write_text("a file")
    encoder = Encoder(images)
    with pytest.raises(UserError, match=r"Expected to store image features in .*store.*--features-dir"):
        FeatureStore(tmp_path / "store").features(SPACE, images, items, encoder)
    assert encoder.calls == []  # said before the work, not after


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    names = ["a\udcff", "a\udcfe"]
    for name in names:
        write_file(tmp_path / "images" / name, f"{names.index(name)}")
    images, items = FileImages(tmp_path / "images"), [Item(name, 0) for name in names]
    for space in (SPACE, replace(SPACE, view={"seed": 1})):
        assert fill(tmp_path / "store", images, items, space) == names
        assert fill(tmp_path / "store", images, items, space) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_file_says_how_far_a_long_encoding_is(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "ROWS", 48)
    monkeypatch.setattr(features_module, "MOMENT", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    images, items = folder_of(tmp_path / "images", 100)
    lines: list[str] = []
    about = {"images": "test images"}
    store = FeatureStore(tmp_path / "store")
    store.features(SPACE, images, items, Encoder(images), batch_size=5, about=about, say=lines.append)
    assert lines[-1].startswith("encoded 100 test images in ")
    assert len(lines) == (1 if terminal else 4)
    for line, done in zip(lines[:-1], (5, 50, 95), strict=False):
        assert line.startswith(f"{done} of 100 test images")
        # The first shard's time is also that of compiling and starting workers.
        assert line.endswith(" left") == (done > 5)


def test_a_long_list_is_stored_in_shards_of_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "ROWS", 48)
    images, items = folder_of(tmp_path / "images", 100)
    encoder, lines = Encoder(images), list[str]()
    store = FeatureStore(tmp_path / "store")
    about = {"images": "test images"}
    store.features(SPACE, images, items, encoder, batch_size=5, about=about, say=lines.append)
    assert [len(call) for call in encoder.calls] == [5, 45, 45, 5]
    assert sorted(len(read_shard(path)[1]) for path in shards(tmp_path / "store")) == [5, 5, 45, 45]
    assert store.encoded == 100
    assert len(lines) == 1 and lines[0].startswith("encoded 100 test images in ")
    assert lines[0].endswith(" images/s)")
    monkeypatch.setattr(features_module, "SECONDS", 0.0)  # a slow encoder: a batch a shard
    other = replace(SPACE, backbone="slow")
    store.features(other, images, items[:15], encoder, batch_size=5, say=lines.append)
    assert [len(call) for call in encoder.calls[4:]] == [5, 5, 5]
    assert len(lines) == 1  # a handful is not worth a line


def damage(content: bytes, kind: str) -> bytes:
    if kind == "flipped":
        return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    if kind == "zeros":  # the length is there, the bytes never reached the disk
        return content[:-40] + bytes(40)
    cuts = {"empty": 0, "stub": 4, "header": 60, "tail": len(content) - 1, "half": len(content) - 70}
    return content[: cuts[kind]] if kind in cuts else b"something else entirely"


KINDS = ["empty", "stub", "header", "half", "tail", "flipped", "zeros", "garbage"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_is_removed_and_its_images_encoded_again(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, items = folder_of(tmp_path / "images", 5)
    store = tmp_path / "store"
    fill(store, images, items[:3])
    (broken,) = shards(store)
    fill(store, images, items[3:])
    broken.write_bytes(damage(broken.read_bytes(), kind))
    with caplog.at_level(logging.WARNING):
        # A process that does not write leaves the file where it is.
        reader, encoder = FeatureStore(store), Encoder(images)
        for _ in range(2):
            reader.features(SPACE, images, items, encoder, writer=False)
        assert broken.exists() and encoder.take() == 2 * keys(items[:3])
        assert len(caplog.records) == 1  # warned of once
        assert broken.name in caplog.text and "encoded again" in caplog.text
        assert fill(store, images, items) == keys(items[:3])
        caplog.clear()
        assert fill(store, images, items) == [] and caplog.text == ""
    assert verify(store).problems == []


def test_no_flipped_bit_changes_a_row_unnoticed(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 2)
    fill(tmp_path / "store", images, items)
    (path,) = shards(tmp_path / "store")
    content, (header, digests, features) = path.read_bytes(), read_shard(path)
    noticed = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            other = read_shard(path)
        except DamagedShardError:
            noticed += 1
        else:  # blanks of the header's JSON, say
            assert other[:2] == (header, digests) and torch.equal(other[2], features)
    assert noticed > 0.9 * len(content)


def test_a_shard_of_another_space_is_not_trusted(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 3)
    other = replace(SPACE, backbone="other")
    fill(tmp_path / "a", images, items)
    fill(tmp_path / "b", images, items, other, salt="other")
    (ours,), (theirs,) = shards(tmp_path / "a"), shards(tmp_path / "b")
    os.replace(theirs, ours)
    assert "another space" in verify(tmp_path / "a").problems[0]
    assert fill(tmp_path / "a", images, items) == keys(items)


def build_until_killed(store: Path, root: Path, count: int, calls: int) -> None:
    """In a process of its own: encode, and die by SIGKILL in the call after `calls`."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from cma_tune.data import features
from cma_tune.data.features import FeatureStore
from stored_images import SPACE, Encoder, folder_of

features.ROWS = 8
images, items = folder_of(Path({str(root)!r}), {count})

class Killed(Encoder):
    def __call__(self, items, progress):
        if len(self.calls) == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(items, progress)

FeatureStore(Path({str(store)!r})).features(SPACE, images, items, Killed(images), batch_size=4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    build_until_killed(tmp_path / "store", tmp_path / "images", 30, calls=3)
    images, items = folder_of(tmp_path / "images", 30)
    assert verify(tmp_path / "store").problems == []
    assert fill(tmp_path / "store", images, items) == keys(items[4 + 8 + 8 :])


def test_a_kill_while_writing_leaves_the_store_whole(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 3)
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from cma_tune.data import feature_shards
from stored_images import fill, folder_of

def save_and_die(tensors, path, metadata):
    Path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)

feature_shards.save_file = save_and_die
fill(Path({str(tmp_path / "store")!r}), *folder_of(Path({str(tmp_path / "images")!r}), 3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (left,) = (tmp_path / "store" / SPACE.id).iterdir()
    assert left.name.startswith(".") and left.suffix == ".tmp"  # the temporary file alone
    assert verify(tmp_path / "store").problems == []
    assert fill(tmp_path / "store", images, items) == keys(items)
    assert fill(tmp_path / "store", images, items) == []


def write_at_once(store: Path, root: Path, seed: int, count: int) -> None:
    """One of several writers: overlapping lists in small shards, pruned now and then."""
    features_module.ROWS = 8
    images, generator = FileImages(root), random.Random(seed)
    for _ in range(12):
        chosen = generator.sample(range(count), 20)
        items = [Item(f"{number:03d}", 0) for number in chosen]
        encoder = Encoder(images)
        rows: Tensor = FeatureStore(store).features(SPACE, images, items, encoder, batch_size=3)
        assert torch.equal(rows, encoder.expected(items))
        if generator.random() < 0.3:
            prune(store)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 60)
    store = tmp_path / "store"
    fork = multiprocessing.get_context("fork")
    writers = [
        fork.Process(target=write_at_once, args=(store, tmp_path / "images", seed, 60)) for seed in range(5)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 5
    checked = verify(store)
    assert checked.problems == [] and checked.rows >= 60
    assert fill(store, images, items) == []
    assert entries(store).keys() == sizes(store).keys()
    prune(store)
    checked = verify(store)
    assert (checked.rows, checked.doubled, checked.problems) == (60, 0, [])
    assert fill(store, images, items) == []
    assert not list(store.rglob("*.tmp"))


def test_a_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, items = folder_of(tmp_path / "images", 2)
    fill(tmp_path / "store", images, items)
    (path,) = shards(tmp_path / "store")

    def again(*arguments: object, **options: object) -> None:
        raise AssertionError("A second opening: the file may have been pruned since the first.")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", again)
    read_shard(path)


def test_a_space_reads_back(tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 2)
    fill(tmp_path / "store", images, items, Space("b", "p", "fp16", {"seed": 3}))
    (path,) = shards(tmp_path / "store")
    header, digests, features = read_shard(path)
    assert header.space == Space("b", "p", "fp16", {"seed": 3}).text()
    assert len(set(digests)) == 2 and features.shape == (2, DIM) == (header.rows, header.dim)
