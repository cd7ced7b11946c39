"""What a run gave: one ``record.json``, and finding them again. Standard library only."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from cma_tune.config import FewShotConfig, flattened
from cma_tune.errors import UserError
from cma_tune.files import read_json, write_json
from cma_tune.method_options import PAPER_FORM, RELEASE_FORM
from cma_tune.run import Run

FILE, FORMAT = "record.json", 1

SHORT = {
    "base_accuracy": "base",
    "novel_accuracy": "novel",
    "harmonic_mean": "H",
    "source_accuracy": "source",
    "mean_accuracy": "mean of targets",
    "zero_shot_mean_accuracy": "by zero-shot",
}
"""What a line about a record calls some of its figures."""

RECIPE_WEIGHT = "recipe_weight"
"""In a record's training: λ that the user's catalogue had for the dataset at these shots."""


class Identified(Protocol):
    """A run as far as its record is concerned."""

    def folder(self) -> Path:
        """Where it leaves its record."""

    def identity(self) -> dict[str, Any]:
        """What decides its result."""

    def digest(self) -> str:
        """Of the identity."""


@dataclass
class Record:
    """One finished run.

    Attributes:
        run: digest of what the run is.
        protocol: zero-shot, few-shot or base-to-novel.
        config: the whole config, λ as a number, one value per sweep axis.
        dataset: name, where the split comes from, its digest, the digest of the picks, images per part.
        backbone: name, digests of weights and preprocessing.
        figures: accuracies in percent, class and modal similarity, calibration errors (ECE) in percentage
            points; a record of earlier times lacks what came later.
        per_class: percent per class name, by part.
        training: steps, mean loss terms of the last epoch, seconds.
        selection: how λ was chosen, for runs with a chosen λ.
        versions: of the package and what it stands on.
    """

    run: str
    protocol: str
    config: dict[str, Any]
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    figures: dict[str, float]
    per_class: dict[str, dict[str, float | None]]
    training: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def shots(self) -> int:
        """Training images per class, 0 for zero-shot."""
        return int(self.config["shots"][0]) if "shots" in self.config else 0

    @property
    def seed(self) -> int:
        """Seed of the picks, 0 for zero-shot."""
        return int(self.config["seeds"][0]) if "seeds" in self.config else 0

    @property
    def weight(self) -> float:
        """λ, 0 for zero-shot."""
        return float(self.config["weights"][0]) if "weights" in self.config else 0.0

    @property
    def learner(self) -> str:
        """The method's key."""
        return str(self.config.get("learner", "zero_shot"))

    def ground(self) -> list[Any]:
        """What makes runs comparable: the split, and the backbone's weights and preprocessing."""
        return [self.dataset.get("split"), *map(self.backbone.get, ("weights", "preprocessing"))]

    def headline(self) -> str:
        """The main accuracies in one line, and what validation chose for the method.

        Not those of single targets, nor of halves among all names.
        """
        shown = {
            SHORT.get(name, name.replace("_", " ")): value
            for name, value in self.figures.items()
            if ("accuracy" in name or "harmonic" in name) and ": " not in name and "_among_all" not in name
        }
        told = [f"{name} {value:.2f}" for name, value in shown.items()]
        chosen = {name: value for name, value in self.training.get("chosen", {}).items() if name != "on"}
        told += [f"{name} {value:g} by validation" for name, value in chosen.items()]
        return ", ".join(told)


def versions() -> dict[str, str]:
    """Versions that a record carries."""
    packages = ("cma_tune", "torch", "torchvision", "open_clip_torch", "transformers", "accelerate")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def save_record(folder: Path, record: Record) -> None:
    """Write the record, atomically."""
    write_json(folder / FILE, asdict(record))


def load_record(path: Path) -> Record:
    """Read one record.

    Raises:
        UserError: the file is not a record of this format, or its entries don't fit.
    """
    content = read_json(path, "a record")
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise UserError(f"Expected a record of format {FORMAT} at {path}, got something else; move it away.")
    try:
        record = Record(**content)
    except TypeError as error:
        raise UserError(f"Expected a record at {path}, but its entries don't fit: {error}.") from None
    unfit = _unfit(record)
    if unfit:
        raise UserError(f"Expected a record at {path}, but its entries don't fit: {', '.join(unfit)}.")
    return record


