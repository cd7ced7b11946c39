"""transformers' models as backbones: the features of open_clip's form of the same weights, and their own."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import CLASS_NAMES, IMAGE_SIZE, TEXTS, own_image_features, own_text_features, tiny_backbone
from PIL import Image
from torch import Tensor, nn
from transformers_folders import FEATURES, give_siglips_tokenizer, unit, write_family, write_pair

from cma_tune.clip.backbone import Backbone, TextOptions, load_backbone
from cma_tune.clip.image_tower import image_features
from cma_tune.learners import CoCoOp, CoOp, ZeroShot
from cma_tune.learners.coop import ContextLearner, ContextOptions

torch.set_num_threads(1)


def in_double(backbone: Backbone) -> Backbone:
    tokenizer: Any = backbone.tokenizer._tokenizer
    model = copy.deepcopy(backbone.model).double()
    return Backbone(model, tokenizer, backbone.transform, backbone.name, preprocessing=backbone.preprocessing)


@cache
def pair() -> tuple[Backbone, Backbone]:
    """The same random weights loaded through open_clip and through transformers, in double precision."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = write_pair(Path(folder))
        return in_double(load_backbone(ours)), in_double(load_backbone(theirs))


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)


def assert_same(ours: Tensor, reference: Tensor, tolerance: float = 1e-12) -> None:
    assert ours.shape == reference.shape and reference.std() > 1e-3
    assert float((ours - reference).detach().abs().max()) <= tolerance


def test_the_same_weights_give_the_same_features_through_both_libraries() -> None:
    by_open_clip, by_transformers = pair()
    assert hasattr(by_open_clip.model, "visual") and hasattr(by_transformers.model, "vision_model")
    texts = [*TEXTS, "A  Photo of THE dog's ball", "naïve café №5"]
    words, same = (backbone.tokenizer.tokenize(texts) for backbone in pair())
    ends = words.argmax(dim=1)
    assert torch.equal(ends, same.argmax(dim=1))
    # Padding differs, and doesn't matter.
    for row, other, end in zip(words, same, ends.tolist(), strict=True):
        assert torch.equal(row[: end + 1], other[: end + 1])
    assert_same(by_transformers.encode_texts(texts), by_open_clip.encode_texts(texts))
    assert_same(by_transformers.encode_image(images()), by_open_clip.encode_image(images()))
    assert torch.equal(by_transformers.scale, by_open_clip.scale)
    assert by_transformers.preprocessing == by_open_clip.preprocessing


def learner_of(kind: type[ContextLearner], backbone: Backbone, share: bool) -> ContextLearner:
    backbone.text_options = TextOptions(share_prefix=share)
    learner = kind(backbone, CLASS_NAMES, ContextOptions(3, "middle"), seed=5).double()
    with torch.no_grad():
        learner.context.mul_(20)
    return learner


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", [CoOp, CoCoOp])
def test_learners_do_the_same_on_both(kind: type[ContextLearner], share: bool) -> None:
    logits, gradients = [], []
    for backbone in pair():
        learner = learner_of(kind, backbone, share)
        output = learner(backbone.encode_image(images()))
        nn.functional.cross_entropy(output.logits, torch.tensor([0, 3, 1])).backward()
        logits.append(output.logits.detach())
        gradients.append([parameter.grad for parameter in learner.parameters()])
    assert_same(logits[1], logits[0], 1e-11)
    for ours, other in zip(*gradients, strict=True):
        assert ours is not None and other is not None
        torch.testing.assert_close(other, ours, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["transformers-clip", "transformers-metaclip2", "transformers-siglip2"])
