"""Which learners there are to save, and the files of a saved one: its card and the tensors beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cma_tune.errors import UserError
from cma_tune.files import read_json
from cma_tune.hub import local_folder
from cma_tune.learners.base import Learner
from cma_tune.learners.clip_adapter import ClipAdapter
from cma_tune.learners.cocoop import CoCoOp
from cma_tune.learners.coop import CoOp
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
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(
            f"Expected a prompt card of format {FORMAT} at {path}, got something else; save the prompt again."
        )
    if card.get("learner") not in LEARNERS:
        raise UserError(
            f"Expected one of {', '.join(LEARNERS)} as the learner of {path}, got {card.get('learner')!r}; "
            "load it with the version of cma_tune that it was saved with."
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
