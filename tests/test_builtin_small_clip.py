"""The embedded CLIP as open_clip loads it: its accuracy on the embedded data, its tokens, its size."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import open_clip
import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file

from cma_tune.data.builtin import BUILTIN_NAMES, SMALL_CLIP_DIR, load_builtin

WEIGHTS = SMALL_CLIP_DIR / "open_clip_model.safetensors"


@lru_cache(maxsize=1)
def clip() -> tuple[open_clip.CLIP, Callable[[Image], torch.Tensor]]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{SMALL_CLIP_DIR}")
    return model.eval(), preprocess


@lru_cache(maxsize=len(BUILTIN_NAMES))
def image_features(name: str) -> torch.Tensor:
    model, preprocess = clip()
    data = load_builtin(name)
    images = torch.stack([preprocess(data.load(key)) for key, _ in data.parts["test"]])
    with torch.inference_mode():
        return torch.cat([model.encode_image(batch, normalize=True) for batch in images.split(256)])


def zero_shot(name: str, order: Sequence[int] | None = None) -> float:
    """Accuracy on the test part in percent; ``order`` gives class i the name of class ``order[i]``."""
    data = load_builtin(name)
    labels = torch.tensor([label for _, label in data.parts["test"]])
    names = [data.class_names[i] for i in order or range(len(data.class_names))]
    tokens = open_clip.get_tokenizer(f"local-dir:{SMALL_CLIP_DIR}")(
        [data.templates[0].format(n) for n in names]
    )
    with torch.inference_mode():
        text = clip()[0].encode_text(tokens, normalize=True)
    return 100 * ((image_features(name) @ text.T).argmax(dim=1) == labels).double().mean().item()


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_zero_shot_on_the_test_part_leaves_room_to_learn(name: str) -> None:
    assert 35 <= zero_shot(name) <= 80


def test_card_tells_the_measured_accuracy() -> None:
    card = (SMALL_CLIP_DIR / "README.md").read_text()
    for name in BUILTIN_NAMES:
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} "))
        told = float(row.split("|")[4])
        assert zero_shot(name) == pytest.approx(told, abs=1.0)  # another CPU may round a few images over


def test_names_matter() -> None:
    """With every name moved on by one class, accuracy falls to chance or below."""
    assert zero_shot("digits", order=[*range(1, 10), 0]) < 20


def test_rows_of_unused_tokens_are_zero() -> None:
    embedding = load_file(WEIGHTS)["token_embedding.weight"].float()
    assert embedding.shape == (49408, 128)
    used = embedding.abs().sum(dim=1) > 0
    assert 100 < int(used.sum()) < 1000
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    sets = [load_builtin(name) for name in BUILTIN_NAMES]
    prompts = [data.templates[0].format(name) for data in sets for name in data.class_names]
    tokens = tokenizer(prompts)
    assert used[tokens[tokens > 0]].all()
    assert not used[tokenizer(["helicopter"])[0, 1]]


def test_size_limits() -> None:
    weights = WEIGHTS.read_bytes()
    assert len(weights) < 20 * 2**20
    assert len(zlib.compress(weights)) < 15 * 2**20  # a wheel is a deflated archive
    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}
    assert all(value.isfinite().all() for value in load_file(WEIGHTS).values())


def test_package_data_holds_the_model() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    text = pyproject.read_text()
    for path in SMALL_CLIP_DIR.iterdir():
        assert f"data/builtin/**/*{path.suffix}" in text


def test_config_is_the_training_scripts() -> None:
    config = json.loads((SMALL_CLIP_DIR / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["image_size"] == 32
    assert config["model_cfg"]["text_cfg"]["context_length"] == 77
    assert config["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
