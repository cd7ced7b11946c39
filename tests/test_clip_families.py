"""Every family of text towers keeps the same contract: features from embeddings are the model's own."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    CLASS_NAMES,
    FAMILIES,
    IMAGE_SIZE,
    PREPROCESSING,
    TEXTS,
    Family,
    model_config,
    own_image_features,
    own_text_features,
    reference_embeddings,
    tiny_backbone,
)
from open_clip.model import CLIP, set_model_preprocess_cfg
from tiny_tokenizers import tiny_tokenizer
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.text_tower import NativeTextTower
from cma_tune.errors import UserError
from cma_tune.learners import CoCoOp, CoOp
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)

FILLED = ("coca", "coca-correct-mask", "clip-vit", "mobileclip-s", "pad-masked", "transformers-clip")

SINGLE = ("clip-vit", "coca", "siglip", "hf-roberta-mean", "transformers-clip", "transformers-siglip")

ALL = pytest.mark.parametrize("family", FAMILIES)


def assert_close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the reference's largest entry."""
    assert ours.shape == reference.shape
    assert float((ours - reference).abs().max()) <= tolerance * max(1.0, float(reference.abs().max()))


@ALL
def test_truncated_features_equal_encode_text(family: str) -> None:
    backbone = tiny_backbone(family)
    ids = backbone.tokenizer.tokenize(TEXTS)
    length = backbone.tower.needed_length(ids)
    embeddings = backbone.tower.token_embeddings(ids)[:, :length]
    with torch.no_grad():  # torch's attention takes another way with gradients than without
        reference = own_text_features(backbone, ids)
        without_gradient = backbone.tower(embeddings, ids)
    with_gradient = backbone.tower(embeddings.requires_grad_(), ids)
    assert (length < ids.shape[1]) == FAMILIES[family].truncates
    assert reference.std(dim=0).min() > 1e-3, "the texts must differ, or the comparison shows nothing"
    assert_close(without_gradient, reference, FAMILIES[family].exact)
    assert_close(with_gradient.detach(), reference, FAMILIES[family].exact)
    assert_close(backbone.encode_texts(TEXTS), nn.functional.normalize(reference, dim=-1), 1e-6)


@ALL
def test_one_text_at_a_time_gives_the_same(family: str) -> None:
    """Each text cut to its own length, not to the longest of the batch."""
    backbone = tiny_backbone(family)
    for text in TEXTS:
        ids = backbone.tokenizer.tokenize([text])
        with torch.no_grad():
            assert_close(
                backbone.tower.encode_ids(ids), own_text_features(backbone, ids), FAMILIES[family].exact
            )


@ALL
def test_gradients_equal_those_at_full_length(family: str) -> None:
    backbone, exact = tiny_backbone(family), FAMILIES[family].exact
    ids = backbone.tokenizer.tokenize(TEXTS)
    generator = torch.Generator().manual_seed(1)
    # Embeddings that belong to no token, as a learned context has them.
    embeddings = reference_embeddings(backbone, ids)
    embeddings = embeddings + 0.3 * torch.randn(embeddings.shape, generator=generator, dtype=torch.float64)
    full = embeddings.clone().requires_grad_()
    reference = own_text_features(backbone, ids, full)
    weights = torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    (reference * weights).sum().backward()
    length = backbone.tower.needed_length(ids)
    cut = embeddings[:, :length].clone().requires_grad_()
    features = backbone.tower(cut, ids)
    (features * weights).sum().backward()
    assert full.grad is not None and cut.grad is not None
    assert_close(features.detach(), reference.detach(), exact)
    assert_close(cut.grad, full.grad[:, :length], exact)
    assert float(full.grad[:, length:].abs().sum()) <= exact, "what is cut must not matter"
    assert cut.grad.abs().sum() > 0


def test_coca_keeps_one_pad_only_under_the_original_mask() -> None:
    """open_clip's original CoCa attends to the first pad; without it the features are others."""
    for family, pads in (("coca", 1), ("coca-correct-mask", 0)):
        backbone = tiny_backbone(family)
        ids = backbone.tokenizer.tokenize(TEXTS)
        words = int((ids != 0).sum(dim=1).max())
        assert backbone.tower.needed_length(ids) == words + pads
        embeddings = backbone.tower.token_embeddings(ids)
        with torch.no_grad():
            longest = own_text_features(backbone, ids)[2]
            assert_close(backbone.tower(embeddings[:, : words + pads], ids)[2], longest, 1e-12)
            one_less = backbone.tower(embeddings[:, : words + pads - 1], ids)[2]
        assert (one_less - longest).abs().max() > 1e-6


