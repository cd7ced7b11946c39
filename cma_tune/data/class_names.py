"""Class names of the catalogue's datasets in label order, as the literature prompts them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "names"


def _lines(name: str) -> list[str]:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@cache
def _imagenet() -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _lines("imagenet"))


def imagenet_names() -> dict[str, str]:
    """ImageNet's 1000 class names by WordNet id, sorted: the position is the label.

    The names are CoOp's (and CLIP's own); "missile" and "sunglasses" come twice.
    """
    return dict(_imagenet())


def subset_wnids(name: str) -> list[str]:
    """The 200 WordNet ids of ``imagenet_a`` or ``imagenet_r``, sorted: the position is the label."""
    return _lines(name)


def wnids(name: str) -> list[str]:
    """WordNet ids of ImageNet or one of its variants in label order."""
    return subset_wnids(name) if name in ("imagenet_a", "imagenet_r") else list(_imagenet())


def class_names(name: str) -> list[str]:
    """Class names of a dataset of the catalogue in label order, as its split file has them."""
    if name.startswith("imagenet"):
        return [_imagenet()[wnid] for wnid in wnids(name)]
    return _lines(name)
