"""One tiny randomly initialised model of every family of text towers, without a download."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.transform import image_transform_v2
from tiny_tokenizers import CONTEXT_LENGTH, TOKENIZER_OPTIONS, tiny_plain_tokenizer, tiny_tokenizer
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone, Preprocessing

IMAGE_SIZE = 32
WIDTH = 16
FEATURES = 12

CLASS_NAMES = ("cat", "striped red triangle", "blue dog", "F-16A/B", "forest")
"""Ragged on purpose: one word, several, and punctuation."""

TEXTS = ("a photo of a cat.", "a", "a photo of a striped red triangle, drawn on a blue ground.", "dog!?")

PREPROCESSING: dict[str, Any] = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


@dataclass(frozen=True)
class Family:
    """How one family's model is made and what holds for it.

    Attributes:
        model: kind of open_clip model: clip, custom or coca; or transformers.
        text: entries of its text config beside the common ones.
        vision: entries of its vision config.
        tokenizer: which of the tokenizers below it reads with.
        settings: attributes set on the text tower, where open_clip's config has no entry for them.
        encoder: config of a transformers encoder, where the text tower is one, or of the whole model where
            that is transformers' own.
        truncates: tokens after the last that counts are cut.
        exact: agreement with the model's own features in float64; some encoders compute in float32 inside.
    """

    model: str = "clip"
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "clip"
    settings: dict[str, Any] = field(default_factory=dict)
    encoder: Callable[[int], Any] | None = None
    truncates: bool = True
    exact: float = 1e-12


def _roberta(vocabulary: int) -> Any:
    return transformers.RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=CONTEXT_LENGTH + 8,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def _bert(vocabulary: int) -> Any:
    return transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=CONTEXT_LENGTH,
        pad_token_id=0,
    )


def _mt5(vocabulary: int) -> Any:
    return transformers.MT5Config(
        vocab_size=vocabulary, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2
    )


def _nllb(vocabulary: int) -> Any:
    return transformers.M2M100Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        max_position_embeddings=CONTEXT_LENGTH + 8,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        scale_embedding=True,
    )


def _both_towers(vocabulary: int, **text: Any) -> dict[str, Any]:
    """Settings of transformers' image-text models."""
    common = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2}
    words = {"vocab_size": vocabulary, "max_position_embeddings": CONTEXT_LENGTH}
    return {
        "text_config": {**common, **words, "num_hidden_layers": 2, **text},
        "vision_config": {**common, "image_size": IMAGE_SIZE, "patch_size": 16, "num_hidden_layers": 2},
    }


def _clip(vocabulary: int) -> Any:
    # The end's id as OpenAI's own files on the Hub give it: wrong, and a sign to take the highest.
    settings = _both_towers(vocabulary, eos_token_id=2, hidden_act="quick_gelu")
    return transformers.CLIPConfig(**settings, projection_dim=FEATURES)


def _clip_eos(vocabulary: int) -> Any:
    settings = _both_towers(vocabulary, eos_token_id=vocabulary - 1, hidden_act="gelu")
    return transformers.CLIPConfig(**settings, projection_dim=FEATURES)


def _metaclip_2(vocabulary: int) -> Any:
    settings = _both_towers(vocabulary, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    return transformers.MetaClip2Config(**settings, projection_dim=FEATURES)


def _siglip(vocabulary: int) -> Any:
    settings = _both_towers(vocabulary, projection_size=FEATURES)
    # SigLIP's image features are as wide as its tower.
    return transformers.SiglipConfig(
        text_config=settings["text_config"],
        vision_config={**settings["vision_config"], "hidden_size": FEATURES},
    )


_BIDIRECTIONAL = {"no_causal_mask": True, "pool_type": "last"}
_COCA_TEXT = {"embed_cls": True, "output_tokens": True}
_COCA_VISION = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}

