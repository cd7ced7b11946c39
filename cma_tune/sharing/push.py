"""A learned prompt to the Hub, with a model card made from its card and its run's record."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cma_tune.clip.sources import EMBEDDED, HUB, TRANSFORMERS
from cma_tune.errors import UserError
from cma_tune.files import write_json, write_text
from cma_tune.hub import check_repository, hub_name, upload
from cma_tune.learners.base import Learner
from cma_tune.learners.saving import CARD, LEARNERS, read_card, read_weights, save_prompt
from cma_tune.records import FILE as RECORD
from cma_tune.records import Record, load_record
from cma_tune.sharing.model_card import model_card

README = "README.md"

ON_THE_HUB = (HUB, TRANSFORMERS)
"""What names of backbones on the Hub begin with."""

log = logging.getLogger(__name__)


def push_to_hub(
    prompt: Learner | Path | str,
    repository: str,
    private: bool = False,
    backbone: str | None = None,
    dry_run: Path | str | None = None,
) -> str:
    """Put a learned prompt on the Hub: its weights, its card and a generated model card.

    Args:
        prompt: a learner, or the folder that `save_prompt` wrote. The record of the run beside that folder,
            if there is one, gives the model card its table.
        repository: ``ORG/NAME``; made if it is missing.
        private: make it for its owner alone.
        backbone: ``hf-hub:ORG/REPO`` under which others get the backbone, where it came from local files.
            Loading checks that its weights are the same.
        dry_run: folder that gets the files instead of the Hub.

    Returns:
        The repository's URL, or the folder of a dry run.

    Raises:
        UserError: the prompt can't be read, its backbone can't be had by others, the folder of a dry run has
            files of other names in it, or the Hub can't be reached or refuses.
    """
    check_repository(repository)
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(prompt, Learner):
            source = Path(temporary) / "prompt"
            save_prompt(prompt, source)
        else:
            source = Path(prompt).expanduser()
        own = {CARD, *_files(read_card(source)), README}
        shared = Path(temporary) / "shared" if dry_run is None else _empty(Path(dry_run).expanduser(), own)
        _fill(shared, source, repository, backbone)
        return str(shared) if dry_run is not None else upload(shared, repository, private)


def push(folder: str, repository: str, private: bool, backbone: str | None, dry_run: str | None) -> None:
    """The command: see `push_to_hub`."""
    place = push_to_hub(folder, repository, private, backbone, dry_run)
    files = ", ".join((CARD, *_files(read_card(folder)), README))
    print(f"{'written to' if dry_run is not None else 'pushed to'} {place}: {files}")


def _files(card: Mapping[str, Any]) -> tuple[str, ...]:
    return LEARNERS[card["learner"]].files


def _empty(folder: Path, own: set[str]) -> Path:
    """Nothing that stands there may look as if it would be pushed."""
    others = set(map(str, (path.name for path in folder.iterdir()))) if folder.is_dir() else set()
    if folder.is_file() or others - own:
        raise UserError(f"Expected a new or empty folder for --dry-run, got {folder}; name another.")
    return folder


def _fill(shared: Path, source: Path, repository: str, backbone: str | None) -> None:
    card = read_card(source)
    read_weights(source, card)
    card = {**card, "backbone": _public_backbone(card["backbone"], backbone)}
    if "dataset" in card:
        card["dataset"] = _public_dataset(str(card["dataset"]))
    text = model_card(card, _record_of(source, card), repository)
    shared.mkdir(parents=True, exist_ok=True)
    for name in _files(card):
        shutil.copyfile(source / name, shared / name)
    write_json(shared / CARD, card)
    write_text(shared / README, text)


def _record_of(source: Path, card: Mapping[str, Any]) -> Record | None:
    """The record of the run that left the prompt; another one's says nothing of it."""
    path = source.resolve().parent / RECORD
    if not path.is_file():
        return None
    record = load_record(path)
    if record.figures != card.get("figures") or record.dataset.get("picks") != card.get("picks"):
        log.warning("The record at %s is not that of the prompt; the model card goes without it.", path)
        return None
    return record


def _public_backbone(backbone: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    """The backbone under a name that holds everywhere, since paths of one machine load nowhere else."""
    if given is not None:
        if not given.startswith(ON_THE_HUB) or hub_name(HUB + given.partition(":")[2]) is None:
            raise UserError(
                f"Expected --backbone of the form hf-hub:ORG/REPO or transformers:ORG/REPO, got '{given}'."
            )
        return {**backbone, "name": given, "pretrained": None, "model_config": None}
    name, tag = str(backbone["name"]), backbone["pretrained"]
    if name == EMBEDDED or name.startswith(ON_THE_HUB):
        return dict(backbone)
    import open_clip

    if backbone["model_config"] is not None or tag not in open_clip.list_pretrained_tags_by_model(name):
        raise UserError(
            f"Expected a backbone that others can load, got '{name}' from local files; "
            "put it on the Hub and name it with --backbone hf-hub:ORG/REPO or transformers:ORG/REPO."
        )
    return dict(backbone)


def _public_dataset(dataset: str) -> str:
    """Without the path of a local folder or file."""
    kind, colon, place = dataset.partition(":")
    if not colon or (kind == "hub" and hub_name(place) is not None):
        return dataset
    return f"{kind}:{Path(place).name}"
