"""A learned prompt as files: ``prompt.safetensors`` and a JSON card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.errors import UserError
from cma_tune.files import read_json, write_atomically, write_json
from cma_tune.learners.cocoop import CoCoOp
from cma_tune.learners.coop import ContextLearner, ContextOptions, CoOp

WEIGHTS, CARD, FORMAT = "prompt.safetensors", "card.json", 1
LEARNERS: dict[str, type[CoOp] | type[CoCoOp]] = {learner.name: learner for learner in (CoOp, CoCoOp)}

log = logging.getLogger(__name__)


def save_prompt(learner: ContextLearner, folder: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
    """Write what `learner` has learned.

    Args:
        learner: a CoOp or CoCoOp learner.
        folder: made if it is missing.
        provenance: more entries of the card (split digest, seed, figures); must be JSON.
    """
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in learner.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda temporary: save_file(tensors, str(temporary)))
    card = {
        "format": FORMAT,
        "learner": learner.name,
        "backbone": learner.backbone.describe(),
        "context": {**asdict(learner.options), "shape": list(learner.context.shape)},
        "class_names": list(learner.class_names),
        **(provenance or {}),
    }
    write_json(folder / CARD, card)


def read_card(folder: Path | str) -> dict[str, Any]:
    """The card of a saved prompt.

    Raises:
        UserError: there is none, or it is of another format.
    """
    path = Path(folder) / CARD
    card = read_json(path, "the card of a learned prompt")
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("learner") not in LEARNERS:
        raise UserError(f"Expected a prompt card of format {FORMAT} at {path}, got something else; save the prompt again.")
    return card


def from_pretrained(
    folder: Path | str, backbone: Backbone | None = None, device: torch.device | str = "cpu"
) -> CoOp | CoCoOp:
    """Load a learned prompt, with its backbone if none is given.

    Raises:
        UserError: files are missing or don't fit, or the backbone's weights are not those it was learned on.
    """
    folder = Path(folder)
    card = read_card(folder)
    wanted = card["backbone"]
    if backbone is None:
        backbone = load_backbone(wanted["name"], wanted["pretrained"], wanted["model_config"], device)
    if backbone.weights_digest != wanted["weights"]:
        raise UserError(
            f"Expected the backbone that {folder} was learned on ({wanted['name']}, weights {wanted['weights'][:12]}), "
            f"got {backbone.name} with weights {backbone.weights_digest[:12]}; load the same weights."
        )
    if backbone.preprocessing.digest() != wanted["preprocessing"]:
        log.warning("the backbone's preprocessing is not the one that %s was learned with", folder)
    shape = card["context"]["shape"]
    fields = {name: value for name, value in card["context"].items() if name != "shape"}
    # The number of tokens is the learned one, whichever way the start was chosen.
    options = ContextOptions(**{**fields, "tokens": shape[-2]})
    context = torch.nn.Parameter(torch.zeros(shape, device=backbone.device))
    learner = LEARNERS[card["learner"]](backbone, card["class_names"], options, context=context)
    try:
        learner.load_state_dict(load_file(str(folder / WEIGHTS)))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"Expected the weights of a learned prompt at {folder / WEIGHTS}, but: {reason}") from None
    learner.requires_grad_(False)
    return learner


def nearest_words(learner: ContextLearner, count: int = 5) -> list[list[tuple[str, float]]]:
    """For every context token, the vocabulary's words at the smallest Euclidean distance (CoOp, table 4).

    Returns:
        One list per token (class-specific contexts: the mean over classes) of (word, distance).
    """
    backbone = learner.backbone
    context = learner.context.detach().float()
    if context.dim() == 3:
        context = context.mean(dim=0)
    tower = backbone.tower
    vocabulary = tower.vocabulary().float()  # [V, W]
    distances = torch.cdist(context, vocabulary)  # [M, V]
    # Rows that are exactly zero belong to tokens the backbone never saw.
    distances[:, vocabulary.abs().sum(dim=-1) == 0] = torch.inf
    values, ids = distances.topk(count, dim=-1, largest=False)
    return [
        [(backbone.tokenizer.decode([int(i)]), float(v)) for i, v in zip(row_ids, row_values, strict=True)]
        for row_ids, row_values in zip(ids, values, strict=True)
    ]

