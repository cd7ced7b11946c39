"""A learned prompt as files: ``prompt.safetensors`` and a JSON card; of LoRA, peft's files and the card."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.errors import UserError
from cma_tune.files import read_json, write_atomically, write_json
from cma_tune.hub import local_folder
from cma_tune.learners.base import Learner
from cma_tune.learners.clip_adapter import ClipAdapter
from cma_tune.learners.cocoop import CoCoOp
from cma_tune.learners.coop import ContextLearner, CoOp
from cma_tune.learners.ivlp import Ivlp
from cma_tune.learners.kgcoop import KgCoOp
from cma_tune.learners.linear_probe import CrossModalProbe, LinearProbe, TextLinearProbe
from cma_tune.learners.lora import Lora
from cma_tune.learners.lp_plus_plus import LpPlusPlus
from cma_tune.learners.maple import MaPLe
from cma_tune.learners.prograd import ProGrad
from cma_tune.learners.promptsrc import PromptSrc
from cma_tune.learners.tcp import Tcp
from cma_tune.learners.tip_adapter import TipAdapter, TipAdapterF
from cma_tune.learners.vpt import Vpt

CARD, FORMAT = "card.json", 1
EXPORT = "classifier.json"
"""What describes an export, which is no prompt."""
BACKBONE_ENTRIES = {"name", "pretrained", "model_config", "weights", "preprocessing"}
_KINDS: tuple[type[Learner], ...] = (
    *(CoOp, CoCoOp, KgCoOp, ProGrad, Tcp),
    *(LinearProbe, TextLinearProbe, CrossModalProbe, LpPlusPlus),
    *(TipAdapter, TipAdapterF, ClipAdapter),
    *(Vpt, Ivlp, MaPLe, PromptSrc),
    Lora,
)
LEARNERS = {learner.name: learner for learner in _KINDS}
SHARED = (CARD, *sorted({name for kind in _KINDS for name in kind.files}))
"""All that is read of a prompt, and so all that goes to the Hub and comes from it."""

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


def prompt_folder(source: Path | str, **download: Any) -> Path:
    """A prompt's folder; that of a Hub name is fetched, with these options of `local_folder`.

    Raises:
        UserError: see `local_folder`.
    """
    return local_folder(source, SHARED, "a learned prompt", **download)


def read_card(source: Path | str) -> dict[str, Any]:
    """The card of a prompt in a folder or on the Hub.

    Raises:
        UserError: there is none, or it is of another format.
    """
    folder = prompt_folder(source)
    path = folder / CARD
    if not path.is_file() and (hint := _hint(folder)):
        raise UserError(f"Expected the folder of a learned prompt (with {CARD}), got {hint}.")
    card = read_json(path, "the card of a learned prompt")
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("learner") not in LEARNERS:
        raise UserError(
            f"Expected a prompt card of format {FORMAT} at {path}, got something else; save the prompt again."
        )
    backbone, names = card.get("backbone"), card.get("class_names")
    fits = {
        "backbone": isinstance(backbone, dict) and set(backbone) >= BACKBONE_ENTRIES,
        "class_names": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "weights": isinstance(card.get("weights"), str),
    }
    unfit = [entry for entry, good in fits.items() if not good]
    if unfit:
        raise UserError(f"Expected {', '.join(unfit)} in the prompt card {path}; save the prompt again.")
    return card


def _hint(path: Path) -> str | None:
    """What a path without a card is instead, and what to name, where that can be told."""
    if path.is_file() and (path.parent / CARD).is_file():
        return f"the file {path}; name the folder {path.parent}"
    below = sorted(path.glob(f"*/{CARD}"))
    if below:
        return f"the folder {path}; name {below[0].parent}"
    if (path / EXPORT).is_file():
        return f"the export {path}, which holds no prompt; name the prompt that it was made of"
    return None


def read_weights(folder: Path, card: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors beside a card.

    Raises:
        UserError: they are missing, damaged or not those that the card was written for.
    """
    path = folder / LEARNERS[card["learner"]].files[0]
    try:
        content = path.read_bytes()
    except OSError:
        raise UserError(f"Expected the weights of a learned prompt at {path}, but can't read them.") from None
    if hashlib.sha256(content).hexdigest() != card["weights"]:
        raise UserError(
            f"Expected the weights that {path.parent / CARD} was written for at {path}, got others or a "
            "damaged file; save the prompt again."
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"Expected safetensors at {path}, but: {error}; save the prompt again.") from None


def from_pretrained(
    source: Path | str, backbone: Backbone | None = None, device: torch.device | str = "cpu"
) -> Learner:
    """Load a learned prompt, with its backbone if none is given. It is frozen, ready to predict.

    Args:
        source: folder that `save_prompt` wrote, or a repository ``ORG/NAME`` on the Hub. Safetensors and JSON
            are all that is fetched and read.
        backbone: the model it was learned on, if it is there already.
        device: where the backbone is loaded to if it is not.

    Raises:
        UserError: files are missing or don't fit, or the backbone's weights are not those it was learned on.
    """
    return load_prompt(source, Learner, backbone, device)


def load_prompt(
    source: Path | str,
    kind: type[Learner],
    backbone: Backbone | None = None,
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
        raise UserError(
            f"Expected the options of {card['learner']} in {folder / CARD}, but {type(error).__name__}: "
            f"{error}; save the prompt again."
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
    backbone: Backbone | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """The backbone that something was learned on, loaded if it is not given.

    Args:
        wanted: what `Backbone.describe` said then.
        learned: what was learned, for messages.
        backbone: one that may be it.
        device: where it is loaded to.

    Raises:
        UserError: it can't be loaded, or its weights are others.
    """
    if backbone is None:
        backbone = load_backbone(wanted["name"], wanted["pretrained"], wanted["model_config"], device)
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


def check_context(card: Mapping[str, Any]) -> None:
    """Raise a `UserError` if the method of a card learns no context."""
    if "context" not in card:
        raise UserError(f"Expected a learned context, got a '{card['learner']}', which has none.")


def nearest_words(learner: Learner, count: int = 5) -> list[list[tuple[str, float]]]:
    """For every context token, the vocabulary's words at the smallest Euclidean distance (CoOp, table 4).

    Words whose embedding is zero are left out: the backbone never saw them.

    Args:
        learner: its context may be shared or class-specific; of the latter the mean over classes is taken.
        count: words per token, at most.

    Returns:
        One list per context token of (word, distance), nearest first.

    Raises:
        UserError: `count` is below 1, or the method learns no context.
    """
    check_context({"learner": learner.name, **learner.describe()})
    assert isinstance(learner, ContextLearner)
    if count < 1:
        raise UserError(f"Expected at least 1 word per context token, got {count}.")
    backbone = learner.backbone
    context = learner.context.detach().float()
    if context.dim() == 3:
        context = context.mean(dim=0)
    tower = backbone.tower
    vocabulary = tower.vocabulary().float()  # [V, W]
    # By differences: from dot products, as cdist does by default here, a distance of 0 comes out as 1e-3.
    distances = torch.cdist(context, vocabulary, compute_mode="donot_use_mm_for_euclid_dist")  # [M, V]
    seen = (vocabulary != 0).any(dim=-1)
    distances[:, ~seen] = torch.inf
    values, ids = distances.topk(min(count, int(seen.sum())), dim=-1, largest=False)
    return [
        [(backbone.tokenizer.decode([int(i)]), float(v)) for i, v in zip(row_ids, row_values, strict=True)]
        for row_ids, row_values in zip(ids, values, strict=True)
    ]
