"""LoRA against W + (α/√r)·B·A put into a plain copy of the model by hand, and against peft's own loading."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import peft
import pytest
import torch
from families import CLASS_NAMES, Family, tiny_backbone, tiny_model
from method_checks import LABELS, cross_entropy_by_loop, mixed
from tiny_runs import cpu
from tiny_tokenizers import tiny_tokenizer
from torch import Tensor, nn

from cma_tune.clip.attention import split_attention
from cma_tune.clip.backbone import Backbone, TextOptions
from cma_tune.data.batches import StoredBatches
from cma_tune.errors import UserError
from cma_tune.learners import Learner, ZeroShot, from_pretrained, save_prompt
from cma_tune.learners.adapted import LoraOptions
from cma_tune.learners.lora import Lora
from cma_tune.train import Recipe, fit

TEMPLATES = ("a photo of a {}.", "{}, drawn")
ALL = ("q", "k", "v", "o", "fc1", "fc2")
ROWS = {"q": 0, "k": 1, "v": 2}
LAYERS = {"o": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}


def backbone(name: str = "three-blocks") -> Backbone:
    """A family's tiny model, or one with three blocks in both towers."""
    return three_blocks() if name == "three-blocks" else tiny_backbone(name)


@cache
def three_blocks() -> Backbone:
    family = Family(text={"layers": 3}, vision={"layers": 3})
    tokenizer = tiny_tokenizer("clip", Path("unused"))
    model = tiny_model(family, tokenizer, Path("unused")).double()
    transform = open_clip.image_transform(32, is_train=False)
    return Backbone(model, tokenizer, transform, "three-blocks")


def images(count: int = len(LABELS), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64)


