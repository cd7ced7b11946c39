"""The README.md of a shared prompt: what it is, what is known of how it was learned, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import PurePath
from typing import Any

from cma_tune.clip.sources import (
    EMBEDDED,
    FOLDER,
    TRANSFORMERS,
    TRANSFORMERS_FOLDER,
    is_transformers_name,
    transformers_source,
)
from cma_tune.clip.sources import HUB as HUB_PREFIX
from cma_tune.errors import UserError
from cma_tune.learners.adapted import CONFIG as PEFT
from cma_tune.learners.base import OwnClasses
from cma_tune.learners.cards import LEARNERS

OPTIONS = {
    "context.tokens": "context tokens M",
    "context.position": "place of the class name",
    "context.per_class": "class-specific contexts",
    "context.words": "words that the context starts from",
    "context.learned": "of their tokens, learned",
    "weight": "weight w of the method's own loss",
    "depth": "depth (first blocks with own prompts)",
    "tokens": "visual prompts of a block",
    "image_tokens": "visual prompts of a block",
    "layer": "block that the class-aware tokens come in before",
    "text_weight": "weight of the distance to the frozen text features",
    "image_weight": "weight of the distance to the frozen image features",
    "mean": "epoch that weighs most in the mean of the prompts μ",
    "std": "standard deviation of these weights σ",
    "ratio": "share of the adapted features α",
    "alpha": "α",
    "beta": "β",
    "images": "images in the cache",
    "rank": "rank r",
    "step_of_rows": "step of the prototypes w",
    "step_of_multipliers": "step of the multipliers α",
}
"""Entries of a card that make the method what it is, as the model card calls them."""

_SHOWN = 20
"""Class names and templates, at most."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Told:
    """What is known of a prompt beside its card.

    Attributes:
        facts: name and value of what it was learned with.
        datasets: of the Hub.
        results: `huggingface_hub.EvalResult` of every test accuracy.
        figures: rows of the table of figures, its head first; none where nothing was measured.
        notes: sentences below that table.
    """

    facts: Sequence[tuple[str, str]] = ()
    datasets: Sequence[str] = ()
    results: Sequence[Any] = ()
    figures: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


def check_license(license: str | None) -> None:
    """Raise a `UserError` if it is none of the Hub's short names by its form."""
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(
            f"Expected --license by the Hub's short name, such as mit or apache-2.0, got '{license}'."
        )


def model_card(
    card: Mapping[str, Any],
    repository: str | None = None,
    license: str | None = None,
    told: Told | None = None,
) -> str:
    """README.md with its YAML header.

    Args:
        card: the prompt's, as it is shared.
        repository: ``ORG/NAME``, where it is known.
        license: the Hub's short name of it, such as ``mit``; nobody is given any rights without.
        told: what is known of the run that learned it.

    Raises:
        UserError: `license` is no such name.
    """
    check_license(license)
    told = told or Told()
    title = repository.partition("/")[2] if repository else f"A prompt of {card['learner']}"
    text = "\n".join(_text(card, title, repository or "FOLDER", told))
    return f"---\n{_header(card, title, license, told)}\n---\n\n{text}\n"


def _header(card: Mapping[str, Any], title: str, license: str | None, told: Told) -> str:
    from huggingface_hub import ModelCardData

    kind = LEARNERS[card["learner"]]
    own = issubclass(kind, OwnClasses)
    more = [*([] if own else ["prompt-learning"]), *(["peft"] if PEFT in kind.files else [])]
    data = ModelCardData(
        library_name="cma_tune",
        license=license,
        pipeline_tag="image-classification" if own else "zero-shot-image-classification",
        tags=["clip", "few-shot", *more, card["learner"].replace("_", "-")],
        base_model=base_model(card["backbone"]),
        datasets=list(told.datasets) or None,
        model_name=title,
        eval_results=list(told.results) or None,
    )
    return str(data.to_yaml()).strip()


def base_model(backbone: Mapping[str, Any]) -> str | None:
    """The Hub's name of the backbone, where it has one."""
    name, tag = str(backbone["name"]), backbone["pretrained"]
    if name.startswith((HUB_PREFIX, TRANSFORMERS)):
        return name.partition(":")[2]
    import open_clip

    known = open_clip.get_pretrained_cfg(name, tag) if tag is not None else {}
    return str(known.get("hf_hub") or "").strip("/") or None


