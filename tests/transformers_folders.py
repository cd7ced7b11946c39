"""Folders as transformers saves its image-text models, and one CLIP in both libraries' forms."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from families import FAMILIES, IMAGE_SIZE, tiny_model
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from tiny_tokenizers import CONTEXT_LENGTH, tiny_plain_tokenizer
from torch import Tensor, nn

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]

WIDTH, FEATURES = 16, 12

PROCESSORS: dict[str, Any] = {
    "clip": transformers.CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=MEAN,
        image_std=STD,
    ),
    "siglip": transformers.SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=2, image_mean=MEAN, image_std=STD
    ),
}


def write_family(folder: Path, family: str = "transformers-clip") -> Path:
    """The tiny model of a family with its tokenizer and image processor, by transformers' own saving."""
    kind = FAMILIES[family]
    tokenizer = tiny_plain_tokenizer(kind.tokenizer)
    model: Any = tiny_model(kind, tokenizer, folder)
    model.save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    PROCESSORS["siglip" if "siglip" in family else "clip"].save_pretrained(folder)
    return folder


def write_pair(folder: Path) -> tuple[str, str]:
    """One random CLIP of OpenAI's form, saved for open_clip and for transformers: both backbones' names."""
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8, "width": WIDTH, "layers": 2, "head_width": 8}
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 3}
    config = {"embed_dim": FEATURES, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIP(FEATURES, vision, text, quick_gelu=True)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.2 * torch.randn_like(tensor))
    ours, theirs = folder / "open_clip", folder / "transformers"
    ours.mkdir()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, ours / "open_clip_model.safetensors")
    preprocessing = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (ours / "open_clip_config.json").write_text(json.dumps(content))
    converted(state).save_pretrained(theirs)
    clip_tokenizer().save_pretrained(theirs)
    PROCESSORS["clip"].save_pretrained(theirs)
    return f"local-dir:{ours}", f"transformers-dir:{theirs}"


def clip_tokenizer() -> Any:
    """transformers' CLIP tokenizer over the vocabulary that ships with open_clip."""
    words = SimpleTokenizer()
    merges = [pair for pair, _ in sorted(words.bpe_ranks.items(), key=lambda entry: entry[1])]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in words.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


def give_siglips_tokenizer(folder: Path) -> Any:
    """SigLIP's own tokenizer, over word pieces learned from two sentences, instead of the folder's."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    sentences = [
        "a photo of a cat a photo of a dog striped red triangle drawn on a blue ground",
        "x x forest",
    ]
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=pieces,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=CONTEXT_LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def converted(state: dict[str, Tensor]) -> Any:
    """`CLIPModel` with an open_clip state's weights, every one of them written."""
    common: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2}
    common["hidden_act"] = "quick_gelu"
    text = {**common, "vocab_size": 49408, "max_position_embeddings": CONTEXT_LENGTH, "num_hidden_layers": 3}
    vision = {**common, "image_size": IMAGE_SIZE, "patch_size": 8, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=FEATURES)
    model: Any = transformers.CLIPModel(config)
    given = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
    }
    for part in ("weight", "bias"):
        given[f"text_model.final_layer_norm.{part}"] = state[f"ln_final.{part}"]
        given[f"vision_model.pre_layrnorm.{part}"] = state[f"visual.ln_pre.{part}"]
        given[f"vision_model.post_layernorm.{part}"] = state[f"visual.ln_post.{part}"]
    for tower, prefix, layers in (("text_model", "", 3), ("vision_model", "visual.", 2)):
        for number in range(layers):
            block = f"{prefix}transformer.resblocks.{number}."
            given |= _layer(f"{tower}.encoder.layers.{number}.", block, state)
    model.load_state_dict(given, strict=True)
    return model


def _layer(to: str, block: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    given: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        given |= {f"{to}{own}.{part}": state[f"{block}{other}.{part}"] for own, other in names.items()}
        thirds = state[f"{block}attn.in_proj_{part}"].chunk(3)
        for projection, value in zip("qkv", thirds, strict=True):
            given[f"{to}self_attn.{projection}_proj.{part}"] = value
    return given


def unit(features: Tensor) -> Tensor:
    """Scaled to unit length."""
    return nn.functional.normalize(features, dim=-1)