def make(
    name: str = "three-blocks", moved: bool = True, templates: tuple[str, ...] = TEMPLATES, **options: Any
) -> Lora:
    """A learner; B is moved off its zeros, else A had no gradient and nothing an effect."""
    options = {"dropout": 0.0, **options}
    learner = Lora(backbone(name), CLASS_NAMES, templates, LoraOptions(**options), seed=3)
    for number, parameter in enumerate(learner.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.add_(0.3 * noise.to(parameter), alpha=float(moved))
    return learner


def by_hand(learner: Lora) -> nn.Module:
    """A deep copy of the frozen model with W + (α/√r)·B·A in place of W, differentiable in A and B.

    The fused projection of queries, keys and values is put together from its rows.
    """
    model = copy.deepcopy(learner.backbone.model)
    options, weights = learner.options, dict(learner.named_parameters())
    roots = {"image": "visual.transformer.resblocks", "text": "transformer.resblocks"}
    if not hasattr(model, "transformer"):
        roots["text"] = "text.transformer.resblocks"
    used = set()
    for root in roots.values():
        blocks: Any = model.get_submodule(root)
        for index, block in enumerate(blocks):

            def change(path: str, root: str = root, index: int = index) -> Tensor | float:
                name = f"base_model.model.{root}.{index}.{path}"
                if f"{name}.lora_A.weight" not in weights:
                    return 0.0
                used.update({f"{name}.lora_A.weight", f"{name}.lora_B.weight"})
                product = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
                return product * (options.alpha / options.rank ** (0.5 if options.rslora else 1.0))

            rows = [
                weight + change(f"attn.{letter}_proj")
                for letter, weight in zip("qkv", block.attn.in_proj_weight.chunk(3), strict=True)
            ]
            put(block.attn, "in_proj_weight", torch.cat(rows))
            for path in LAYERS.values():
                layer = block.get_submodule(path)
                put(layer, "weight", layer.weight + change(path))
    assert used == set(weights)
    return model


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """In place of a parameter, a tensor that is made from others."""
    delattr(module, name)
    setattr(module, name, value)


def text_of(learner: Lora, model: Any) -> Tensor:
    """Unit text features ``[C, D]``: open_clip's own."""
    tokenizer: Any = learner.backbone.tokenizer._tokenizer
    several = []
    for template in learner.templates:
        features = model.encode_text(
            tokenizer([template.replace("{}", name) for name in learner.class_names])
        )
        several.append(features / features.norm(dim=1, keepdim=True))
    mean = torch.stack(several).mean(dim=0)
    return mean / mean.norm(dim=1, keepdim=True)


def images_of(model: Any, values: Tensor) -> Tensor:
    """Unit image features ``[B, D]``: open_clip's own."""
    features = torch.as_tensor(model.encode_image(values))
    return features / features.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"matrices": ALL, "rank": 3, "alpha": 2.0},
        {"matrices": ("q", "o"), "layers": (0, 2)},
        {"matrices": ("fc1",), "layers": 1, "towers": "text"},
        {"towers": "image", "layers": 2},
    ],
    ids=str,
)
def test_it_is_the_model_with_merged_weights(options: dict[str, Any], share: bool) -> None:
    learner = make(**options)
    before = backbone().text_options
    backbone().text_options = TextOptions(share_prefix=share)
    try:
        with torch.no_grad():
            model = by_hand(learner)
            text, image = text_of(learner, model), images_of(model, images())
            close(learner.text_features(), text)
            close(learner.encode_images(images()), image)
            close(learner(images()).logits, backbone().scale * image @ text.T, 1e-8)
    finally:
        backbone().text_options = before
    frozen = ZeroShot(backbone(), CLASS_NAMES, TEMPLATES).embeddings
    assert ((text - frozen).abs().max() > 1e-3) == (options.get("towers") != "image")
    changed = (image - backbone().encode_image(images())).abs().max() > 1e-3
    assert changed == (options.get("towers") != "text")


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["custom-text", "coca", "coca-correct-mask", "mobileclip-s", "clip-eos"])
def test_other_families_with_open_clips_blocks(name: str) -> None:
    learner = make(name, matrices=ALL)
    with torch.no_grad():
        model = by_hand(learner)
        close(learner.encode_images(images()), images_of(model, images()))
        close(learner.text_features(), text_of(learner, model))


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"matrices": ALL}, 0.0),
        ({"matrices": ALL}, 0.4),
        ({"towers": "text"}, 0.4),
        ({"towers": "image"}, 0.4),
    ],
    ids=str,
)
def test_a_step_is_that_of_the_merged_model(options: dict[str, Any], weight: float) -> None:
    twin, learner = make(**options), make(**options)
    model = by_hand(twin)
    image, text = images_of(model, images()), text_of(twin, model)
    own = cross_entropy_by_loop(backbone().scale * image @ text.T)
    names, parameters = zip(*twin.named_parameters(), strict=True)
    expected = torch.autograd.grad(mixed(own, image, text, weight), parameters)
    before = {key: value.detach().clone() for key, value in learner.named_parameters()}
    train(learner, epochs=1, weight=weight)
    for key, gradient in zip(names, expected, strict=True):
        # A key's bias, and so its change along it, hardly counts; everything else does.
        assert gradient.abs().max() > 1e-7, key
        close(before[key] - learner.get_parameter(key).detach(), gradient)


def train(learner: Learner, epochs: int, weight: float = 0.0, lr: float = 1.0) -> None:
    """Plain SGD on batches of all images."""
    recipe = Recipe(epochs, lr=lr, warmup_lr=lr, momentum=0.0, weight_decay=0.0, cma_weight=weight)
    fit(learner, StoredBatches(images()[None], LABELS, len(LABELS), 0), recipe, cpu())


def test_the_start_is_the_backbone_itself_and_training_leaves_that_as_it_was() -> None:
    learner = make(moved=False, matrices=ALL, dropout=0.25)
    weights = {key: value.clone() for key, value in backbone().model.state_dict().items()}
    modules = {key: type(module) for key, module in backbone().model.named_modules()}
    with torch.no_grad():
        close(learner.encode_images(images()), backbone().encode_image(images()))
        close(learner.text_features(), ZeroShot(backbone(), CLASS_NAMES, TEMPLATES).embeddings)
    train(learner, epochs=3, lr=0.1)
    with torch.no_grad():
        assert (learner.encode_images(images()) - backbone().encode_image(images())).abs().max() > 1e-3
    assert {key: type(module) for key, module in backbone().model.named_modules()} == modules
    assert all(torch.equal(weights[key], value) for key, value in backbone().model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone().parameters())
    # It takes no more memory than A and B.
    frozen = {parameter.untyped_storage().data_ptr() for parameter in backbone().parameters()}
    twin = learner._adapted.backbone.model.parameters()
    own = {id(parameter) for parameter in twin if parameter.untyped_storage().data_ptr() not in frozen}
    assert own == {id(parameter) for parameter in learner.parameters()}


