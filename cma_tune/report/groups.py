"""Which records are seeds of one and the same thing.

Runs are averaged only if they differ in nothing but the seed. Whatever else differs ends in another group.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cma_tune.config import FewShotConfig, flattened
from cma_tune.errors import UserError
from cma_tune.method_options import RELEASE_FORM
from cma_tune.recipes import recipe_epochs, recipe_weight
from cma_tune.records import RECIPE_WEIGHT, Record
from cma_tune.run import ONLY, Run

LEARNERS = {
    "zero_shot": "Zero-shot",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "kgcoop": "KgCoOp",
    "prograd": "ProGrad",
    "tcp": "TCP",
    "linear_probe": "Linear probe",
    "linear_probe_text": "Linear probe from text",
    "cross_modal_probe": "Cross-modal probe",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter_f": "Tip-Adapter-F",
    "clip_adapter": "CLIP-Adapter",
    "lp_plus_plus": "LP++",
    "vpt": "VPT",
    "ivlp": "IVLP",
    "maple": "MaPLe",
    "promptsrc": "PromptSRC",
    "lora": "LoRA",
}
"""Methods as the literature writes them, in the order of the tables."""

# Where and how a run is computed does not decide its result; `Run.identity` is the one place that knows.
_ELSEWHERE = asdict(FewShotConfig()).keys() - Run("few-shot", FewShotConfig()).identity().keys()
# Rows and columns say these, or the record's own entries say what they really were.
_SAID_OTHERWISE = {"dataset", "backbone", "pretrained", "model_config", "templates", "learner"}
_AXES = {"shots", "seeds", "weights", "select_weight"}
# The picks change with shots and seed; the origin is a path, and the digest of the split tells more.
_NO_SETTINGS = {
    "name",
    "origin",
    "picks",
    "classes",
    "test_images",
    "train_images",
    "val_images",
    "templates",
}


@dataclass(frozen=True)
class Group:
    """Records that differ in shots and seed alone.

    Attributes:
        learner: the method's key.
        weight: λ, or None for zero-shot, for a λ chosen on validation images and for one that goes with the
            shots as the release's does.
        selected: λ was chosen on validation images.
        release: λ is the release's for the dataset and the shots, in the release's form of the loss, and not
            the same at all of them.
        settings: everything else that decides the result, except epochs; values as JSON.
        epochs: by shots.
        records: in the order of shots and seeds.
        variant: what tells the group from others in its table, such as "epochs=30"; may be empty.
    """

    learner: str
    weight: float | None
    selected: bool
    settings: Mapping[str, str]
    epochs: Mapping[int, int]
    records: tuple[Record, ...] = field(repr=False)
    variant: str = ""
    release: bool = False

    @property
    def method(self) -> str:
        """The name without the variant, such as "CoOp + CMA, λ=0.8"."""
        name = learner_name(self.learner)
        if self.selected:
            return f"{name} + CMA, λ chosen on validation"
        if self.release:
            return f"{name} + CMA, λ of the release"
        return f"{name} + CMA, λ={self.weight:g}" if self.weight else name

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    def weight_at(self, shots: int) -> float | None:
        """λ of the runs with these shots, None for zero-shot and for a λ chosen by seed."""
        if self.release:
            return next(record.weight for record in self.records if record.shots == shots)
        return self.weight


def group_records(records: Iterable[Record]) -> list[Group]:
    """Groups of one table in the order of its rows, without variants yet.

    Args:
        records: those of one dataset, one backbone's name and one protocol (and zero-shot).

    Raises:
        UserError: two records of the same shots and seed claim different figures.
    """
    by_kind: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        settings = tuple(sorted(_settings(record).items()))
        kind = (record.learner, _weight(record), record.selection is not None, settings)
        by_kind.setdefault(kind, []).append(record)
    groups = []
    for (learner, weight, selected, settings), members in by_kind.items():
        for part in _by_epochs(members):
            epochs = {r.shots: number for r in part if (number := _epochs(r))}
            unique = tuple(_without_repetitions(part))
            groups.append(Group(learner, weight, selected, dict(settings), epochs, unique))
    return sorted(_with_release(groups), key=_row_order)


def learner_name(learner: str) -> str:
    """The method as the literature writes it, or its key."""
    return LEARNERS.get(learner, learner)


def shots_text(shots: int) -> str:
    """``"1 shot"``, ``"16 shots"``."""
    return f"{shots} shot{'' if shots == 1 else 's'}"


def merged_epochs(several: Iterable[Mapping[int, int]]) -> dict[int, int] | None:
    """Epochs by shots over all of them, None if some shots have several numbers."""
    merged: dict[int, int] = {}
    for epochs in several:
        for shots, number in epochs.items():
            if merged.setdefault(shots, number) != number:
                return None
    return merged


def _weight(record: Record) -> float | None:
    return None if record.learner == "zero_shot" or record.selection is not None else record.weight


def _epochs(record: Record) -> int:
    return int((record.config.get("optim") or {}).get("epochs") or 0)


def _settings(record: Record) -> dict[str, str]:
    """Everything that decides the result of a record and is no axis of its table, flat, values as JSON."""
    left_out = _ELSEWHERE | _SAID_OTHERWISE | _AXES
    if record.shots:
        left_out = left_out | {"prompt"}  # the run that it was learned in is known, and tells more
    content: dict[str, Any] = {name: value for name, value in record.config.items() if name not in left_out}
    optim = (record.config.get("optim") or {}).items()
    # What once was the only way is in no record of that time.
    content["optim"] = {k: v for k, v in optim if k != "epochs" and ONLY.get(k, ...) != v}
    if record.training.get("mixed_precision"):
        content["mixed_precision"] = record.training[
            "mixed_precision"
        ]  # the config's null was resolved there
    if record.learner == "zero_shot":
        content["templates"] = record.dataset.get("templates", record.config.get("templates"))
    elif record.selection is None and record.weight == 0:
        content.pop("loss", None)  # without the penalty its form means nothing
    if record.selection is not None:
        candidates = sorted(float(weight) for weight, _ in record.selection.get("candidates", []))
        content["candidates"] = "/".join(f"{weight:g}" for weight in candidates)
        content["on"] = record.selection.get("on")
    content |= {name: value for name, value in record.dataset.items() if name not in _NO_SETTINGS}
    content |= {name: value for name, value in record.backbone.items() if name != "name"}
    return {key: json.dumps(value, sort_keys=True, ensure_ascii=False) for key, value in flattened(content)}


def _by_epochs(records: Sequence[Record]) -> list[list[Record]]:
    """Split records that have several numbers of epochs for the same shots; else leave them together.

    The default number depends on the shots, so other epochs for other shots are no difference of settings.
    Where the same shots were trained for several numbers, the default ones make one part and every other
    number its own.
    """
    if merged_epochs({r.shots: _epochs(r)} for r in records) is not None:
        return [list(records)]
    parts: dict[int, list[Record]] = {}
    for record in records:
        by_default = _epochs(record) == recipe_epochs(str(record.config["dataset"]), record.shots)
        parts.setdefault(0 if by_default else _epochs(record), []).append(record)
    default = {_epochs(r) for r in parts.get(0, [])}
    if len(default) == 1 and (number := default.pop()) in parts:  # both parts would have the same name
        parts[number] += parts.pop(0)
    return list(parts.values())


def _with_release(groups: Iterable[Group]) -> list[Group]:
    """Join the groups of a method that have the release's λ at all their shots, where it goes with the shots.

    A λ that ran at other shots too belongs to a sweep, and keeps its row.
    """
    kept: list[Group] = []
    by_release: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.weight and all(map(is_of_release, group.records)):
            kind = (group.learner, tuple(sorted(group.settings.items())))
            by_release.setdefault(kind, []).append(group)
        else:
            kept.append(group)
    for several in by_release.values():
        epochs = merged_epochs(group.epochs for group in several)
        if len(several) == 1 or epochs is None:
            kept += several
            continue
        records = sorted((r for group in several for r in group.records), key=lambda r: (r.shots, r.seed))
        joined = replace(several[0], weight=None, release=True, epochs=epochs, records=tuple(records))
        kept.append(joined)
    return kept


def zero_shot_beside(learned: Record, several: Iterable[Record]) -> Record | None:
    """The zero-shot record of the same backbone on the same test images, None where none or several are.

    Its templates are those of the dataset that `learned` knew; a saved prompt knows of none.
    """

    found = [r for r in several if r.protocol == "zero-shot" and r.ground() == learned.ground()]
    if templates := learned.dataset.get("templates"):
        found = [record for record in found if record.dataset.get("templates") == templates]
    return found[0] if len({record.run for record in found}) == 1 else None


def in_release_form(record: Record) -> bool:
    """Whether the run had the release's form of the loss, which the published λ belong to."""
    loss = record.config.get("loss") or {}
    return all(loss.get(name) == wanted for name, wanted in asdict(RELEASE_FORM).items())


