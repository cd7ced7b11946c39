"""What the embedded CLIP was trained on: no test composition, no handwritten digit, true captions."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cma_tune.data.builtin import load_builtin
from cma_tune.data.builtin.drawing import ALL_COMPOSITIONS, COLOURS, SHAPES, TEXTURES

FOLDER = Path(__file__).parents[1] / "benchmarks" / "embedded_backbone"
sys.path.insert(0, str(FOLDER))

import pretraining_captions as captions_module  # noqa: E402
import pretraining_images as images_module  # noqa: E402

CLASS_NAMES = load_builtin("shapes").class_names


@pytest.fixture(scope="module")
def stream() -> list[images_module.Picture]:
    return [images_module.pretraining_picture(i) for i in range(600)]


def test_no_test_composition_can_be_drawn() -> None:
    drawable = {composition.name for composition in images_module.COMPOSITIONS}
    assert len(ALL_COMPOSITIONS) == len(TEXTURES) * len(COLOURS) * len(SHAPES) == 256
    assert drawable.isdisjoint(CLASS_NAMES)
    assert len(drawable) == 256 - 32
    # Every word is still learned from other compositions.
    for words in (TEXTURES, tuple(COLOURS), SHAPES):
        assert all(any(word in name.split() for name in drawable) for word in words)


def test_stream_shows_and_says_no_test_composition(stream: list[images_module.Picture]) -> None:
    rng = random.Random(0)
    for picture in stream:
        assert " ".join(picture.content) not in CLASS_NAMES
        text = captions_module.caption_of(picture, rng).text
        assert not any(name in text for name in CLASS_NAMES)
    assert Counter(picture.kind for picture in stream) == {"figure": 300, "digit": 300}


def test_stream_is_made_without_scikit_learns_digits() -> None:
    """With scikit-learn out of reach the stream, figures and digits, is the same to the byte."""
    code = f"""
import hashlib, sys
sys.path.insert(0, {str(FOLDER)!r})
if sys.argv[1] == "blocked":
    sys.modules["sklearn"] = None  # any import of it now fails
from pretraining_images import pretraining_picture
pictures = [pretraining_picture(i) for i in range(40)]
assert sys.argv[1] == "free" or not any(name.startswith("sklearn.") for name in sys.modules)
print(hashlib.sha256(b"".join(p.pixels.tobytes() for p in pictures)).hexdigest())
"""
    hashes = {
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout
        for how in ("free", "blocked")
    }
    assert len(hashes) == 1


def test_no_handwritten_digit_is_in_the_stream(stream: list[images_module.Picture]) -> None:
    """No picture of the stream is a scan, in either polarity: none correlates with one as a copy would."""
    data = load_builtin("digits")
    scans = np.stack(
        [np.asarray(data.load(key))[:, :, 0] for items in data.parts.values() for key, _ in items]
    )
    drawn = np.stack([picture.pixels[:, :, 0] for picture in stream if picture.kind == "digit"])

    def standardise(images: np.ndarray) -> np.ndarray:
        rows = images.reshape(len(images), -1).astype(np.float32)
        rows -= rows.mean(axis=1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    likeness = np.abs(standardise(drawn) @ standardise(scans).T).max()
    assert likeness < 0.97
    copy = np.clip(scans[:1] * 0.9 + 10, 0, 255)
    assert np.abs(standardise(copy) @ standardise(scans).T).max() > 0.99  # what a copy would have shown


def test_stream_is_seeded(stream: list[images_module.Picture]) -> None:
    for index in (0, 1, 498, 499):
        again = images_module.pretraining_picture(index)
        assert (again.pixels == stream[index].pixels).all()
        assert (again.content, again.look) == (stream[index].content, stream[index].look)
        other = images_module.pretraining_picture(index, seed=1)
        assert not np.array_equal(other.pixels, stream[index].pixels)


def test_captions_say_what_their_bits_say_and_are_true(stream: list[images_module.Picture]) -> None:
    rng = random.Random(1)
    for picture in stream:
        caption = captions_module.caption_of(picture, rng)
        said = {word for i, word in enumerate(captions_module.WORDS) if caption.says >> i & 1}
        vocabulary = set(captions_module.WORDS) - {"figure", "digit"}
        assert said - {"figure", "digit"} == set(caption.text.rstrip(".").split()) & vocabulary
        assert said <= {picture.kind, *picture.content, *picture.look}
        assert caption.says & ~captions_module.picture_bits(picture) == 0


def test_names_come_at_every_place_that_prompt_learning_uses(stream: list[images_module.Picture]) -> None:
    import open_clip

    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    rng = random.Random(2)
    texts = [captions_module.caption_of(picture, rng).text for picture in stream for _ in range(4)]
    ends = Counter(tokenizer(texts).argmax(dim=1).tolist())
    assert max(ends) < 77
    assert all(ends[place] > 0 for place in range(3, 27))


def test_loss_without_coincidences_is_open_clips_and_with_them_the_loops() -> None:
    import open_clip
    from torch.nn import functional as F
    from train import contrastive_loss

    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 5, dtype=torch.float64), dim=-1) for _ in range(2))
    scale = torch.tensor(9.0, dtype=torch.float64)
    plain = contrastive_loss(image, text, scale, torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(plain, open_clip.ClipLoss()(image, text, scale), rtol=1e-12, atol=0)

    true = torch.eye(6, dtype=torch.bool)
    true[0, 3] = true[2, 3] = true[5, 1] = True
    logits = scale * image @ text.T
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        captions = [j for j in range(6) if true[i, j]]
        pictures = [j for j in range(6) if true[j, i]]
        total -= sum(logits[i].log_softmax(0)[j] for j in captions) / len(captions)
        total -= sum(logits[:, i].log_softmax(0)[j] for j in pictures) / len(pictures)
    torch.testing.assert_close(contrastive_loss(image, text, scale, true), total / 12, rtol=1e-12, atol=0)


def test_shortened_captions_give_the_towers_own_features() -> None:
    import open_clip
    from train import MODEL_CONFIG, encode_captions

    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL_CONFIG).double().eval()
    tokens = open_clip.SimpleTokenizer(context_length=77)(
        [
            "seven",
            "a photo of a striped red star.",
            "here it is: one " + "very " * 20 + "good four",
            "my zero",
            "one",
        ]
    )
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(encode_captions(model, tokens, chunks=2), expected, rtol=0, atol=1e-12)
