"""A prompt's files as others get them: under a backbone's name that holds everywhere, with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cma_tune.clip.sources import EMBEDDED, HUB, TRANSFORMERS
from cma_tune.errors import UserError
from cma_tune.files import read_json, write_json, write_text
from cma_tune.hub import hub_name
from cma_tune.learners.adapted import CONFIG as PEFT
from cma_tune.learners.cards import CARD, LEARNERS
from cma_tune.learners.model_card import base_model

README = "README.md"

ON_THE_HUB = (HUB, TRANSFORMERS)
"""What names of backbones on the Hub begin with."""


def shared_files(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of all files that a prompt is shared in."""
    return (CARD, *LEARNERS[card["learner"]].files, README)


def write_shared(folder: Path, source: Path, card: Mapping[str, Any], text: str) -> None:
    """Write a prompt as it is shared.

    Args:
        folder: made if it is missing.
        source: of the files beside the card.
        card: as it is shared.
        text: of the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = LEARNERS[card["learner"]].files
    for name in files:
        shutil.copyfile(source / name, folder / name)
    if PEFT in files:  # what it is for, as peft itself says it
        settings = read_json(folder / PEFT, "an adapter's config")
        write_json(folder / PEFT, {**settings, "base_model_name_or_path": base_model(card["backbone"])})
    write_json(folder / CARD, card)
    write_text(folder / README, text)


def public_backbone(backbone: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    """A card's backbone under a name that holds everywhere, since paths of one machine load nowhere else.

    Args:
        backbone: of a card.
        given: ``hf-hub:ORG/REPO`` or ``transformers:ORG/REPO`` to put in its place.

    Raises:
        UserError: `given` is no such name, or is missing where the backbone came from local files.
    """
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
