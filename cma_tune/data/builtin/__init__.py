"""Data sets and a small CLIP that travel inside the package, so that everything runs without a network.

- ``digits``: the 1,797 real handwritten digits that scikit-learn ships, enlarged to 32 px.
- ``shapes``: pictures drawn by code, 32 classes composed of a texture, a colour and a shape.
- :data:`SMALL_CLIP_DIR`: a small CLIP that has seen neither of them (its card lies beside the weights).

Importing this module loads neither torch nor Pillow nor scikit-learn.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BUILTIN_NAMES", "SMALL_CLIP_DIR", "BuiltinData", "load_builtin"]

BUILTIN_NAMES: tuple[str, ...] = ("digits", "shapes")

SMALL_CLIP_DIR: Path = Path(__file__).parent / "small_clip"
"""Folder of the embedded CLIP; open it with ``open_clip.create_model_and_transforms(f"local-dir:{...}")``."""


@dataclass(frozen=True)
class BuiltinData:
    """An embedded data set: what it holds, and how to get one image of it.

    Attributes:
        name: one of :data:`BUILTIN_NAMES`.
        version: changes whenever an image or a split would change.
        class_names: C names; a label is an index into them. The first half are the base classes, the rest the
            novel ones.
        templates: zero-shot templates with one ``{}`` each; the first is the default.
        parts: ``"train"``, ``"val"`` and ``"test"``, each a tuple of ``(key, label)``, ordered by label.
            Keys are unique over all parts and never change within a version.
        load: gives the RGB image of 32x32 pixels that belongs to a key; ``KeyError`` for any other key.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[str, int], ...]]
    load: Callable[[str], Image]


def load_builtin(name: str) -> BuiltinData:
    """Give the embedded data set called ``name``.

    Args:
        name: ``"digits"`` or ``"shapes"``.

    Raises:
        ValueError: there is no embedded data set of that name.

    Example:
        >>> data = load_builtin("shapes")
        >>> data.class_names[0]
        'solid red circle'
        >>> data.load("test/000/0000").size
        (32, 32)
    """
    if name == "digits":
        from .digits import load_digits

        return load_digits()
    if name == "shapes":
        from .shapes import load_shapes

        return load_shapes()
    nearest = difflib.get_close_matches(name, BUILTIN_NAMES, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"Expected an embedded data set, one of {', '.join(BUILTIN_NAMES)}, got {name!r}{hint}")
