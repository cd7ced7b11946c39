"""Images with the same content under different keys."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cma_tune.data.dataset import FileImages, ImageSource
from cma_tune.data.splits import Item
from cma_tune.data.tables import TableImages
from cma_tune.errors import UserError


def trained_again(
    train: Iterable[Item], test: Iterable[Item], digests: Mapping[str, bytes]
) -> list[tuple[str, str]]:
    """Test images that are training images by content: both keys, in the order of the test list.

    Args:
        train, test: the items.
        digests: of `content_digests`, of both.
    """
    first: dict[bytes, str] = {}
    trained = [item.key for item in train]
    for key in trained:
        if key in digests:
            first.setdefault(digests[key], key)
    known = set(trained)
    found = ((item.key, digests.get(item.key)) for item in test if item.key not in known)
    return [(key, first[digest]) for key, digest in found if digest in first]


def content_digests(
    images: ImageSource, keys: Sequence[str], among: Iterable[str] | None = None
) -> Mapping[str, bytes]:
    """Digest by key, of images whose content may be another's as well; damaged and absent ones have none.

    Args:
        images: where they are.
        keys: of the images, each once.
        among: only contents that may be those of these are of interest; all by default.
    """
    if isinstance(images, (FileImages, TableImages)):
        sizes = _sizes(images, keys)
        count = Counter(sizes.values())
        wanted = None if among is None else {sizes.get(key) for key in among}
        keys = [key for key, size in sizes.items() if count[size] > 1 and (wanted is None or size in wanted)]
    found: dict[str, bytes] = {}
    for key in keys:
        try:
            digest = (
                images.digest(key) if isinstance(images, (FileImages, TableImages)) else _pixels(images, key)
            )
        except UserError:
            continue
        found[key] = digest
    return found


def _sizes(images: FileImages | TableImages, keys: Sequence[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for key in keys:
        try:
            found[key] = images.status(key)[0] if isinstance(images, FileImages) else images.size(key)
        except UserError:
            continue
    return found


def _pixels(images: ImageSource, key: str) -> bytes:
    picture = images.load(key)
    return hashlib.blake2b(repr(picture.size).encode() + picture.tobytes()).digest()
