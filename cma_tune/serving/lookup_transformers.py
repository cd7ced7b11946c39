"""A standard transformers image-text model whose text tower is a table of the learned classes.

As `lookup_model` makes one of open_clip's parts: a context of one token, a block that passes on what comes
in, and an embedding that LayerNorm leaves as it is but for a known factor, which the projection takes back.
So ``AutoModel`` loads the folder, and its ``get_text_features`` of the class names are the learned features.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone, Preprocessing
from cma_tune.clip.sources import quiet_transformers
from cma_tune.clip.transformers_text import features_of
from cma_tune.errors import UserError
from cma_tune.files import write_json
from cma_tune.learners.base import Learner
from cma_tune.serving.lookup_table import lookup_table

CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
FILES = (CONFIG, WEIGHTS, PROCESSOR)
_RESAMPLE = {"bilinear": 2, "bicubic": 3}


def write_weights(learner: Learner, rows: Tensor, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Args:
        learner: its image side goes with the weights.
        rows: unit class embeddings ``[C, D]``.
        folder: where to.

    Raises:
        UserError: the model has other parts than CLIP's or SigLIP's.
    """
    backbone = learner.backbone
    own: Any = backbone.model
    with quiet_transformers():
        model = type(own)(_config(own, *rows.shape))
    _fill_image_side(model, learner)
    with torch.no_grad():
        _fill_text_side(model, rows, backbone)
    with quiet_transformers():
        model.save_pretrained(folder)
    write_json(folder / PROCESSOR, processor_settings(backbone.preprocessing))


def text_features(folder: Path, classes: int, device: torch.device) -> tuple[Any, Tensor]:
    """The model of a folder that `write_weights` filled, and its unit class embeddings ``[C, D]``."""
    import transformers

    with quiet_transformers():
        model: Any = transformers.AutoModel.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True
        )
    model = model.to(device).eval()
    ids = torch.arange(classes, device=device)[:, None]
    return model, unit_features(model.get_text_features(input_ids=ids))


def unit_features(output: Any) -> Tensor:
    """The features ``[N, D]`` in what transformers gives, at unit length."""
    return nn.functional.normalize(features_of(output), dim=-1)


def _config(model: Any, classes: int, features: int) -> Any:
    """The model's own, with a text tower of one token and a block of width 2·D."""
    config = copy.deepcopy(model.config)
    text = config.text_config
    changes: dict[str, Any] = {
        "vocab_size": classes + 1,
        "max_position_embeddings": 1,
        "hidden_size": 2 * features,
        "intermediate_size": 1,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "bos_token_id": classes,
        "eos_token_id": classes,
        "pad_token_id": classes,
    }
    if hasattr(text, "projection_size"):
        changes["projection_size"] = features
    for name, value in changes.items():
        setattr(text, name, value)
    return config


def _fill_image_side(model: Any, learner: Learner) -> None:
    """All weights but the text tower's, with what was learned on the image side in them."""
    state = {
        name: value
        for name, value in learner.model_state().items()
        if not name.startswith(("text_model.", "text_projection."))
    }
    model.load_state_dict(state, strict=False)


def _fill_text_side(model: Any, rows: Tensor, backbone: Backbone) -> None:
    text = model.text_model
    projection = getattr(model, "text_projection", None)
    projection = getattr(text, "head", None) if projection is None else projection
    if projection is None or not hasattr(text, "final_layer_norm"):
        raise UserError(
            f"Expected a model of CLIP's or SigLIP's kind for --to model, got {type(model).__name__} in "
            f"'{backbone.name}'; export it with --to classifier or onnx."
        )
    for name, parameter in text.encoder.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    norm = text.final_layer_norm
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    embedding, back = lookup_table(rows, norm.eps)
    text.embeddings.token_embedding.weight.copy_(embedding)
    text.embeddings.position_embedding.weight.zero_()
    projection.weight.copy_(back)
    if projection.bias is not None:
        projection.bias.zero_()
    model.logit_scale.fill_(float(backbone.scale.log()))


def processor_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """The settings of transformers' image processor that do the same."""
    height, width = preprocessing.size
    whole = {"height": height, "width": width}
    squash = preprocessing.resize_mode == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": whole if squash else {"shortest_edge": min(height, width)},
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_center_crop": not squash,
        "crop_size": whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
