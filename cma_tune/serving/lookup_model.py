"""A standard model whose text tower is a table of the learned classes, of open_clip or transformers.

What a method has learned for its classes can't be put into the text tower's own weights: the context stands
in no vocabulary. But a tower is also what maps ids to features, and one whose vocabulary is the class names
is a table of their learned features. It is made of open_clip's own parts: a context of one token, a block
whose weights are zero, so that it passes on what comes in, and an embedding that LayerNorm leaves as it is
but for a known factor, which the projection takes back. Its tokenizer knows the class names and refuses other
texts. So the folder loads with open_clip alone, and `model.encode_text(tokenizer(class_names))` are the
learned features.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.sources import EMBEDDED, quiet
from cma_tune.clip.transformers_text import is_transformers_model
from cma_tune.errors import UserError
from cma_tune.files import write_json, write_text
from cma_tune.learners.base import Learner
from cma_tune.serving import lookup_transformers
from cma_tune.serving.classifier import check_mergeable, linear_rows
from cma_tune.serving.description import FILE, Description, describe
from cma_tune.serving.lookup_table import lookup_table

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PADDING = "<no class>"
"""A token that stands for no class and has no features; tokenizers want one."""


def write_model(learner: Learner, folder: Path, learned: Mapping[str, Any]) -> Description:
    """Write a folder of the backbone's library: config, weights, tokenizer, and ``classifier.json``.

    Raises:
        UserError: the method's logits are no cosines, or it has prompts in the image tower; the backbone is
            of a kind without such a model; or two class names read the same.
    """
    check_mergeable(type(learner), learner.trains_images)
    backbone = learner.backbone
    rows = linear_rows(learner)
    if not torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-4):
        raise UserError(
            f"Expected a method whose logits are cosines, got '{learner.name}', whose rows have lengths of "
            "their own that such a model leaves out; export it with --to classifier or onnx."
        )
    names = _cleaned(learner.class_names)
    if is_transformers_model(backbone.model):
        lookup_transformers.write_weights(learner, rows, folder)
    else:
        config = {
            "model_cfg": _model_config(backbone, *rows.shape),
            "preprocess_cfg": _preprocessing(backbone),
        }
        write_json(folder / CONFIG, config)
        (folder / WEIGHTS).write_bytes(save(_weights(learner, rows), {"format": "pt"}))
    _write_tokenizer(names, folder)
    description = describe(learner, "model", learned)
    write_json(folder / FILE, description.content())
    _check(learner, folder)
    return description


def _model_config(backbone: Backbone, classes: int, features: int) -> dict[str, Any]:
    import open_clip

    source = backbone.name
    if source == EMBEDDED:
        from cma_tune.data.builtin import SMALL_CLIP_DIR

        source = f"local-dir:{SMALL_CLIP_DIR}"
    config = open_clip.get_model_config(source)
    if config is None:
        raise UserError(
            f"Expected a backbone of open_clip or transformers for --to model, got '{backbone.name}'; "
            "export it with --to classifier or onnx."
        )
    vision = copy.deepcopy(config["vision_cfg"])
    vision.pop("output_tokens", None)  # the tokens are for CoCa's captions
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    text = {
        "context_length": 1,
        "vocab_size": classes + 1,
        "width": 2 * features,
        "heads": 1,
        "layers": 1,
        "mlp_ratio": 1 / (2 * features),
        "hf_tokenizer_name": ".",  # in a local folder, open_clip reads the tokenizer from there
    }
    entries = {name: config[name] for name in ("quick_gelu",) if name in config}
    return {"embed_dim": features, **entries, "vision_cfg": vision, "text_cfg": text}


def _preprocessing(backbone: Backbone) -> dict[str, Any]:
    wanted = backbone.preprocessing
    return {
        "size": list(wanted.size),
        "mean": list(wanted.mean),
        "std": list(wanted.std),
        "interpolation": wanted.interpolation,
        "resize_mode": wanted.resize_mode,
    }


def _weights(learner: Learner, rows: Tensor) -> dict[str, Tensor]:
    """The image tower as the learner has it, and a text tower that looks `rows` ``[C, D]`` up."""
    width = 2 * rows.shape[1]
    block = {
        "ln_1.weight": torch.ones(width),
        "ln_1.bias": torch.zeros(width),
        "attn.in_proj_weight": torch.zeros(3 * width, width),
        "attn.in_proj_bias": torch.zeros(3 * width),
        "attn.out_proj.weight": torch.zeros(width, width),
        "attn.out_proj.bias": torch.zeros(width),
        "ln_2.weight": torch.ones(width),
        "ln_2.bias": torch.zeros(width),
        "mlp.c_fc.weight": torch.zeros(1, width),
        "mlp.c_fc.bias": torch.zeros(1),
        "mlp.c_proj.weight": torch.zeros(width, 1),
        "mlp.c_proj.bias": torch.zeros(width),
    }
    embedding, back = lookup_table(rows, nn.LayerNorm(width).eps)
    text = {
        "token_embedding.weight": embedding,
        "positional_embedding": torch.zeros(1, width),
        **{f"transformer.resblocks.0.{name}": value for name, value in block.items()},
        "ln_final.weight": torch.ones(width),
        "ln_final.bias": torch.zeros(width),
        "text_projection": back.T.contiguous(),
    }
    visual = {
        name: value.detach().float().cpu().contiguous() if value.is_floating_point() else value.cpu()
        for name, value in learner.model_state().items()
        if name.startswith("visual.")
    }
    return {**visual, **text, "logit_scale": learner.backbone.scale.log().cpu()}


def _cleaned(class_names: tuple[str, ...]) -> list[str]:
    """The names as open_clip's tokenizers hand texts on."""
    from open_clip.tokenizer import get_clean_fn

    clean = get_clean_fn("whitespace")
    names = [str(clean(name)) for name in class_names]
    twice = sorted({name for name in names if names.count(name) > 1 or name == PADDING})
    if twice:
        raise UserError(
            f"Expected class names that differ for --to model, got '{twice[0]}' more than once; "
            "tell them apart, or export with --to classifier or onnx."
        )
    return names


