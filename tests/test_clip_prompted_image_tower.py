"""The image tower with prompts against the libraries' own forward, for every kind of vision transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE_SIZE, Family, tiny_backbone
from prompt_references import deep_backbone, image_by_loop, made_backbone, pixels, prompted_by_hooks
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.image_tower import image_tower
from cma_tune.clip.prompted_image_tower import PromptedImageTower
from cma_tune.errors import UserError

OTHERS = {"clip-resnet": "ModifiedResNet", "custom-text-timm": "ResNet"}
"""Families whose image tower is no vision transformer, with what it is."""

POOLED = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "average": {"pool_type": "avg"},
    "average-then-norm": {"pool_type": "avg", "final_ln_after_pool": True},
    "no-first-norm": {"no_ln_pre": True},
    "patch-dropout": {"patch_dropout": 0.5},
    "layer-scale": {"ls_init_value": 0.5},
    "fixed-positions": {"pos_embed_type": "sin_cos_2d"},
    "attentional-average": {**POOLED, "pool_type": "avg"},
    "custom-blocks": {"qk_norm": True, "scale_attn": True, "scale_fc": True, "scale_heads": True},
    "timm-class-token": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "timm-average": {"timm_model_name": "test_vit2", "timm_pool": "avg", "timm_proj": "linear"},
    "timm-pooling-head": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "linear"},
}
TRANSFORMERS = [name for name in FAMILIES if name.startswith("transformers-")]


def variant(name: str) -> Backbone:
    if name in TRANSFORMERS:
        return tiny_backbone(name)
    return made_backbone(Family("custom", vision={"layers": 2, **VARIANTS[name]}), name)


def own_features(model: Any, images: Tensor) -> Tensor:
    """Not normalised, by the library's own forward."""
    if hasattr(model, "get_image_features"):
        return torch.as_tensor(model.get_image_features(pixel_values=images).pooler_output)
    return torch.as_tensor(model.encode_image(images, normalize=False))


def prompts_for(tower: PromptedImageTower, depth: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(depth, count, tower.width, generator=generator, dtype=torch.float64)
    return list(values.requires_grad_().unbind())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in OTHERS])
def test_without_prompts_it_is_the_models_own(name: str) -> None:
    backbone = tiny_backbone(name)
    model: Any = backbone.model
    images = pixels(11)
    expected = own_features(model, images)
    torch.testing.assert_close(PromptedImageTower(backbone)(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*VARIANTS, *TRANSFORMERS])
def test_every_variant_with_and_without_prompts(name: str) -> None:
    backbone = variant(name)
    model, visual = backbone.model, image_tower(backbone.model)
    # This model of timm takes images of one size alone.
    size = 160 if name == "timm-pooling-head" else IMAGE_SIZE
    tower, images = PromptedImageTower(backbone), pixels(3, size=size)
    output = own_features(model, images)
    torch.testing.assert_close(tower(images), output, rtol=0, atol=1e-12)
    for depth in (1, 2):
        prompts = prompts_for(tower, depth)
        with prompted_by_hooks(visual, prompts):
            expected = own_features(model, images)
        assert (expected - output).abs().max() > 1e-3
        ours = tower(images, prompts)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        slopes = torch.autograd.grad(ours.square().sum(), prompts)
        for slope, again in zip(slopes, torch.autograd.grad(expected.square().sum(), prompts), strict=True):
            assert slope.abs().max() > 1e-6
            torch.testing.assert_close(slope, again, rtol=0, atol=1e-11)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_features_are_those_of_a_loop_over_patches_and_heads(depth: int) -> None:
    tower, images = PromptedImageTower(deep_backbone()), pixels(2)
    prompts = prompts_for(tower, depth)
    ours = nn.functional.normalize(tower(images, prompts), dim=-1)
    for image, feature in zip(images, ours, strict=True):
        expected = image_by_loop(deep_backbone(), image, prompts)
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-12)


def test_a_batch_may_be_empty_and_any_size() -> None:
    tower, images = PromptedImageTower(deep_backbone()), pixels(19)
    prompts = prompts_for(tower, 2)
    whole = tower(images, prompts)
    for image, feature in zip(images, whole, strict=True):
        torch.testing.assert_close(tower(image[None], prompts)[0], feature, rtol=0, atol=1e-12)
    none = tower(images[:0], prompts)
    assert none.shape == (0, whole.shape[1])
    assert all(not slope.any() for slope in torch.autograd.grad(none.sum(), prompts))


def test_half_precision_is_the_models_own() -> None:
    backbone = made_backbone(Family(vision={"layers": 2}), "float", torch.float32)
    model: Any = backbone.model
    images = pixels(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected, ours = model.encode_image(images), PromptedImageTower(backbone)(images)
        prompted = PromptedImageTower(backbone)(images, prompts_for(PromptedImageTower(backbone), 2))
    assert ours.dtype == expected.dtype == prompted.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "kind"), OTHERS.items())
def test_other_towers_are_refused(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"vision transformer for visual prompts in '{name}', got {kind}; "):
        PromptedImageTower(tiny_backbone(name))
