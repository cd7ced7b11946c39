"""The published splits of datasets whose Hub rows carry file names, without their split files.

For each part the package keeps the positions of its images among all file names in sorted order, so that a
table that has exactly these files gives the published split image by image, order included.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "names"

KEYS: dict[str, Callable[[str], str]] = {
    "oxford_pets": lambda stem: f"{stem}.jpg",
    "eurosat": lambda stem: f"{stem.rsplit('_', 1)[0]}/{stem}.jpg",
}
"""Path in the published split of a file name without suffix, by dataset."""


def published_order(name: str, stems: list[str]) -> Mapping[str, list[str]] | None:
    """Stems of the published train, val and test in their order; None if these are other files.

    Args:
        name: key of the catalogue.
        stems: file names without suffix, in any order.
    """
    if name not in KEYS:
        return None
    content = json.loads((FOLDER / f"{name}.split.json").read_text(encoding="utf-8"))
    ordered = sorted(stems)
    if hashlib.sha256("\n".join(ordered).encode()).hexdigest() != content["stems"]:
        return None
    parts = {}
    for part in ("train", "val", "test"):
        packed = zlib.decompress(base64.b64decode(content[part]))
        # Two bytes a position, little-endian.
        parts[part] = [ordered[position] for position in struct.unpack(f"<{len(packed) // 2}H", packed)]
    return parts
