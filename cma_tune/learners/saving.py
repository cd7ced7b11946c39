"""A learned prompt as files: ``prompt.safetensors`` and a JSON card; of LoRA, peft's files and the card."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.errors import UserError
from cma_tune.files import write_atomically, write_json
from cma_tune.learners.base import Learner
from cma_tune.learners.cards import CARD, FORMAT, LEARNERS, prompt_folder, read_card, read_weights

log = logging.getLogger(__name__)


def save_prompt(learner: Learner, folder: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
    """Write what `learner` has learned.

    The card holds the digest of the weights, so that loading tells where a kill left new ones beside an old
    card.

    Args:
        learner: one of `LEARNERS`.
        folder: made if it is missing.
        provenance: more entries of the card (split digest, seed, figures); must be JSON.

    Raises:
        UserError: it is none of them.
        ValueError: `provenance` takes the name of one of the card's own entries.
    """
    folder = Path(folder)
    described = describe(learner)
    weights = save({name: value.detach().cpu().contiguous() for name, value in learner.state_dict().items()})
    card = {**described, "weights": hashlib.sha256(weights).hexdigest()}
    taken = sorted(set(card) & set(provenance or {}))
    if taken:
        raise ValueError(f"Expected other names than the card's own in provenance, got {', '.join(taken)}.")
    for name, content in zip(learner.files, (weights, *learner.more_files()), strict=True):
        write_atomically(folder / name, partial(_write, content=content))
    write_json(folder / CARD, {**card, **(provenance or {})})


def describe(learner: Learner) -> dict[str, Any]:
    """A learner's card, but for the digest of its weights.

    Raises:
        UserError: it is none of `LEARNERS`.
    """
    if learner.name not in LEARNERS:
        raise UserError(f"Expected a method that learns, got '{learner.name}', which has nothing to save.")
    return {
        "format": FORMAT,
        "learner": learner.name,
        "backbone": learner.backbone.describe(),
        **learner.describe(),
        "class_names": list(learner.class_names),
    }


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def from_pretrained(
    source: Path | str, backbone: Backbone | str | None = None, device: torch.device | str = "cpu"
) -> Learner:
    """Load a learned prompt, with its backbone if none is given. It is frozen, ready to predict.

    Args:
        source: folder that `save_prompt` wrote, or a repository ``ORG/NAME`` on the Hub. Safetensors and JSON
            are all that is fetched and read.
        backbone: the model it was learned on, if it is there already, or where it lies now: a name as
            `load_backbone` takes it, or a checkpoint file in place of the one it was learned with.
        device: where the backbone is loaded to if it is not.

    Raises:
        UserError: files are missing or don't fit, or the backbone's weights are not those it was learned on.
    """
    return load_prompt(source, Learner, backbone, device)


def load_prompt(
    source: Path | str,
    kind: type[Learner],
    backbone: Backbone | str | None = None,
    device: torch.device | str = "cpu",
    **download: Any,
) -> Learner:
    """As `from_pretrained`, which see, of one kind of learner.

    Args:
        source, backbone, device: see there.
        kind: the method's class, or a base of several.
        download: see `prompt_folder`.

    Raises:
        UserError: the card is another method's, or see there.
    """
    folder = prompt_folder(source, **download)
    card = read_card(folder)
    kind = _kind_of(card, kind, folder)
    weights = read_weights(folder, card)
    backbone = backbone_for(card["backbone"], folder, backbone, device)
    try:
        learner = kind.from_card(backbone, card["class_names"], card, weights)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("() ")[2]
        raise UserError(
            f"Expected the options of {card['learner']} in {folder / CARD}, but {reason or error}; "
            "save the prompt again."
        ) from None
    try:
        learner.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Expected weights that fit the card in {folder}, but: {reason}.") from None
    learner.requires_grad_(False)
    return learner


def _kind_of(card: Mapping[str, Any], wanted: type[Learner], folder: Path) -> type[Learner]:
    """The class that a card is loaded to: `wanted` if it is the method's, the method's if that is a base."""
    kind = LEARNERS[card["learner"]]
    if wanted.name == kind.name or (not wanted.name and issubclass(kind, wanted)):
        return wanted if wanted.name else kind
    raise UserError(
        f"Expected a prompt of {wanted.__name__} in {folder}, got one of {kind.__name__}; "
        f"load it with {kind.__name__}.from_pretrained, or with Learner.from_pretrained, which takes any."
    )


def backbone_for(
    wanted: Mapping[str, Any],
    learned: Path,
    backbone: Backbone | str | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """The backbone that something was learned on, loaded if it is not given.

    Args:
        wanted: what `Backbone.describe` said then.
        learned: what was learned, for messages.
        backbone: one that may be it, or where it lies now; see `from_pretrained`.
        device: where it is loaded to.

    Raises:
        UserError: it can't be loaded, or its weights are others.
    """
    if backbone is None:
        backbone = _as_learned(wanted, learned, device)
    elif isinstance(backbone, str):
        checkpoint = Path(backbone).expanduser()
        if checkpoint.is_file():
            backbone = load_backbone(wanted["name"], str(checkpoint), wanted["model_config"], device)
        else:
            backbone = load_backbone(backbone, device=device)
    if backbone.weights_digest != wanted["weights"]:
        raise UserError(
            f"Expected the backbone that {learned} was learned on ({wanted['name']}, weights "
            f"{wanted['weights'][:12]}), got {backbone.name} with weights {backbone.weights_digest[:12]}; "
            "load the same weights."
        )
    if backbone.preprocessing.digest() != wanted["preprocessing"]:
        log.warning(
            "The backbone's preprocessing is not the one that %s was learned with; its figures may not hold.",
            learned,
        )
    return backbone


def _as_learned(wanted: Mapping[str, Any], learned: Path, device: torch.device | str) -> Backbone:
    try:
        return load_backbone(wanted["name"], wanted["pretrained"], wanted["model_config"], device)
    except UserError as error:
        raise UserError(
            f"{error} It is the backbone that {learned} was learned on; --backbone names where it lies now."
        ) from None