def test_a_folder_gives_the_models_own_features(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(f"transformers-dir:{write_family(tmp_path, family)}")
    assert backbone.weights_digest == tiny_backbone(family, torch.float32).weights_digest
    ids = backbone.tokenizer.tokenize(TEXTS)
    with torch.no_grad():
        own = own_text_features(backbone, ids)
        torch.testing.assert_close(backbone.tower.encode_ids(ids), own, rtol=1e-5, atol=1e-6)
    assert_same(backbone.encode_image(images().float()), own_image_features(backbone, images().float()), 1e-5)


def test_siglips_own_tokenizer_fills_the_context_with_its_end(tmp_path: Path) -> None:
    """As it was trained: texts padded to one length, and no mask."""
    own = give_siglips_tokenizer(write_family(tmp_path, "transformers-siglip"))
    backbone = load_backbone(f"transformers-dir:{tmp_path}")
    texts = ["a photo of a cat.", "a", "Red Dog!?"]
    theirs = own(texts, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    assert torch.equal(backbone.tokenizer.tokenize(texts), theirs)
    with torch.no_grad():
        assert_same(backbone.encode_texts(texts), unit(own_text_features(backbone, theirs)), 1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("size", [(48, 64), (70, 40), (32, 32)])
def test_images_go_through_what_the_models_own_processor_does(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Its form on PIL, to the rounding of a pixel value; the crops of even margins are the same pixels."""
    folder = write_family(tmp_path, f"transformers-{kind}")
    backbone = load_backbone(f"transformers-dir:{folder}")
    assert backbone.preprocessing.resize_mode == {"clip": "shortest", "siglip": "squash"}[kind]
    assert backbone.preprocessing.interpolation == {"clip": "bicubic", "siglip": "bilinear"}[kind]
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = backbone.transform(image)
    assert ours.shape == theirs.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert_same(ours, theirs, 1.01 / 255 / min(backbone.preprocessing.std))


def test_one_image_tower_in_two_folders_is_one(tmp_path: Path) -> None:
    first, second = (
        load_backbone(f"transformers-dir:{write_family(tmp_path / name)}") for name in ("here", "there")
    )
    assert first.image_digest == second.image_digest
    other: Any = copy.deepcopy(second.model)
    for layer in other.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()
    tokenizer: Any = second.tokenizer._tokenizer
    changed = Backbone(other, tokenizer, None, "other", preprocessing=second.preprocessing)
    assert changed.weights_digest == first.weights_digest and changed.image_digest != first.image_digest


@pytest.mark.parametrize("family", ["transformers-clip", "transformers-siglip"])
def test_half_precision_weights_give_float32_features(family: str) -> None:
    full, half = (tiny_backbone(family, dtype) for dtype in (torch.float32, torch.bfloat16))
    for ours, wanted in (
        (half.encode_image(images()), full.encode_image(images().float())),
        (half.encode_texts(TEXTS), full.encode_texts(TEXTS)),
    ):
        assert ours.dtype == torch.float32 and not torch.equal(ours, wanted)
        assert (ours * wanted).sum(dim=-1).min() > 0.99
    assert half.scale.dtype == torch.float32
    learner = CoOp(half, CLASS_NAMES, ContextOptions(2))
    learner(half.encode_image(images())).logits.sum().backward()
    assert learner.context.grad is not None and learner.context.grad.isfinite().all()
    assert learner.context.grad.abs().max() > 0


@pytest.mark.parametrize("family", ["transformers-clip", "transformers-siglip"])
def test_the_image_tower_can_be_compiled(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by the compiler's front as one graph; its code generation would need a C++ compiler."""
    backbone = tiny_backbone(family, torch.float32)
    expected = backbone.encode_image(images())
    compiled = torch.compile(backbone._image_features, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(backbone, "_compiled_images", compiled)
    assert_same(backbone.encode_image(images()), expected, 1e-6)


def test_siglips_bias_changes_no_probability() -> None:
    """Its own logits have one, the same for every class."""
    backbone = tiny_backbone("transformers-siglip")
    learner = ZeroShot(backbone, CLASS_NAMES, ["a photo of a {}."])
    ids = backbone.tokenizer.tokenize([f"a photo of a {name}." for name in CLASS_NAMES])
    model: Any = backbone.model
    with torch.no_grad():
        own = model(input_ids=ids, pixel_values=images()).logits_per_image
        ours = learner(backbone.encode_image(images())).logits
    assert float((own - ours).abs().min()) > 1e-3
    torch.testing.assert_close(own - ours, model.logit_bias.detach().expand_as(own), rtol=0, atol=1e-10)
    torch.testing.assert_close(own.softmax(dim=-1), ours.softmax(dim=-1), rtol=0, atol=1e-10)


def test_features_are_read_from_both_kinds_of_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4 gives features where transformers 5 gives an object that holds them."""
    backbone = tiny_backbone("transformers-clip")
    expected = image_features(backbone.model, images())
    assert expected.shape == (3, FEATURES)
    model: Any = copy.deepcopy(backbone.model)
    get = model.get_image_features
    monkeypatch.setattr(model, "get_image_features", lambda **inputs: get(**inputs).pooler_output)
    assert torch.equal(image_features(model, images()), expected)