def test_seeds_make_the_start() -> None:
    def start(seed: int) -> Tensor:
        learner = Lora(backbone(), CLASS_NAMES, TEMPLATES, LoraOptions(), seed)
        return torch.cat([parameter.detach().flatten() for parameter in learner.parameters()])

    state = torch.get_rng_state()
    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["three-blocks", "coca", "mobileclip-s"])
def test_neither_chunks_nor_packing_change_dropout(name: str) -> None:
    learner = make(name, matrices=ALL, dropout=0.4)
    learner.train()
    learner.start_step(7)

    def gradients(options: TextOptions) -> list[Tensor]:
        before = learner.backbone.text_options
        learner.backbone.text_options = options
        try:
            text = learner.text_features()
            loss = (text * torch.linspace(-1, 1, text.numel()).view_as(text)).sum()
            parameters = [p for key, p in learner.named_parameters() if "visual" not in key]
            return [text.detach(), *torch.autograd.grad(loss, parameters)]
        finally:
            learner.backbone.text_options = before

    whole = gradients(TextOptions())
    for options in (TextOptions(chunk=2), TextOptions(share_prefix=False), TextOptions(False, chunk=2)):
        for value, expected in zip(gradients(options), whole, strict=True):
            close(value, expected, 1e-9)
    learner.start_step(8)
    assert (learner.text_features() - whole[0]).abs().max() > 1e-3
    learner.start_step(7)
    assert torch.equal(learner.text_features(), whole[0])
    learner.eval()
    assert (learner.text_features() - whole[0]).abs().max() > 1e-3


def test_dropout_of_images_is_that_of_their_place() -> None:
    learner = make(dropout=0.4, towers="image")
    learner.train()
    whole = learner.encode_images(images())
    close(learner.encode_images(images())[:3], whole[:3])
    close(learner.encode_images(images()[:3]), whole[:3])
    assert (learner.encode_images(images()[1:]) - whole[1:]).abs().max() > 1e-3
    assert learner.encode_images(images()[:0]).shape == (0, whole.shape[1])
    with torch.no_grad():
        close(learner.encode_images(images()), whole)


def test_files_are_pefts_and_give_it_back(tmp_path: Path) -> None:
    learner = make(matrices=("q", "v", "fc2"), layers=(1, 2), rank=3, alpha=2.0, dropout=0.25)
    save_prompt(learner, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "card.json")
    }
    again = from_pretrained(tmp_path, backbone())
    assert isinstance(again, Lora) and again.options == learner.options
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with torch.no_grad():
        ours, theirs = again(images()), learner(images())
        for name in ("logits", "image_features", "text_features"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
    other = again.for_classes(["forest", "cat"])
    close(other.text_features()[1], again.text_features()[0])
    assert all(p is q for p, q in zip(other.parameters(), again.parameters(), strict=True))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="got others or a damaged file; save the prompt again"):
        from_pretrained(tmp_path, backbone())


@pytest.mark.parametrize("towers", ["both", "text", "image"])
def test_peft_loads_it_into_open_clips_model(towers: str, tmp_path: Path) -> None:
    learner = make(towers=towers, matrices=ALL, layers=2, dropout=0.25)
    save_prompt(learner, tmp_path)
    model: Any = split_attention(copy.deepcopy(backbone().model))
    loaded: Any = peft.PeftModel.from_pretrained(model, str(tmp_path))
    ours = learner.state_dict()
    theirs = peft.get_peft_model_state_dict(loaded)
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    with torch.no_grad():
        close(text_of(learner, loaded), learner.text_features())
        close(images_of(loaded, images()), learner.encode_images(images()))
        merged = loaded.merge_and_unload()
        close(images_of(merged, images()), learner.encode_images(images()))