def _unfit(record: Record) -> list[str]:
    """Entries that another program's file of the same name would have in another form."""
    config, backbone = record.config, record.backbone
    axes = [config.get(name, [0]) for name in ("shots", "seeds", "weights")] if _is_object(config) else []
    fits = {
        "run": isinstance(record.run, str),
        "protocol": isinstance(record.protocol, str),
        "config": _is_object(config) and "dataset" in config and all(map(_is_one_number, axes)),
        "dataset": _is_object(record.dataset),
        "backbone": _is_object(backbone) and "name" in backbone,
        "figures": _is_object(record.figures) and all(map(_is_number, record.figures.values())),
        "per_class": _is_object(record.per_class),
        "training": _is_object(record.training),
        "selection": record.selection is None or _is_object(record.selection),
        "versions": _is_object(record.versions),
    }
    return [name for name, good in fits.items() if not good]


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_one_number(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 1 and _is_number(values[0])


def finished_record(run: Identified) -> Record | None:
    """The record of `run` if it is finished, None if it has none.

    Raises:
        UserError: its folder holds another run's record.
    """
    path = run.folder() / FILE
    if not path.is_file():
        return None
    record = load_record(path)
    if record.run != run.digest() and not _same_in_other_words(run, record):
        differing = ", ".join(_differences(run, record)) or "its fields"
        raise UserError(
            f"Expected no record or this run's record in {run.folder()}, got one of another run "
            f"(it differs in {differing}); choose another --output."
        )
    return record


def finished_on(run: Identified, data: str, what: str) -> Record | None:
    """The record of `run` if it is finished, None if it has none.

    Args:
        run: which one.
        data: digest of the data that the run would be made with.
        what: these are, in words.

    Raises:
        UserError: its folder holds another run's record, or one of other data.
    """
    record = finished_record(run)
    if record is not None and record.dataset["split"] != data:
        raise UserError(
            f"Expected the {what} of {record.config['dataset']} that the record in {run.folder()} was made "
            f"with ({record.dataset['split'][:12]}), got {data[:12]}; "
            "choose another --output for the changed dataset."
        )
    return record


def _same_in_other_words(run: Identified, record: Record) -> bool:
    """Whether the record is that of a run whose digest differs, but whose result can't."""
    if not isinstance(run, Run):
        return False
    if isinstance(run.config, FewShotConfig):
        return _in_another_form(run, run.config, record)
    # From when the dataset's own templates were no part of a run.
    if record.dataset.get("templates") != run.config.templates:
        return False
    return record.run == replace(run, config=replace(run.config, templates=[])).digest()


def _in_another_form(run: Run, config: FewShotConfig, record: Record) -> bool:
    """Whether it is the same run without the CMA loss, whose form then does not matter."""
    if config.weights != [0] or config.select_weight:
        return False
    forms = (PAPER_FORM, RELEASE_FORM)
    return any(record.run == replace(run, config=replace(config, loss=form)).digest() for form in forms)


def _differences(run: Identified, record: Record) -> list[str]:
    """Entries in which the runs differ, such as ``optim.epochs``."""
    mine, its = run.identity(), {"protocol": record.protocol, **record.config}
    if record.selection is not None:
        # Such a record's λ is the chosen one; the run's are those it was chosen from.
        its["weights"] = sorted(weight for weight, _ in record.selection["candidates"])
    flat, other = dict(flattened(mine)), dict(flattened(its))
    names = [name for name in flat if name in other and flat[name] != other[name]]
    unread = mine.get("weights") == [0.0] == its.get("weights")  # without the penalty its form means nothing
    return [name for name in names if not (unread and name.startswith("loss."))] or names


def find_records(folder: Path, skip: Callable[[UserError], None] | None = None) -> Iterator[Record]:
    """All records below `folder`, in the order of their paths.

    Args:
        folder: where to look, with all folders below it.
        skip: called with the mistake of a file of that name that is no record, which is then left out;
            without it the mistake is raised.

    Raises:
        UserError: there is no such folder, no record in it, or a file that is none and is not to be skipped.
    """
    return (record for _, record in find_results(folder, skip))


def find_results(
    folder: Path, skip: Callable[[UserError], None] | None = None
) -> Iterator[tuple[Path, Record]]:
    """Folder and record of every run below `folder`: as `find_records`, which see."""
    if not folder.is_dir():
        raise UserError(f"Expected a folder with records at {folder}, but there is no such folder.")
    found = False
    for path in sorted(folder.rglob(FILE)):
        try:
            record = load_record(path)
        except UserError as error:
            if skip is None:
                raise
            skip(error)
            continue
        found = True
        yield path.parent, record
    if not found:
        raise UserError(
            f"Expected {FILE} files of cma-tune below {folder}, got none; "
            f"run a protocol with --output {folder}."
        )