@pytest.mark.parametrize("family", FILLED)
def test_texts_that_fill_the_context(family: str) -> None:
    backbone = tiny_backbone(family)
    ids = backbone.tokenizer.tokenize(["x" + " x" * (backbone.tower.context_length - 3), "a cat"])
    with torch.no_grad():
        assert_close(backbone.tower.encode_ids(ids), own_text_features(backbone, ids), 1e-12)


@ALL
def test_tokenizer_taken_apart_writes_the_same_ids(family: str) -> None:
    backbone = tiny_backbone(family)
    tokenizer: Any = backbone.tokenizer._tokenizer
    texts = [*TEXTS, *CLASS_NAMES, "", "wow!!", "a_b, C?"]
    assert torch.equal(
        backbone.tokenizer.tokenize(texts), tokenizer(texts, context_length=backbone.tower.context_length)
    )


@ALL
def test_images(family: str) -> None:
    backbone = tiny_backbone(family)
    images = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    features = backbone.encode_image(images)
    assert_close(features, own_image_features(backbone, images.double()), 1e-12)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert not features.requires_grad
    assert features.std(dim=0).max() > 1e-3


@ALL
def test_frozen_and_in_eval_mode_whatever_is_asked(family: str) -> None:
    backbone = tiny_backbone(family)
    nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def run(learner: CoOp | CoCoOp, backbone: Backbone) -> None:
    """One forward and backward pass, checked for finite gradients of everything that is learned."""
    learner.train()
    images = backbone.encode_image(torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE))
    output = learner(images)
    assert output.logits.shape == (2, len(CLASS_NAMES))
    torch.testing.assert_close(
        output.text_features.norm(dim=-1), torch.ones(output.text_features.shape[:-1], dtype=torch.float64)
    )
    nn.functional.cross_entropy(output.logits, torch.tensor([0, 1])).backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert learner.context.grad is not None and learner.context.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


@ALL
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_the_whole_line(family: str, position: Any) -> None:
    backbone = tiny_backbone(family)
    run(CoOp(backbone, CLASS_NAMES, ContextOptions(3, position)), backbone)
    run(CoOp(backbone, CLASS_NAMES, ContextOptions(3, position, per_class=True)), backbone)
    run(CoCoOp(backbone, CLASS_NAMES, ContextOptions(3, position)), backbone)


@pytest.mark.parametrize("family", SINGLE)
def test_single_precision_agrees_with_double(family: str) -> None:
    single, double = (tiny_backbone(family, dtype) for dtype in (torch.float32, torch.float64))
    assert single.encode_texts(TEXTS).dtype == torch.float32
    assert_close(single.encode_texts(TEXTS).double(), double.encode_texts(TEXTS), 1e-5)


def test_half_precision_weights_give_float32_features() -> None:
    """open_clip's own mixed form: matrices in bfloat16; embeddings, norms and logit_scale in float32."""
    from open_clip.model import CLIP, convert_weights_to_lp, get_cast_dtype, set_model_preprocess_cfg

    reference = tiny_backbone("clip-vit", torch.float32)
    small = {"width": 16, "layers": 1}
    model = CLIP(
        embed_dim=12,
        vision_cfg={**small, "image_size": IMAGE_SIZE, "patch_size": 16, "head_width": 8},
        text_cfg={**small, "layers": 2, "heads": 2, "context_length": 24},
        cast_dtype=get_cast_dtype("bf16"),
    )
    model.load_state_dict(reference.model.state_dict())
    convert_weights_to_lp(model, torch.bfloat16)
    own_model: Any = reference.model
    set_model_preprocess_cfg(model, own_model.visual.preprocess_cfg)
    tokenizer: Any = reference.tokenizer._tokenizer
    backbone = Backbone(model, tokenizer, reference.transform, "half")
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    for ours, full in (
        (backbone.encode_image(images), reference.encode_image(images)),
        (backbone.encode_texts(TEXTS), reference.encode_texts(TEXTS)),
    ):
        assert ours.dtype == torch.float32
        assert (ours * full).sum(dim=-1).min() > 0.99
    learner = CoOp(backbone, CLASS_NAMES, ContextOptions(2))
    learner(backbone.encode_image(images)).logits.sum().backward()
    assert learner.context.grad is not None and learner.context.grad.isfinite().all()