def test_what_is_saved_by_peft_itself_is_the_same(tmp_path: Path) -> None:
    learner = make()
    save_prompt(learner, tmp_path / "ours")
    model: Any = split_attention(copy.deepcopy(backbone().model))
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "ours"))
    loaded.save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")
    )
    different = {key for key in theirs if theirs[key] != ours.get(key)}
    assert different <= {"auto_mapping", "base_model_name_or_path"}
    assert ours["inference_mode"] is True and ours["r"] == 2 and ours["lora_alpha"] == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "clip-resnet",
            {},
            "an image tower made of plain .* 'clip-resnet', got ModifiedResNet; use --lora.to",
        ),
        ("clip-resnet", {"towers": "image"}, "got ModifiedResNet; use another backbone"),
        ("custom-text-timm", {}, "got TimmModel; use --lora.towers text"),
        ("custom-blocks", {}, "a text tower made of plain .* got TextTransformer; use another backbone"),
        ("hf-roberta-mean", {"towers": "text"}, "got HFTextEncoder; use another backbone"),
        ("three-blocks", {"layers": (0, 3)}, "the 3 blocks .from 0. of the image tower .* got 0, 3; choose"),
        ("three-blocks", {"layers": 4, "towers": "text"}, "of the text tower .* got the last 4; choose"),
        ("three-blocks", {"matrices": ("q", "x")}, "out of q, k, v, o, fc1, fc2 for LoRA, got 'x'"),
    ],
)
def test_what_can_not_be_adapted_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **options)


def test_a_text_tower_beside_a_resnet_can_be_adapted() -> None:
    learner = make("clip-resnet", towers="text")
    assert not learner.trains_images and Lora.trains_images
    assert torch.equal(learner.encode_images(images()), learner.backbone.encode_image(images()))
    with torch.no_grad():
        frozen = ZeroShot(learner.backbone, CLASS_NAMES, TEMPLATES).embeddings
        assert (learner.text_features() - frozen).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip"])
@pytest.mark.parametrize("share", [True, False])
def test_transformers_own_projections_are_adapted_and_loaded_by_peft(
    name: str, share: bool, tmp_path: Path
) -> None:
    learner = make(name, templates=("a photo of a {}.",), matrices=ALL, layers=1, rank=3)
    merged: Any = copy.deepcopy(learner.backbone.model)
    weights = learner.state_dict()
    names = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "mlp.fc1",
        "mlp.fc2",
    )
    last = ("text_model.encoder.layers.1", "vision_model.encoder.layers.1")
    paths = [f"{layer}.{own}" for layer in last for own in names]
    keys = {path: [f"base_model.model.{path}.lora_{letter}.weight" for letter in "BA"] for path in paths}
    assert weights.keys() == {key for pair in keys.values() for key in pair}
    for path, (b, a) in keys.items():
        merged.get_submodule(path).weight.data.add_(weights[b] @ weights[a] / 3**0.5)
    save_prompt(learner, tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(learner.backbone.model), str(tmp_path))
    ids = learner.backbone.tokenizer.tokenize([f"a photo of a {name}." for name in CLASS_NAMES])
    before = learner.backbone.text_options
    learner.backbone.text_options = TextOptions(share_prefix=share)
    try:
        with torch.no_grad():
            for model in (merged, loaded):
                close(learner.text_features(), unit(model.get_text_features(input_ids=ids)))
                close(learner.encode_images(images()), unit(model.get_image_features(images())))
    finally:
        learner.backbone.text_options = before


def unit(features: Any) -> Tensor:
    """At unit length; transformers 5 gives an object, transformers 4 the features."""
    values = torch.as_tensor(getattr(features, "pooler_output", features))
    return values / values.norm(dim=1, keepdim=True)


def test_a_card_from_before_there_was_a_choice_keeps_its_scale() -> None:
    learner = make("clip-vit", rslora=False)
    card = learner.describe()
    assert Lora.from_card(backbone("clip-vit"), CLASS_NAMES, card, {}).options == learner.options
    del card["options"]["rslora"]
    assert Lora.from_card(backbone("clip-vit"), CLASS_NAMES, card, {}).options == learner.options
