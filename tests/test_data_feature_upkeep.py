"""Index, verify and prune: the shards are the truth, and nothing that is whole gets lost."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from stored_images import DIM, SPACE, fill, folder_of, shards

from cma_tune.data import feature_index
from cma_tune.data.feature_index import entries
from cma_tune.data.feature_shards import read_images, read_shard, shard_paths, write_shard
from cma_tune.data.feature_upkeep import Removed, prune, remove_everything, remove_spaces, verify

OTHER = replace(SPACE, backbone="other")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two shards in one space, one in another."""
    images, items = folder_of(tmp_path / "images", 6)
    store = tmp_path / "store"
    fill(store, images, items[:2])
    fill(store, images, items)
    fill(store, images, items[:3], OTHER, salt="other")
    return store


def truth(store: Path) -> dict[str, tuple[int, int, int, str]]:
    """What the index should say, from the shards themselves."""
    found = {}
    for path in shards(store):
        header, _, features = read_shard(path)
        found[str(path.relative_to(store))] = (*features.shape, path.stat().st_size, header.space)
    return found


def says(store: Path) -> dict[str, tuple[int, int, int, str]]:
    return {name: (e.rows, e.dim, e.bytes, e.space) for name, e in entries(store).items()}


def written(store: Path) -> dict[str, tuple[int, int, int, str]]:
    content = json.loads((store / "cma_tune_features.json").read_text())["shards"]
    return {name: (e["rows"], e["dim"], e["bytes"], e["space"]) for name, e in content.items()}


def test_writers_enter_their_shards(store: Path) -> None:
    assert sorted(rows for rows, *_ in truth(store).values()) == [2, 3, 4]
    assert written(store) == truth(store) == says(store)


@pytest.mark.parametrize(
    "content", [None, "", '{"shards": {"a', "[]", '{"shards": {"a/b": {"rows": 1}}}', "x"]
)
def test_an_index_that_is_missing_or_torn_is_made_again(content: str | None, store: Path) -> None:
    (store / "cma_tune_features.json").unlink()
    if content is not None:
        (store / "cma_tune_features.json").write_text(content)
    assert says(store) == truth(store) == written(store)


def test_a_writer_mends_a_torn_index(store: Path, tmp_path: Path) -> None:
    (store / "cma_tune_features.json").write_text("torn")
    images, items = folder_of(tmp_path / "images", 7)
    fill(store, images, items)
    assert written(store) == truth(store) and len(truth(store)) == 4


def test_an_index_that_disagrees_with_the_folder_is_mended(store: Path) -> None:
    index = store / "cma_tune_features.json"
    content = json.loads(index.read_text())
    first, second, third = sorted(content["shards"])
    content["shards"]["0123456789abcdef/gone.safetensors"] = content["shards"].pop(first)
    content["shards"][second] |= {"bytes": 5, "rows": 99}
    content["shards"][third] |= {"rows": 98}  # only who reads everything sees this
    index.write_text(json.dumps(content))
    wrong = {name: entry for name, entry in says(store).items() if entry != truth(store)[name]}
    assert list(wrong) == [third]
    assert verify(store).problems == []
    assert says(store) == truth(store) == written(store)


def test_who_holds_the_lock_stops_no_writer(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_index, "WAIT", 0.05)
    images, items = folder_of(tmp_path / "images", 7)
    with FileLock(store / feature_index.LOCK):
        assert fill(store, images, items) == ["006"]
        assert says(store) == truth(store) != written(store)
    assert says(store) == truth(store) == written(store)


def test_verify_reads_everything(store: Path) -> None:
    checked = verify(store)
    assert (checked.shards, checked.rows, checked.doubled, checked.problems) == (3, 9, 0, [])
    assert checked.bytes == sum(path.stat().st_size for path in shards(store))
    first, second, _ = shards(store)
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(second.read_bytes()[:-1] + b"\0")
    checked = verify(store)
    assert checked.shards == 1 and len(checked.problems) == 2
    for path, problem in zip((first, second), checked.problems, strict=True):
        assert problem.startswith(f"{path.parent.name}/{path.name}: ")


def test_prune_removes_what_is_damaged_and_nothing_else(store: Path, tmp_path: Path) -> None:
    before = truth(store)
    assert prune(store).lines == [] and truth(store) == before
    broken = shards(store)[0]
    broken.write_bytes(b"garbage")
    removed = prune(store)
    assert len(removed.lines) == 1 and broken.name in removed.lines[0] and removed.bytes == 7
    del before[str(broken.relative_to(store))]
    assert truth(store) == before == written(store)