def refused(model: nn.Module, family: str = "clip-vit") -> str:
    """The sentence that a backbone of `model` is refused with."""
    like = tiny_backbone(family, torch.float32)
    tokenizer: Any = like.tokenizer._tokenizer
    with pytest.raises(UserError) as error:
        Backbone(model, tokenizer, like.transform, "odd-one")
    return str(error.value)


def tiny_text(**changes: Any) -> nn.Module:
    """A custom-text model whose text tower is changed."""
    import copy

    model: Any = copy.deepcopy(tiny_backbone("custom-text", torch.float32).model)
    for name, value in changes.items():
        setattr(model.text, name, value)
    return model


def test_a_tower_that_pools_nothing_is_refused_by_name() -> None:
    message = refused(tiny_text(pool_type="none"))
    assert "'odd-one'" in message and "'none'" in message


def test_a_tower_that_pools_another_token_than_the_end_is_refused_by_name() -> None:
    assert "'odd-one'" in refused(tiny_text(pool_type="eos", eos_id=7))
    # Under a causal mask the first token never sees the text.
    assert "'odd-one'" in refused(tiny_text(pool_type="first"))


def test_a_tokenizer_of_another_vocabulary_is_refused_by_name() -> None:
    message = refused(tiny_backbone("siglip", torch.float32).model)
    assert "'odd-one'" in message and "49407" in message and "hf_tokenizer_name" in message


def test_a_tower_without_token_embeddings_is_refused_by_name() -> None:
    model: Any = tiny_text()
    del model.text.token_embedding
    message = refused(model)
    assert "'odd-one'" in message and "token_embedding" in message and "TextTransformer" in message


def test_a_transformers_encoder_that_pools_the_maximum_is_refused_by_name() -> None:
    """open_clip's own max pooler fails on an integer mask, so there is nothing to agree with."""
    import copy

    from open_clip.hf_model import MaxPooler

    model: Any = copy.deepcopy(tiny_backbone("hf-roberta-mean", torch.float32).model)
    model.text.pooler = MaxPooler()
    message = refused(model, "hf-roberta-mean")
    assert "'odd-one'" in message and "MaxPooler" in message


def test_a_tokenizer_that_pads_in_front_is_refused_by_name() -> None:
    import copy

    like = tiny_backbone("hf-roberta-mean", torch.float32)
    tokenizer: Any = copy.deepcopy(like.tokenizer._tokenizer)
    tokenizer.tokenizer.padding_side = "left"
    with pytest.raises(UserError, match="'odd-one'"):
        Backbone(like.model, tokenizer, like.transform, "odd-one")


def test_native_towers_know_their_vocabulary() -> None:
    """Rows of the vocabulary are what the ids look up, also where an encoder scales them."""
    for family in ("clip-vit", "coca", "hf-nllb-cls", "hf-mt5-mean"):
        backbone = tiny_backbone(family)
        vocabulary, ids = backbone.tower.vocabulary(), torch.tensor([[3, 7, 11]])
        assert torch.equal(vocabulary[ids], backbone.tower.token_embeddings(ids))
        assert not vocabulary.requires_grad
    assert isinstance(tiny_backbone("clip-vit").tower, NativeTextTower)


def test_equal_weights_in_another_image_tower_have_other_features() -> None:
    """Neither activation nor number of heads is in the weights, but stored features depend on both."""
    digests, weights = set(), set()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer("clip", Path(folder))
        state: dict[str, Tensor] | None = None
        for vision, quick_gelu in (({}, False), ({}, True), ({"head_width": 4}, False), ({}, False)):
            config = model_config(Family(vision=vision), tokenizer, Path(folder))
            model = CLIP(**config, quick_gelu=quick_gelu)
            state = state or copy.deepcopy(model.state_dict())
            model.load_state_dict(state)
            set_model_preprocess_cfg(model, PREPROCESSING)
            backbone = Backbone(model, tokenizer, None, "tiny")
            digests.add(backbone.image_digest)
            weights.add(backbone.weights_digest)
    assert len(weights) == 1 and len(digests) == 3
