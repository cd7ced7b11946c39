"""The datasets there are, where each comes from, and what of them lies below a data root."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cma_tune.data.catalog import ENTRIES, IMAGES_FROM, LISTS, CatalogEntry, known_names
from cma_tune.data.hub_form import hub_place, is_hub_root
from cma_tune.data.hub_repositories import HUB
from cma_tune.data.inventory import hub_shortfalls
from cma_tune.data.layouts import CLASS_NAMES, miniature_sizes
from cma_tune.data.own_catalog import own_entries
from cma_tune.data.sources import default_templates
from cma_tune.data.survey import Shortfalls, shortfalls, survey
from cma_tune.errors import UserError, nearest


def overview(root: Path) -> str:
    """A line on every dataset of the catalogue and of one's own.

    Args:
        root: data root.

    Raises:
        UserError: the file of own datasets can't be read, or takes a name that is there already.
    """
    known_names()
    rows = [
        [name, str(entry.classes), "/".join(f"{size:,}" for size in entry.sizes), entry.template]
        for name, entry in ENTRIES.items()
    ]
    for name in own_entries():
        classes, row = _own_state(name, root)
        rows.append([name, classes, row[2], "; ".join(default_templates(name))])
    shown = table(["dataset", "classes", "train/val/test", "template"], rows)
    return f"{shown}\n'cma-tune data list NAME' says where one comes from and where it belongs."


def details(name: str, root: Path) -> str:
    """Where a dataset comes from, where it belongs, and what a run takes for it.

    Args:
        name: of the catalogue or of one's own.
        root: data root.

    Raises:
        UserError: the name is unknown; see also `overview`.
    """
    known_names()
    names = [*ENTRIES, *own_entries()]
    if name not in names:
        raise UserError(f"Expected a dataset out of {', '.join(names)}, got '{name}'{nearest(name, names)}.")
    return "\n".join(_of_catalogue(ENTRIES[name]) if name in ENTRIES else _of_own(name, root))


def _of_catalogue(entry: CatalogEntry) -> Iterator[str]:
    name, folder = entry.name, f"DATA_ROOT/{entry.folder}"
    train, val, test = entry.sizes
    yield f"{name}: {entry.classes} classes, {train:,} train, {val:,} val, {test:,} test images"
    yield f"  template  {entry.template}"
    yield f"  images    {IMAGES_FROM[name]}"
    yield f"            into DATA_ROOT/{Path(entry.folder) / entry.images}"
    if name == "imagenet":
        yield "            with train/ and val/ in it, a folder per WordNet id in each"
    if entry.split_file is not None:
        yield f"  split     {entry.split_url()}"
        yield f"            into {folder}/{entry.split_file}"
    elif name in LISTS:
        yield f"  split     {', '.join(LISTS[name])}, which come with the images"
        yield f"            into {folder}"
    else:
        yield f"  split     the images' folders; names from {folder}/{CLASS_NAMES} if it is there"
    if HUB[name].repo is not None:
        yield f"  Hub       {HUB[name].repo} (--data-root hub:)"


def _of_own(name: str, root: Path) -> Iterator[str]:
    own = own_entries()[name]
    classes, _ = _own_state(name, root)
    yield f"{name}: {classes} classes" if classes else f"{name}: classes known once its source is at hand"
    for template in default_templates(name):
        yield f"  template  {template}"
    for source in own.sources:
        yield f"  source    {source}"
    if own.split_file is not None:
        yield f"  split     {own.split_file}"
    if own.weight is not None:
        yield f"  λ         {', '.join(_weight(shots, value) for shots, value in own.weight.items())}"


def _weight(shots: int, value: float) -> str:
    return f"{value:g} at {shots} shot{'s' if shots > 1 else ''}" if shots else f"{value:g}"


def status(root: Path) -> str:
    """What of every dataset lies below `root`: counts, or what makes it incomplete.

    Args:
        root: data root, or ``hub:`` and what may follow it; nothing is asked of the Hub.

    Raises:
        UserError: see `overview`, or what follows ``hub:`` is neither a folder nor a repository's name.
    """
    known_names()  # a name of the user's that is taken already would never be read
    from_hub = is_hub_root(root)
    rows = [(_hub_row if from_hub else _row)(entry, root.expanduser()) for entry in ENTRIES.values()]
    rows += [_own_state(name, root)[1] for name in own_entries()]
    return table(["dataset", "state", "train/val/test", f"below {root.expanduser()}"], rows)


def _row(entry: CatalogEntry, root: Path) -> list[str]:
    folder = root / entry.folder
    if not folder.is_dir():
        where = f"'cma-tune data list {entry.name}' says where to get {entry.folder}/"
        return [entry.name, "absent", "", where]
    return _state(entry, shortfalls(entry, root), folder)


def _hub_row(entry: CatalogEntry, root: Path) -> list[str]:
    try:
        base, place = hub_place(entry, root)
    except UserError:
        if HUB[entry.name].repo is not None:
            raise
        return [entry.name, "absent", "", "no repository on the Hub is known"]
    if not Path(place).is_dir():
        return [entry.name, "on the Hub", "", place]
    if Path(place) == base and base.name != entry.name:
        # A lone table is taken for whichever dataset is asked for.
        check = f"'cma-tune data check {entry.name} --data-root {root}'"
        return [entry.name, "unknown", "", f"{place} is a single table; {check} says whether it is this one"]
    try:
        return _state(entry, hub_shortfalls(entry, root), Path(place))
    except UserError as error:
        return [entry.name, "incomplete", "", str(error)]


def _state(entry: CatalogEntry, lacks: Shortfalls, folder: Path) -> list[str]:
    counts = "/".join(f"{size:,}" for size in lacks.sizes)
    if lacks:
        return [entry.name, "incomplete", counts, "; ".join([*lacks.split, *lacks.images])]
    return [entry.name, "present" if miniature_sizes(folder) is None else "miniature", counts, str(folder)]


def _own_state(name: str, root: Path) -> tuple[str, list[str]]:
    """Number of classes of one's own dataset if its source is at hand, and its row of the status."""
    source = own_entries()[name].source_of(is_hub_root(root))
    if not Path(source.partition(":")[2]).exists():
        return "", [name, "on the Hub" if source.startswith("hub:") else "absent", "", source]
    try:
        found = survey(name, root)
    except UserError as error:
        return "", [name, "incomplete", "", str(error)]
    if found.dataset is None:
        return "", [name, "incomplete", "", "; ".join(found.texts())]
    split = found.dataset.split
    counts = "/".join(f"{len(items):,}" for items in split.parts().values())
    state = "incomplete" if found.faults else "present"
    return str(len(split.class_names)), [name, state, counts, "; ".join(found.texts()) or source]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text below a header, in columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    # File names need not be valid UTF-8.
    return "\n".join(line.rstrip() for line in lines).encode("utf-8", "replace").decode()
