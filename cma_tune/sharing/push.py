"""A learned prompt to the Hub, with a model card made from its card and its run's record."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cma_tune.errors import UserError
from cma_tune.hub import check_repository, hub_name, upload
from cma_tune.learners.base import Learner
from cma_tune.learners.cards import read_card, read_weights
from cma_tune.learners.model_card import check_license, model_card
from cma_tune.learners.saving import save_prompt
from cma_tune.learners.shared_files import public_backbone, shared_files, write_shared
from cma_tune.records import FILE as RECORD
from cma_tune.records import Record, load_record
from cma_tune.sharing.run_facts import told
from cma_tune.value_checks import check_writable

log = logging.getLogger(__name__)


def push_to_hub(
    prompt: Learner | Path | str,
    repository: str,
    private: bool = False,
    backbone: str | None = None,
    dry_run: Path | str | None = None,
    license: str | None = None,
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
        license: the Hub's short name of it, such as ``mit``; the model card names none without.

    Returns:
        The repository's URL, or the folder of a dry run.

    Raises:
        UserError: the prompt can't be read, `license` is no such name, the backbone can't be had by others,
            the folder of a dry run has files of other names in it or can't be written, or the Hub can't be
            reached or refuses.
    """
    check_repository(repository)
    check_license(license)
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(prompt, Learner):
            source = Path(temporary) / "prompt"
            save_prompt(prompt, source)
        else:
            source = Path(prompt).expanduser()
        own = set(shared_files(read_card(source)))
        shared = Path(temporary) / "shared" if dry_run is None else _empty(Path(dry_run).expanduser(), own)
        _fill(shared, source, repository, backbone, license)
        return str(shared) if dry_run is not None else upload(shared, repository, private)


def push(
    folder: str,
    repository: str,
    private: bool,
    backbone: str | None,
    dry_run: str | None,
    license: str | None = None,
) -> None:
    """The command: see `push_to_hub`."""
    place = push_to_hub(folder, repository, private, backbone, dry_run, license)
    files = ", ".join(shared_files(read_card(folder)))
    print(f"{'written to' if dry_run is not None else 'pushed to'} {place}: {files}")


def _empty(folder: Path, own: set[str]) -> Path:
    """Nothing that stands there may look as if it would be pushed."""
    others = set(map(str, (path.name for path in folder.iterdir()))) if folder.is_dir() else set()
    if folder.is_file() or others - own:
        raise UserError(f"Expected a new or empty folder for --dry-run, got {folder}; name another.")
    check_writable("dry_run", folder)
    return folder


def _fill(shared: Path, source: Path, repository: str, backbone: str | None, license: str | None) -> None:
    card = read_card(source)
    read_weights(source, card)
    card = {**card, "backbone": public_backbone(card["backbone"], backbone)}
    if "dataset" in card:
        card["dataset"] = _public_dataset(str(card["dataset"]))
    known = told(card, _record_of(source, card), source.resolve().parent)
    write_shared(shared, source, card, model_card(card, repository, license, known))


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


def _public_dataset(dataset: str) -> str:
    """Without the path of a local folder or file."""
    kind, colon, place = dataset.partition(":")
    if not colon or (kind == "hub" and hub_name(place) is not None):
        return dataset
    return f"{kind}:{Path(place).name}"