def is_of_release(record: Record) -> bool:
    """Whether λ is the release's for the dataset and the shots, in the release's form of the loss.

    A dataset of the user's catalogue has what that gives for the release's.
    """
    own = record.training.get(RECIPE_WEIGHT)
    try:
        weight = recipe_weight(str(record.config["dataset"]), record.shots) if own is None else own
    except UserError:  # the release has none
        return False
    return record.weight == weight and in_release_form(record)


def of_own_recipe(group: Group) -> bool:
    """Whether "the release's λ" are those of the user's catalogue."""
    return any(RECIPE_WEIGHT in record.training for record in group.records)


def miniatures(group: Group) -> set[str]:
    """Datasets of drawn images that a run was on, targets among them."""
    found: set[str] = set()
    for record in group.records:
        places = {str(record.config["dataset"]): record.dataset, **record.dataset.get("targets", {})}
        found |= {name for name, one in places.items() if str(one.get("origin", "")).startswith("miniature")}
    return found


def _without_repetitions(records: Sequence[Record]) -> Iterable[Record]:
    """One record for every shots and seed: copies of a run must not count as seeds."""
    seen: dict[tuple[int, int], Record] = {}
    for record in sorted(records, key=lambda r: (r.shots, r.seed)):
        first = seen.setdefault((record.shots, record.seed), record)
        if first is record:
            yield record
        elif any(
            first.figures[name] != record.figures[name] for name in first.figures & record.figures.keys()
        ):
            raise UserError(
                f"Expected one result for {record.protocol} with {learner_name(record.learner)}, "
                f"λ={record.weight:g} on {record.config['dataset']} at {shots_text(record.shots)}, "
                f"seed {record.seed}, got two with different figures "
                f"(runs {first.run[:8]} and {record.run[:8]}); report them from separate folders."
            )


def _row_order(group: Group) -> tuple[Any, ...]:
    known = list(LEARNERS)
    place = known.index(group.learner) if group.learner in known else len(known)
    settings = sorted(group.settings.items())
    chosen = (group.selected, group.release, group.weight or 0.0)
    return (place, group.learner, *chosen, settings, list(group.epochs.items()))
