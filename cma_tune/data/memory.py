"""Decoded images kept in memory: live training crops the same few in every epoch, runs test on the same."""

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

TURN = 64
"""Images that are decoded beforehand in one go."""


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
    """

    def __init__(self, images: ImageSource, budget: int) -> None:
        self.images = images
        self.budget = budget
        self.used = 0
        self._preferred: frozenset[str] = frozenset()
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
            with self._lock:
                self._keep(key, found)
        return found

    def prefer(self, keys: Iterable[str]) -> None:
        """Let these images take the room of others, which are forgotten, oldest first, as it is needed."""
        self._preferred = frozenset(keys)

    def _keep(self, key: str, image: Image) -> None:
        if key in self._decoded:
            return
        size = _size(image)
        if key in self._preferred and self.used + size > self.budget:
            for other in [other for other in self._decoded if other not in self._preferred]:
                self.used -= _size(self._decoded.pop(other))
                if self.used + size <= self.budget:
                    break
        if self.used + size <= self.budget:
            self.used += size
            self._decoded[key] = image

    def fingerprint(self, key: str) -> str:
        """See the source."""
        return self.images.fingerprint(key)

    def remember(self, keys: Iterable[str], threads: int) -> None:
        """Decode images beforehand, until one does not fit.

        Processes that are forked later share them; each would decode its own otherwise, anew in every epoch.
        """
        if not self.budget:
            return
        todo = [key for key in dict.fromkeys(keys) if key not in self._decoded]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            # In turns, so that decoding ends soon after the budget does.
            for start in range(0, len(todo), TURN):
                if not all(pool.map(self._fits, todo[start : start + TURN])):
                    return

    def _fits(self, key: str) -> bool:
        """Load an image; whether it is kept. A damaged one is its batch's to report."""
        try:
            self.load(key)
        except UserError:
            return True
        return key in self._decoded