def _write_tokenizer(names: list[str], folder: Path) -> None:
    """A tokenizer whose every word is a whole class name. It has no unknown word, so other texts fail."""
    from tokenizers import Tokenizer, models

    vocabulary = {name: number for number, name in enumerate([*names, PADDING])}
    write_text(folder / "tokenizer.json", Tokenizer(models.WordLevel(vocabulary)).to_str(pretty=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PADDING, "model_max_length": 1}
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def _check(learner: Learner, folder: Path) -> None:
    """Nothing leaves that does not give the same logits: the families are many."""
    backbone = learner.backbone
    logits = model_logits(folder, len(learner.class_names), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *backbone.preprocessing.size, generator=generator)
    expected = learner(learner.encode_images(images.to(backbone.device))).logits.cpu()
    if not torch.allclose(logits(images), expected, rtol=1e-3, atol=1e-3):
        other = "onnx" if learner.trains_images else "classifier or onnx"
        raise UserError(
            f"Expected a model with the logits of '{learner.name}' on '{backbone.name}', but they differ; "
            f"export it with --to {other}."
        )


def model_logits(folder: Path, classes: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What the model of a folder makes of images ``[B, 3, H, W]``: logits ``[B, C]`` on the CPU."""
    if (folder / lookup_transformers.CONFIG).is_file():
        own, rows = lookup_transformers.text_features(folder, classes, device)

        def by_transformers(images: Tensor) -> Tensor:
            features = lookup_transformers.unit_features(
                own.get_image_features(pixel_values=images.to(device))
            )
            return torch.as_tensor(own.logit_scale.exp() * features @ rows.T).cpu()

        return by_transformers
    import open_clip

    with quiet():
        model, _ = open_clip.create_model_from_pretrained(
            f"local-dir:{folder}", device=device, weights_only=True
        )
    model.eval()  # open_clip leaves it in training mode, where batch norms go by the batch
    text = model.encode_text(torch.arange(classes, device=device)[:, None], normalize=True)

    def by_open_clip(images: Tensor) -> Tensor:
        features = model.encode_image(images.to(device), normalize=True)
        return torch.as_tensor(model.logit_scale.exp() * features @ text.T).cpu()

    return by_open_clip
