"""Miniatures in the Hub's form: the columns, class names and label order of the known repositories."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cma_tune.data.catalog import VARIANTS
from cma_tune.data.class_names import class_names, wnids
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.layouts import MINIATURE
from cma_tune.data.miniature import (
    CALTECH_FOLDERS,
    EUROSAT_FOLDERS,
    PARTS,
    PER_CLASS,
    draw,
    find_entry,
    fresh_folder,
    image_key,
    plan,
    sizes_of,
)
from cma_tune.files import write_json


def write_hub_miniature(name: str, root: Path, per_class: tuple[int, int, int] = PER_CLASS) -> Path:
    """Write a miniature of dataset `name` as a `datasets` folder ``root/NAME``, as its Hub repository has it.

    Its images are those of `write_miniature`. Validation images go to train where the repository has no such
    part, and labels are the repository's own: Food-101 and SUN397 with two classes in the other order, cars
    with the year last, flowers by number as text, Caltech with the two classes the literature drops.

    Args:
        name: a key of the catalogue.
        root: folder for tables; read it back with ``--data-root hub:ROOT``.
        per_class: images per class in train, validation and test.

    Returns:
        The dataset's folder.

    Raises:
        UserError: as `write_miniature`.
    """
    import datasets

    entry, form = find_entry(name), HUB[name]
    sizes = sizes_of(entry, per_class)
    names, of_label = source_names(name)
    label_type = {"fgvc_aircraft": datasets.Value("string"), "imagenet_r": datasets.Value("string")}
    feature = label_type.get(name, datasets.ClassLabel(names=names))
    if form.label == "cls":
        feature = datasets.Value("int64")
    features = datasets.Features(
        {form.image: datasets.Image(), form.label: feature, **_more_columns(name, datasets.Value)}
    )
    parts: dict[str, list[dict[str, Any]]] = {}
    for part, label, class_name, number in plan(entry, per_class):
        own = _own_part(name, part)
        row = {form.image: _jpeg(draw(label, class_name, number)), form.label: of_label[label]}
        key = image_key(name, part, label, class_name, number)
        parts.setdefault(own, []).append(row | _more_values(name, key, label, class_name))
    for number, dropped in enumerate(("background_google", "faces_easy") if name == "caltech101" else ()):
        picture = _jpeg(draw(-1 - number, dropped, 1))
        parts["train"].append({form.image: picture, form.label: names.index(dropped)})
    folder = fresh_folder(root / name)
    tables = {own: datasets.Dataset.from_list(rows, features=features) for own, rows in parts.items()}
    with _no_progress_bars():  # of tables that are written in a blink
        datasets.DatasetDict(tables).save_to_disk(folder)
    write_json(folder / MINIATURE, dict(zip(PARTS, sizes, strict=True)))
    return folder


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def source_names(name: str) -> tuple[list[str], list[Any]]:
    """The repository's class names in its own order, and its value for each of the literature's labels."""
    ours = class_names(name)
    called = [_called(name, label, ours[label]) for label in range(len(ours))]
    if name in ("fgvc_aircraft", "imagenet_r"):
        return called, called  # text, no numbers
    if name == "imagenetv2" or name == "imagenet_sketch":
        return called, list(range(len(ours)))
    if name == "food101":
        order = _swapped(len(ours), 16)
    elif name == "sun397":
        order = _swapped(len(ours), 206)
    elif name in ("caltech101", "oxford_flowers"):
        names = sorted([*called, *(["background_google", "faces_easy"] if name == "caltech101" else [])])
        return names, [names.index(one) for one in called]
    else:
        order = list(range(len(ours)))
    names = [called[label] for label in order]
    return names, [order.index(label) for label in range(len(ours))]


def _swapped(count: int, first: int) -> list[int]:
    order = list(range(count))
    order[first], order[first + 1] = order[first + 1], order[first]
    return order


def _called(name: str, label: int, class_name: str) -> str:
    """What the repository calls a class."""
    if name == "caltech101":
        return CALTECH_FOLDERS.get(class_name, class_name).lower()
    if name == "stanford_cars":
        year, _, rest = class_name.partition(" ")
        return f"{rest} {year}"
    if name == "oxford_flowers":
        return str(label + 1)
    if name == "sun397":
        return " ".join(reversed(class_name.split(" "))).replace("_", " ")
    if name == "eurosat":
        return EUROSAT_FOLDERS[label]
    if name == "ucf101":
        return class_name.replace("_", "")
    if name == "imagenet":
        # The repository's own synonyms need not be told apart by the literature's names.
        return f"{class_name}, {wnids(name)[label]}"
    if name.startswith("imagenet"):
        return wnids(name)[label]
    return class_name


def _own_part(name: str, part: str) -> str:
    if name in VARIANTS:
        return "test"
    if name in ("imagenet", "food101") and part == "test":
        return "validation"
    if part == "val":
        return "validation" if name in ("eurosat", "oxford_flowers", "ucf101") else "train"
    return part


def _more_columns(name: str, value: Callable[[str], Any]) -> dict[str, Any]:
    columns = {"oxford_pets": ["image_id"], "eurosat": ["image_id"], "imagenet_r": ["class_name"]}
    return {column: value("string") for column in columns.get(name, [])}


def _more_values(name: str, key: str, label: int, class_name: str) -> dict[str, Any]:
    if name in ("oxford_pets", "eurosat"):
        return {"image_id": Path(key).stem}
    return {"class_name": class_name} if name == "imagenet_r" else {}


def _jpeg(picture: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return {"bytes": buffer.getvalue(), "path": None}