def test_prune_keeps_one_row_of_every_image(store: Path, tmp_path: Path) -> None:
    images, items = folder_of(tmp_path / "images", 6)
    paths = [p for p in shards(store) if p.parent.name == SPACE.id]
    rows: dict[bytes, torch.Tensor] = {}
    for path in paths:
        _, digests, features = read_shard(path)
        rows |= dict(zip(digests, features, strict=True))
    chosen = list(rows)
    folder, text = store / SPACE.id, SPACE.text()
    # A whole shard again in another order, and one of which half is new.
    write_shard(folder, text, chosen[::-1], torch.stack([rows[digest] for digest in chosen[::-1]]), {})
    new = [bytes([number]) * 32 for number in range(2)]
    mixed = torch.cat([torch.stack([rows[chosen[0]], rows[chosen[3]]]), torch.ones(2, DIM)])
    write_shard(folder, text, [chosen[0], chosen[3], *new], mixed, {})
    before = sum(path.stat().st_size for path in shards(store))
    assert verify(store).doubled == 8

    removed = prune(store)
    checked = verify(store)
    assert (checked.rows, checked.doubled, checked.problems) == (8 + 3, 0, [])
    assert removed.lines and all("stored twice" in line for line in removed.lines)
    assert removed.bytes == before - sum(path.stat().st_size for path in shards(store)) > 0
    left: dict[bytes, torch.Tensor] = {}
    for path in shards(store):
        if path.parent == folder:
            _, digests, features = read_shard(path)
            left |= dict(zip(digests, features, strict=True))
    assert left.keys() == {*rows, *new}
    assert all(torch.equal(left[digest], row) for digest, row in rows.items())
    assert fill(store, images, items) == [] == fill(store, images, items[:3], OTHER, salt="other")
    assert prune(store).lines == []


def test_prune_removes_old_temporary_files(store: Path) -> None:
    names = [
        store / ".cma_tune_features.json.1-ab.tmp",
        store / "contents/.0123456789abcdef.json.1-ab.tmp",
        shards(store)[0].parent,
    ]
    names[2] /= ".x.safetensors.1-ab.tmp"
    fresh = store / ".cma_tune_features.json.2-ab.tmp"
    for path in (*names, fresh):
        path.write_text("half")
    for path in names:
        os.utime(path, (time.time() - 4000,) * 2)
    assert len(prune(store).lines) == 3
    assert fresh.exists() and not any(path.exists() for path in names)
    assert len(prune(store, now=time.time() + 4000).lines) == 1
    assert not fresh.exists() and len(truth(store)) == 3


def test_removing_one_space(store: Path) -> None:
    removed = remove_spaces(store, [OTHER.id])
    assert len(removed.lines) == 1 and removed.bytes > 0
    assert not (store / OTHER.id).exists() and len(truth(store)) == 2
    assert written(store) == truth(store)


def test_removing_everything_leaves_what_is_not_the_stores(store: Path) -> None:
    names = ["notes.txt", "index.json", ".x.tmp", "contents/page.json", f"{SPACE.id}/notes.txt"]
    mine = [store / name for name in (*names, "photos/a.safetensors")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    remove_everything(store)
    assert sorted(path for path in store.rglob("*") if path.is_file()) == sorted(mine)
    for path in mine:
        path.unlink()
    for folder in ("photos", "contents"):
        (store / folder).rmdir()
    remove_everything(store)
    assert not store.exists()


def test_looking_at_another_folder_leaves_it_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    assert feature_index.entries(tmp_path) == {} and verify(tmp_path).shards == 0
    prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"index.json", "cma_tune_prune.lock"}
    assert (tmp_path / "index.json").read_text() == "{}"


@pytest.mark.parametrize("seed", range(8))
def test_a_prune_killed_between_two_steps_loses_no_row(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the rest of a shard was written and before the shard went, then done again."""
    folder, generator = tmp_path / SPACE.id, torch.Generator().manual_seed(seed)
    digests = [bytes([seed, number]) * 16 for number in range(6)]
    for rows in (digests[:3], digests[2:], digests[1:5]):
        features = torch.randn(len(rows), 4, generator=generator)
        write_shard(folder, SPACE.text(), rows, features, {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Removed, "file", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path)
    prune(tmp_path)
    held = [image for path in shard_paths(folder) for image in read_images(path)]
    assert sorted(held) == sorted(digests)
