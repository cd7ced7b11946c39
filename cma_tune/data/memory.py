"""Decoded images kept in memory: live training crops the same few images in every epoch."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

from cma_tune.data.dataset import ImageSource
from cma_tune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

BYTES_PER_PIXEL = 4
"""Of an RGB image in Pillow's memory."""


def _size(image: Image) -> int:
    """Bytes of a decoded image."""
    return image.width * image.height * BYTES_PER_PIXEL


class RememberedImages:
    """An image source that decodes an image once, as long as it fits.

    Args:
        images: where images come from.
        budget: bytes for decoded images; images beyond it are decoded anew every time.

    Attributes:
        used: bytes of the images that are kept.
        full: an image did not fit since room was made.
    """

    def __init__(self, images: ImageSource, budget: int) -> None:
        self.images = images
        self.budget = budget
        self.used = 0
        self.full = False
        self._decoded: dict[str, Image] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked starts without: sending images over would take longer than decoding.
        return {"images": self.images, "budget": self.budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def load(self, key: str) -> Image:
        """The RGB image behind `key`; not to be changed in place.

        Raises:
            UserError: see the source.
        """
        found = self._decoded.get(key)
        if found is None:
            found = self.images.load(key)
            size = _size(found)
            with self._lock:
                if key in self._decoded:
                    return found
                if self.used + size > self.budget:
                    self.full = True
                    return found
                self.used += size
                self._decoded[key] = found
        return found

    def make_room(self, keys: Iterable[str]) -> None:
        """Forget all images but these, if there was one that did not fit."""
        if not self.full:
            return
        with self._lock:
            self._decoded = {key: self._decoded[key] for key in dict.fromkeys(keys) if key in self._decoded}
            self.used = sum(_size(image) for image in self._decoded.values())
            self.full = False

    def fingerprint(self, key: str) -> str:
        """See the source."""
        return self.images.fingerprint(key)

    def remember(self, keys: Iterable[str], threads: int) -> None:
        """Decode images beforehand, until the budget is used up.

        Processes that are forked later share them; each would decode its own otherwise, anew in every epoch.
        """
        todo = [key for key in dict.fromkeys(keys) if key not in self._decoded]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            # In turns, so that decoding ends soon after the budget does.
            for start in range(0, len(todo), 64):
                if self.used >= self.budget:
                    self.full = True
                    return
                list(pool.map(self._try, todo[start : start + 64]))

    def _try(self, key: str) -> None:
        """A damaged image is its batch's to report."""
        try:
            self.load(key)
        except UserError:
            return