FAMILIES: dict[str, Family] = {
    "clip-vit": Family(),
    "clip-resnet": Family(vision={"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}),
    "clip-eos": Family(text={"pool_type": "eos", "eos_id": 2}, tokenizer="roberta"),
    "custom-text": Family("custom", text={"ls_init_value": 0.5}),
    "custom-text-timm": Family("custom", vision={"timm_model_name": "test_resnet", "timm_pool": "avg"}),
    "custom-blocks": Family("custom", text={"qk_norm": True, "scale_attn": True, "scale_fc": True}),
    "coca": Family("coca", _COCA_TEXT, _COCA_VISION),
    "coca-correct-mask": Family("coca", _COCA_TEXT, _COCA_VISION, settings={"correct_cls_mask": True}),
    "coca-custom-blocks": Family("coca", {**_COCA_TEXT, "qk_norm": True}, _COCA_VISION),
    "mobileclip-s": Family("custom", text={"no_causal_mask": True}, truncates=False),
    "pad-masked": Family(
        "custom", {"no_causal_mask": True}, settings={"use_pad_mask": True}, truncates=False
    ),
    "siglip": Family("custom", {**_BIDIRECTIONAL, "proj_bias": True}, tokenizer="siglip", truncates=False),
    "siglip2": Family("custom", {**_BIDIRECTIONAL, "proj_bias": True}, tokenizer="siglip2", truncates=False),
    "siglip-no-projection": Family(
        "custom",
        {**_BIDIRECTIONAL, "proj_type": "none", "width": FEATURES},
        tokenizer="siglip",
        truncates=False,
    ),
    "first-pooled": Family("custom", {"no_causal_mask": True, "pool_type": "first"}, truncates=False),
    "clipa": Family("clip", _BIDIRECTIONAL, tokenizer="clipa", truncates=False),
    "clips": Family("custom", _BIDIRECTIONAL, tokenizer="clips", truncates=False),
    "hf-roberta-mean": Family("custom", {"hf_pooler_type": "mean_pooler"}, {}, "roberta", {}, _roberta),
    "hf-roberta-coca": Family(
        "coca", {"hf_proj_type": "linear", "output_tokens": True}, _COCA_VISION, "roberta", {}, _roberta
    ),
    "hf-bert-cls": Family("custom", {"hf_pooler_type": "cls_pooler"}, {}, "bert", {}, _bert),
    "hf-bert-last-hidden": Family(
        "custom", {"hf_pooler_type": "cls_last_hidden_state_pooler"}, {}, "bert", {}, _bert
    ),
    # T5's norm and softmax are computed in float32 whatever the weights are.
    "hf-mt5-mean": Family("custom", {"hf_pooler_type": "mean_pooler"}, {}, "siglip2", {}, _mt5, exact=1e-6),
    "hf-nllb-cls": Family(
        "custom", {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}, {}, "nllb", {}, _nllb
    ),
    "transformers-clip": Family("transformers", tokenizer="hf-clip", encoder=_clip),
    "transformers-clip-eos": Family("transformers", tokenizer="hf-clip", encoder=_clip_eos),
    "transformers-metaclip2": Family("transformers", tokenizer="roberta", encoder=_metaclip_2),
    "transformers-siglip": Family("transformers", tokenizer="siglip", encoder=_siglip, truncates=False),
    "transformers-siglip2": Family("transformers", tokenizer="siglip2", encoder=_siglip, truncates=False),
}


def text_config(family: Family, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The text part of the model's config; a transformers encoder's own goes into `folder`."""
    vocabulary = tokenizer.vocab_size if family.tokenizer == "clip" else len(tokenizer.tokenizer)
    common: dict[str, Any] = {"context_length": CONTEXT_LENGTH}
    if family.tokenizer != "clip":
        options = dict(TOKENIZER_OPTIONS.get(family.tokenizer, {}))
        common["hf_tokenizer_name"] = str(folder)
        common["tokenizer_mode"] = options.pop("tokenizer_mode", None)
        common["tokenizer_kwargs"] = options
    if family.encoder is not None:
        family.encoder(vocabulary).save_pretrained(folder)
        return {**common, "hf_model_name": str(folder), "hf_model_pretrained": False, **family.text}
    return {**common, "vocab_size": vocabulary, "heads": 2, "layers": 2, "width": WIDTH, **family.text}


def model_config(family: Family, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The model's config as open_clip takes it."""
    vision = {"image_size": IMAGE_SIZE, "patch_size": 16, "width": WIDTH, "layers": 1, "head_width": 8}
    config: dict[str, Any] = {
        "embed_dim": FEATURES,
        "vision_cfg": {**vision, **family.vision},
        "text_cfg": text_config(family, tokenizer, folder),
    }
    if family.model == "coca":
        decoder = {"context_length": CONTEXT_LENGTH, "width": WIDTH, "heads": 2, "layers": 1}
        config["multimodal_cfg"] = decoder
    return config


def tiny_model(family: Family, tokenizer: Any, folder: Path) -> nn.Module:
    """The family's model, every parameter moved off its start so that nothing is zero, one or the same."""
    kinds: dict[str, Any] = {"clip": CLIP, "custom": CustomTextCLIP, "coca": CoCa}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module
        if family.model == "transformers":
            assert family.encoder is not None
            model = transformers.AutoModel.from_config(family.encoder(len(tokenizer.tokenizer)))
        else:
            model = kinds[family.model](**model_config(family, tokenizer, folder))
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.2 * torch.randn_like(tensor))
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(0.2 * torch.randn_like(buffer))
            logit_scale: Any = model.logit_scale
            logit_scale.fill_(2.0)
    for name, value in family.settings.items():
        text: Any = model.text
        setattr(text, name, value)
    if family.model != "transformers":
        set_model_preprocess_cfg(model, PREPROCESSING)
    return model


@cache
def _parts(name: str) -> tuple[nn.Module, Any]:
    family = FAMILIES[name]
    if family.model == "transformers":
        plain = tiny_plain_tokenizer(family.tokenizer)
        return tiny_model(family, plain, Path()), plain
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = tiny_tokenizer(family.tokenizer, Path(temporary))
        return tiny_model(family, tokenizer, Path(temporary)), tokenizer


@cache
def tiny_backbone(name: str, dtype: torch.dtype = torch.float64) -> Backbone:
    """The tiny backbone of a family; one object for all tests, since it is frozen."""
    model, tokenizer = _parts(name)
    transform = image_transform_v2(open_clip.transform.PreprocessCfg(**PREPROCESSING), is_train=False)
    return Backbone(
        copy.deepcopy(model).to(dtype), tokenizer, transform, name, preprocessing=preprocessing(name)
    )


def preprocessing(name: str) -> Preprocessing | None:
    """What a transformers model can't say of itself."""
    if FAMILIES[name].model != "transformers":
        return None
    mean, std = PREPROCESSING["mean"], PREPROCESSING["std"]
    return Preprocessing((IMAGE_SIZE, IMAGE_SIZE), mean, std, "bicubic", "shortest")


def token_table(model: Any) -> nn.Module:
    """The model's module that looks token ids up."""
    if hasattr(model, "text_model"):
        table: nn.Module = model.text_model.embeddings.token_embedding
        return table
    text = getattr(model, "text", model)
    if hasattr(text, "token_embedding"):
        table = text.token_embedding
    else:
        table = text.transformer.get_input_embeddings()
    return table


def own_image_features(backbone: Backbone, images: Tensor) -> Tensor:
    """The model's own image features ``[B, D]``, of unit length."""
    model: Any = backbone.model
    if hasattr(model, "get_image_features"):
        features = model.get_image_features(pixel_values=images).pooler_output
        return torch.as_tensor(features / features.norm(dim=-1, keepdim=True)).detach()
    return torch.as_tensor(model.encode_image(images, normalize=True)).detach()


def own_text_features(backbone: Backbone, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
    """The model's own text features ``[N, D]`` of full-length `ids`, not normalised.

    With `embeddings` ``[N, L, W]``, the model's token embedding gives those instead: its whole forward from
    embeddings of our choice, with none of the code under test.
    """
    model: Any = backbone.model
    # A hook that gives None changes nothing.
    hook = token_table(model).register_forward_hook(lambda *_: embeddings)
    try:
        if hasattr(model, "get_text_features"):
            return torch.as_tensor(model.get_text_features(input_ids=ids).pooler_output)
        return torch.as_tensor(model.encode_text(ids, normalize=False))
    finally:
        hook.remove()


def reference_embeddings(backbone: Backbone, ids: Tensor) -> Tensor:
    """The model's token embeddings ``[N, L, W]``, looked up by its own module."""
    return torch.as_tensor(token_table(backbone.model)(ids)).detach()
