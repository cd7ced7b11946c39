"""Stored features: made once, trusted only when whole and of the same thing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cma_tune.data.dataset import FileImages
from cma_tune.data.features import feature_identity, stored_features
from cma_tune.data.splits import Item


class Encoder:
    """Gives features and counts how often."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.features


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))


IDENTITY = {"backbone": "b", "preprocessing": "p", "images": "i", "count": 5, "view": {"precision": "no"}}


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_the_second_call_does_not_encode(tmp_path: Path, encoder: Encoder) -> None:
    first = stored_features(tmp_path / "store", IDENTITY, encoder)
    second = stored_features(tmp_path / "store", dict(reversed(IDENTITY.items())), encoder)
    assert encoder.calls == 1
    assert torch.equal(first, encoder.features) and torch.equal(second, encoder.features)
    assert only_file(tmp_path / "store").suffix == ".safetensors"


def test_a_view_may_hold_tuples(tmp_path: Path, encoder: Encoder) -> None:
    identity = {**IDENTITY, "view": {"scale": (0.08, 1.0)}}
    for _ in range(2):
        stored_features(tmp_path, identity, encoder)
    assert encoder.calls == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtype_and_values_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    features = torch.randn(3, 4).to(dtype)
    encoder = Encoder(features.T.contiguous().T.requires_grad_())  # neither contiguous nor free of a graph
    for _ in range(2):
        back = stored_features(tmp_path, IDENTITY, encoder)
        assert back.dtype == dtype and torch.equal(back, features) and not back.requires_grad
    assert encoder.calls == 1


def test_a_process_that_does_not_write(tmp_path: Path, encoder: Encoder) -> None:
    stored_features(tmp_path, IDENTITY, encoder, writer=False)
    assert list(tmp_path.iterdir()) == []
    stored_features(tmp_path, IDENTITY, encoder)
    stored_features(tmp_path, IDENTITY, encoder, writer=False)
    assert encoder.calls == 2


def damage(content: bytes, kind: str) -> bytes:
    if kind == "flipped":
        return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    if kind == "zeros":  # the length is there, the bytes never reached the disk
        return content[:-40] + bytes(40)
    cuts = {"empty": 0, "stub": 4, "header": 60, "tail": len(content) - 1, "half": len(content) - 70}
    return content[: cuts[kind]] if kind in cuts else b"something else entirely"


@pytest.mark.parametrize("kind", ["empty", "stub", "header", "half", "tail", "flipped", "zeros", "garbage"])
def test_a_damaged_file_is_made_again(
    kind: str, tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    stored_features(tmp_path, IDENTITY, encoder)
    file = only_file(tmp_path)
    file.write_bytes(damage(file.read_bytes(), kind))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(stored_features(tmp_path, IDENTITY, encoder), encoder.features)
    assert encoder.calls == 2
    assert file.name in caplog.text and "made again" in caplog.text
    assert only_file(tmp_path) == file
    assert torch.equal(stored_features(tmp_path, IDENTITY, encoder), encoder.features)
    assert encoder.calls == 2  # what was made again is whole


def test_a_file_of_something_else_is_not_trusted(tmp_path: Path, encoder: Encoder) -> None:
    other = {**IDENTITY, "backbone": "another"}
    stored_features(tmp_path / "a", IDENTITY, encoder)
    stored_features(tmp_path / "b", other, Encoder(encoder.features + 1))
    os.replace(only_file(tmp_path / "b"), only_file(tmp_path / "a"))
    assert torch.equal(stored_features(tmp_path / "a", IDENTITY, encoder), encoder.features)
    assert encoder.calls == 2


def test_every_change_gives_another_file(tmp_path: Path, encoder: Encoder) -> None:
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)

    def draw(name: str) -> None:
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / name)

    for name in ("a.png", "b.png", "c.png"):
        draw(name)
    images, items = FileImages(root), (Item("a.png", 0), Item("b.png", 1))
    store = tmp_path / "store"

    def look(
        backbone: str = "weights",
        preprocessing: str = "transform",
        chosen: tuple[Item, ...] = items,
        view: dict[str, object] | None = None,
    ) -> int:
        """Number of stored files after asking for these features."""
        identity = feature_identity(backbone, preprocessing, images, chosen, view or {})
        stored_features(store, identity, encoder)
        return len(list(store.iterdir()))

    assert look() == 1 and look() == 1
    assert look(backbone="other weights") == 2
    assert look(preprocessing="other transform") == 3
    assert look(view={"seed": 1, "epoch": 0}) == 4
    assert look(view={"seed": 1, "epoch": 1}) == 5
    assert look(chosen=items[::-1]) == 6
    assert look(chosen=items[:1]) == 7
    assert look(chosen=(Item("a.png", 0), Item("c.png", 1))) == 8
    assert look(chosen=(Item("a.png", 5), Item("b.png", 1))) == 8  # a label is no part of a feature
    draw("b.png")
    os.utime(root / "b.png", ns=(1, 1))
    assert look() == 9 and look() == 9
    assert encoder.calls == 9


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    class Images:
        def load(self, key: str) -> Image.Image:
            raise NotImplementedError

        def fingerprint(self, key: str) -> str:
            return "1"

    one, two = (
        feature_identity("b", "p", Images(), [Item(key, 0)], {})["images"] for key in ("a\udcff", "a\udcfe")
    )
    assert one != two


def test_a_kill_while_writing_leaves_the_store_whole(tmp_path: Path, encoder: Encoder) -> None:
    script = f"""
import os, signal, torch
from pathlib import Path
import cma_tune.data.features as features

def save_and_die(tensors, path, metadata):
    Path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)

features.save_file = save_and_die
features.stored_features(Path({str(tmp_path)!r}), {IDENTITY!r}, lambda: torch.zeros(5, 7))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [file.name[0] for file in tmp_path.iterdir()] == ["."]  # the temporary file alone
    assert torch.equal(stored_features(tmp_path, IDENTITY, encoder), encoder.features)
    stored_features(tmp_path, IDENTITY, encoder)
    assert encoder.calls == 1