def _backbone_name(backbone: Mapping[str, Any]) -> str:
    """Without the path of a local folder."""
    name = str(backbone["name"])
    kind, _, place = name.partition(":")
    return f"{kind}:{PurePath(place).name}" if name.startswith((FOLDER, TRANSFORMERS_FOLDER)) else name


def _text(card: Mapping[str, Any], title: str, source: str, told: Told) -> Iterator[str]:
    backbone = card["backbone"]
    weights = f" ({PurePath(backbone['pretrained']).name})" if backbone["pretrained"] else ""
    yield f"# {title}"
    yield ""
    yield f"What `{card['learner']}` learned on the frozen backbone `{_backbone_name(backbone)}`{weights}."
    yield "The backbone is not in these files; loading fetches it and checks that it is the same."
    yield ""
    yield from _table((("", ""), *_facts(card, told)))
    if told.figures:
        yield ""
        yield "## Figures"
        yield ""
        yield from _table(told.figures)
    if told.notes:
        yield ""
        yield from told.notes
    yield ""
    yield from _loading(card, source)


def _facts(card: Mapping[str, Any], told: Told) -> Iterator[tuple[str, str]]:
    yield "method", str(card["learner"])
    yield from _options(card)
    yield from told.facts
    for part in ("split", "picks"):
        if part in card:
            yield f"{part} (SHA-256)", card[part][:16]
    yield "backbone", _backbone_name(card["backbone"])
    yield "backbone's weights (SHA-256)", card["backbone"]["weights"][:16]
    yield f"{len(card['class_names'])} classes", _listed(card["class_names"])


def _options(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the method was made with; what is not in use is left out."""
    context = {f"context.{name}": value for name, value in card.get("context", {}).items() if name != "shape"}
    for name, value in {**context, **card.get("options", {})}.items():
        if name == "layers":
            yield "blocks", _blocks(value)
        elif value is not None and value is not False:
            yield OPTIONS.get(name, name.replace("_", " ")), _shown(value)


def _blocks(chosen: int | Sequence[int] | None) -> str:
    """Those of LoRA."""
    if chosen is None:
        return "all"
    return f"the last {chosen}" if isinstance(chosen, int) else f"{_listed(chosen)} (from 0)"


def _shown(value: Any) -> str:
    if value is True:
        return "yes"
    if isinstance(value, float):
        return f"{value:g}"
    return _listed(value) if isinstance(value, list) else str(value)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", …" if len(values) > _SHOWN else "")


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *rest = rows
    for row in (head, ["---"] * len(head), *rest):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _loading(card: Mapping[str, Any], source: str) -> Iterator[str]:
    kind = LEARNERS[card["learner"]]
    yield "## How to load it"
    yield ""
    yield "```python"
    yield f"from cma_tune.learners import {kind.__name__}"
    yield ""
    yield f'learner = {kind.__name__}.from_pretrained("{source}")'
    if not issubclass(kind, OwnClasses):
        yield 'other = learner.for_classes(["cat", "dog"])  # the same over other class names'
    yield "```"
    yield ""
    yield "```bash"
    yield f"cma-tune predict --prompt {source} photo.jpg photos/"
    yield "```"
    if PEFT in kind.files:
        yield ""
        yield "The adapter alone is in peft's own format:"
        yield ""
        yield "```python"
        yield from _peft_loading(card["backbone"], source)
        yield "```"
    yield ""
    yield f"Learned with cma_tune {metadata.version('cma_tune')}. The files are safetensors and JSON."


def _peft_loading(backbone: Mapping[str, Any], source: str) -> Iterator[str]:
    name = _backbone_name(backbone)
    if is_transformers_name(name):
        yield "import peft, transformers"
        yield ""
        yield f'model = transformers.AutoModel.from_pretrained("{transformers_source(name)}")'
        yield f'model = peft.PeftModel.from_pretrained(model, "{source}")'
        return
    yield f"import {'' if name == EMBEDDED else 'open_clip, '}peft"
    yield "from cma_tune.clip.attention import split_attention  # a layer each for queries, keys and values"
    if name == EMBEDDED:
        yield "from cma_tune.clip.backbone import load_backbone"
        yield ""
        yield f'model = load_backbone("{name}").model'
    else:
        weights = backbone["pretrained"]
        given = f', pretrained="{PurePath(weights).name}"' if weights else ""
        yield ""
        yield f'model, _, preprocess = open_clip.create_model_and_transforms("{name}"{given})'
    yield f'model = peft.PeftModel.from_pretrained(split_attention(model), "{source}")'
