"""The README.md of a shared prompt: what it is, what it was measured at, how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from cma_tune.clip.sources import HUB as HUB_PREFIX
from cma_tune.clip.sources import TRANSFORMERS
from cma_tune.data.hub_repositories import HUB
from cma_tune.hub import hub_name
from cma_tune.learners.base import OwnClasses
from cma_tune.learners.saving import LEARNERS
from cma_tune.records import Record

_UNITS = {"class_similarity": "", "modal_similarity": ""}
"""Figures that are no percentages."""

_SHOWN_CLASSES = 20


def model_card(card: Mapping[str, Any], record: Record | None, repository: str) -> str:
    """README.md with its YAML header.

    Args:
        card: the prompt's, as it is shared.
        record: of the run that learned it, if it is there still.
        repository: ``ORG/NAME``.
    """
    return f"---\n{_header(card, repository)}\n---\n\n" + "\n".join(_text(card, record, repository)) + "\n"


def _header(card: Mapping[str, Any], repository: str) -> str:
    from huggingface_hub import ModelCardData

    own = issubclass(LEARNERS[card["learner"]], OwnClasses)
    data = ModelCardData(
        library_name="cma_tune",
        pipeline_tag="image-classification" if own else "zero-shot-image-classification",
        tags=["clip", "few-shot", *([] if own else ["prompt-learning"]), card["learner"].replace("_", "-")],
        base_model=_base_model(card["backbone"]),
        datasets=_datasets(card.get("dataset")),
        model_name=repository.partition("/")[2],
        eval_results=_results(card) or None,
    )
    return str(data.to_yaml()).strip()


def _base_model(backbone: Mapping[str, Any]) -> str | None:
    """The Hub's name of the backbone, where it has one."""
    name, tag = str(backbone["name"]), backbone["pretrained"]
    if name.startswith((HUB_PREFIX, TRANSFORMERS)):
        return name.partition(":")[2]
    import open_clip

    known = open_clip.get_pretrained_cfg(name, tag) if tag is not None else {}
    return str(known.get("hf_hub") or "").strip("/") or None


def _datasets(dataset: str | None) -> list[str] | None:
    """The Hub's name of the dataset, where it has one."""
    name = dataset or ""
    if name in HUB:
        repository = HUB[name].repo
    else:
        repository = hub_name(name.removeprefix("hub:")) if name.startswith("hub:") else None
    return [repository] if repository is not None else None


def _results(card: Mapping[str, Any]) -> list[Any]:
    """The test accuracies in the form that the Hub shows."""
    from huggingface_hub import EvalResult

    dataset = str(card.get("dataset", "unknown"))
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"{name.replace('_', ' ')} (%)",
            metric_value=round(value, 4),
        )
        for name, value in card.get("figures", {}).items()
        if name not in _UNITS and not name.startswith("validation") and not name.endswith("ece")
    ]


def _text(card: Mapping[str, Any], record: Record | None, repository: str) -> Iterator[str]:
    backbone = card["backbone"]
    weights = f" ({backbone['pretrained']})" if backbone["pretrained"] else ""
    yield f"# {repository.partition('/')[2]}"
    yield ""
    yield f"What `{card['learner']}` learned on the frozen backbone `{backbone['name']}`{weights}."
    yield "The backbone is not in these files; loading fetches it and checks that it is the same."
    yield ""
    yield from _table(("", ""), _facts(card, record))
    if card.get("figures"):
        yield ""
        yield "## Figures"
        yield ""
        figures = card["figures"].items()
        yield from _table(
            ("on the test images", ""),
            [
                (name.replace("_", " "), f"{value:.4f}" if name in _UNITS else f"{value:.2f} %")
                for name, value in figures
                if not name.startswith("validation")
            ],
        )
        yield ""
        yield "One run's figures; means over seeds with their intervals are what methods are compared by."
    yield ""
    yield from _loading(card, repository)


def _facts(card: Mapping[str, Any], record: Record | None) -> list[tuple[str, str]]:
    names = card["class_names"]
    shown = ", ".join(names[:_SHOWN_CLASSES]) + (", …" if len(names) > _SHOWN_CLASSES else "")
    facts = [("method", str(card["learner"]))]
    if record is not None:
        facts += [
            ("λ of the CMA loss", f"{record.weight:g}{_form(record)}"),
            ("protocol", record.protocol),
            ("images per class (shots)", str(record.shots)),
            ("seed", str(record.seed)),
        ]
    facts += [("dataset", str(card["dataset"]))] if "dataset" in card else []
    facts += [(f"{part} (SHA-256)", card[part][:16]) for part in ("split", "picks") if part in card]
    facts += [
        ("backbone", str(card["backbone"]["name"])),
        ("backbone's weights (SHA-256)", card["backbone"]["weights"][:16]),
        (f"{len(names)} classes", shown),
    ]
    return facts


def _form(record: Record) -> str:
    """Which form of the loss λ weighs."""
    loss = record.config.get("loss")
    if record.weight == 0 or loss is None:
        return ""
    return f" ({loss['reduction']} over classes{', normalised' if loss['normalize'] else ''})"


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for row in (head, ("---", "---"), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _loading(card: Mapping[str, Any], repository: str) -> Iterator[str]:
    own = issubclass(LEARNERS[card["learner"]], OwnClasses)
    yield "## How to load it"
    yield ""
    yield "```python"
    yield "from cma_tune.learners import from_pretrained"
    yield ""
    yield f'learner = from_pretrained("{repository}")'
    if not own:
        yield 'other = learner.for_classes(["cat", "dog"])  # the same over other class names'
    yield "```"
    yield ""
    yield "```bash"
    yield f"cma-tune predict --prompt {repository} photo.jpg photos/"
    yield "```"
    yield ""
    yield f"Learned with cma_tune {metadata.version('cma_tune')}. The files are safetensors and JSON."
