"""Where images come from: folder layout, image folder, CSV, a `datasets` dataset, embedded data.

Every source ends in a `Dataset`: a split, a way to load an image by its key, and the prompt templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cma_tune.data.builtin import BUILTIN_NAMES, load_builtin
from cma_tune.data.catalog import ENTRIES, check_dataset_name
from cma_tune.data.dataset import (
    DEFAULT_TEMPLATE,
    BuiltinImages,
    Dataset,
    FileImages,
    ImageSource,
    SourceOptions,
)
from cma_tune.data.faults import Complain, refuse
from cma_tune.data.hub_form import is_hub_root, read_hub
from cma_tune.data.layouts import folder_with_split, read_layout
from cma_tune.data.listings import csv_file, image_folder
from cma_tune.data.own_catalog import OwnEntry, own_entries
from cma_tune.data.splits import Item, Split, check_split
from cma_tune.data.tables import TableImages, hub_table
from cma_tune.data.templates import check_templates

__all__ = [
    "DEFAULT_TEMPLATE",
    "BuiltinImages",
    "Dataset",
    "FileImages",
    "ImageSource",
    "SourceOptions",
    "TableImages",
    "default_templates",
    "load_dataset",
]

_GENERAL: dict[str, Callable[[str, str, SourceOptions, Complain], Dataset]] = {
    "folder": image_folder,
    "csv": csv_file,
    "hub": hub_table,
}


def load_dataset(
    name: str,
    root: Path,
    options: SourceOptions | None = None,
    templates: Sequence[str] = (),
    complain: Complain = refuse,
) -> Dataset:
    """Load a dataset by its name or source prefix.

    Args:
        name: an embedded dataset, a key of the catalogue, ``folder:PATH``, ``csv:FILE`` or
            ``hub:REPO_OR_FOLDER``, or a name of the YAML file that CMA_TUNE_CATALOG names.
        root: folder that holds the folders of the catalogue; ``hub:``, ``hub:FOLDER`` or ``hub:ORG/REPO`` for
            the Hub's form of them (`read_hub`).
        options: columns, splits and class names of the general sources and the Hub's form.
        templates: prompts that replace the dataset's own.
        complain: told of faults; by default the first ends the load.

    Raises:
        UserError: unknown name, missing folder or file, absent images, labels without a class name.
    """
    check_dataset_name(name)
    check_templates(templates)
    own = own_entries().get(name)
    if name in BUILTIN_NAMES:
        dataset = _builtin(name)
    elif name in ENTRIES:
        if is_hub_root(root):
            dataset = read_hub(name, root, options or SourceOptions(), complain)
        else:
            dataset = read_layout(name, root.expanduser(), complain)
    else:
        options = options or SourceOptions()
        kind, place = (name if own is None else own.source_of(is_hub_root(root))).split(":", 1)
        options = options if own is None else _with_own(options, own)
        if own is not None and own.split_file is not None and kind == "folder":
            dataset = folder_with_split(name, Path(place), Path(own.split_file), complain)
        else:
            dataset = _GENERAL[kind](name, place, options, complain)
        check_split(dataset.split, name, complain=complain)
    return replace(dataset, templates=tuple(templates) or default_templates(name))


def default_templates(name: str) -> tuple[str, ...]:
    """Prompts of a dataset where no others are asked for; nothing else of it is read.

    Raises:
        UserError: see `own_entries`.
    """
    if name in BUILTIN_NAMES:
        return load_builtin(name).templates
    if name in ENTRIES:
        return (ENTRIES[name].template,)
    own = own_entries().get(name)
    return own.templates if own is not None and own.templates else (DEFAULT_TEMPLATE,)


def _builtin(name: str) -> Dataset:
    data = load_builtin(name)
    train, val, test = (
        tuple(Item(key, label) for key, label in data.parts[part]) for part in ("train", "val", "test")
    )
    split = check_split(Split(train, val, test, data.class_names), name)
    return Dataset(name, split, BuiltinImages(name), data.templates, f"embedded, version {data.version}")


def _with_own(options: SourceOptions, own: OwnEntry) -> SourceOptions:
    """The entry's columns and parts, where no others were asked for."""
    default = SourceOptions()
    said = {key: v for key, v in own.options().items() if getattr(options, key) == getattr(default, key)}
    return replace(options, **said)
