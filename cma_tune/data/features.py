"""Stored image features: every image encoded once per backbone, preprocessing, precision and view.

    STORE/cma_tune_features.json         what there is, see `feature_index`
    STORE/contents/ROOT.json             digests of images, see `contents`
    STORE/SPACE/NAME.safetensors         shards of features, see `feature_shards`

Rows are found by the image's content, so other picks, other parts, folders and tables of the same images
share them. Any number of processes may read and write at once, and be killed at any moment.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from cma_tune.data import feature_index
from cma_tune.data.contents import image_digests, of_key
from cma_tune.data.dataset import ImageSource
from cma_tune.data.feature_shards import (
    DamagedShardError,
    Header,
    Space,
    read_images,
    read_shard,
    shard_paths,
    write_shard,
)
from cma_tune.data.splits import Item
from cma_tune.errors import UserError

log = logging.getLogger(__name__)

ROWS = 4096
"""Rows of a shard, at most."""

SECONDS = 60.0
"""How long a shard takes to encode, roughly, at most: what a kill may lose."""

MOMENT = 20.0
"""Seconds of encoding that nothing needs to be said in."""

HANDFUL = 16
"""Images whose encoding is not worth a line."""

Encode = Callable[[Sequence[Item], Callable[[int], None]], Tensor]
"""Items → features ``[N, D]``; calls its second argument with the number of images after every batch."""


class FeatureStore:
    """A folder of image features.

    Attributes:
        folder: where it lies.
        encoded: number of images that had to be encoded, so far, by this object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoded = 0
        self._warned: set[Path] = set()

    def features(
        self,
        space: Space,
        images: ImageSource,
        items: Sequence[Item],
        encode: Encode,
        batch_size: int = 1,
        about: Mapping[str, str] | None = None,
        writer: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> Tensor:
        """Features ``[N, D]`` of `items`, float32, on the CPU: read where they are stored, else encoded.

        Encoding goes in the order of the items, in shards that are stored as they are done; after a kill it
        goes on behind the last of them.

        Args:
            space: what the features depend on beside the images.
            images, items: the images.
            encode: encodes those that are missing.
            batch_size: of `encode`. Shards end where batches do, so that a kill changes no batch.
            about: for people: what the images are ("images"), dataset, backbone, preprocessing.
            writer: whether this process stores what it encoded.
            say: told in one line what was encoded.

        Raises:
            ValueError: there are no items.
            UserError: an image can't be read, or the store can't be written.
        """
        if not items:
            raise ValueError("Expected at least one image to encode, got none.")
        about = about or {}
        digests = self._digests(space, images, items, about, writer)
        first = {digest: position for position, digest in reversed(list(enumerate(digests)))}
        place = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
        table = _Table(place)
        self._read(space, table, writer)
        missing = [items[first[digest]] for digest in place if not table.holds(digest)]
        if missing:
            wanted = [digest for digest in place if not table.holds(digest)]
            self._encode(space, table, missing, wanted, encode, batch_size, about, writer, say)
        return table.rows(digests)

    def _digests(
        self,
        space: Space,
        images: ImageSource,
        items: Sequence[Item],
        about: Mapping[str, str],
        writer: bool,
    ) -> list[bytes]:
        with _progress(f"reading {about.get('images', 'images')}", len(items)) as progress:
            digests = image_digests(self.folder / feature_index.CONTENTS, images, items, writer, progress)
        if not space.view:
            return digests
        # The noise of an augmented view depends on the key: copies of an image differ there.
        return [of_key(digest, item.key) for digest, item in zip(digests, items, strict=True)]

    def _read(self, space: Space, table: _Table, writer: bool) -> None:
        """Fill `table` with the rows that are stored."""
        for path in shard_paths(self.folder / space.id):
            if table.full():
                return
            try:
                # The digests are a fraction of the file, and most shards hold other images.
                if any(table.lacks(digest) for digest in read_images(path)):
                    _, digests, features = read_shard(path)
                    table.fill(digests, features)
            except FileNotFoundError:
                continue  # pruned meanwhile
            except DamagedShardError as error:
                self._warn(path, f"are damaged ({error}); their images are encoded again")
                if writer:
                    _remove(path)
            except OSError as error:
                self._warn(path, f"can't be read ({error.strerror or error}); their images are encoded again")

    def _warn(self, path: Path, text: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            log.warning("Stored features %s %s.", path, text)

    def _encode(
        self,
        space: Space,
        table: _Table,
        items: Sequence[Item],
        digests: Sequence[bytes],
        encode: Encode,
        batch_size: int,
        about: Mapping[str, str],
        writer: bool,
        say: Callable[[str], None] | None,
    ) -> None:
        """Encode `items`, store them shard by shard, and fill `table` with them."""
        folder = self.folder / space.id
        if writer:
            with self._writing():
                folder.mkdir(parents=True, exist_ok=True)
        what, started, done = about.get("images", "images"), time.perf_counter(), 0
        begun: tuple[int, float] | None = None
        with _progress(what, len(items)) as progress:
            while done < len(items):
                # The first shard is small: it tells how fast this is.
                seconds = max(time.perf_counter() - started, 1e-9)
                step = _whole_batches(int(SECONDS * done / seconds) if done else ROWS // 16, batch_size)
                part = slice(done, min(done + step, len(items)))
                features = encode(items[part], progress).detach().float().cpu()
                table.fill(digests[part], features)
                if writer:
                    self._store(folder, space, digests[part], features, about)
                done = part.stop
                seconds = time.perf_counter() - started
                # Where there is a terminal, the bar says it.
                if say is not None and seconds > MOMENT and done < len(items) and not sys.stderr.isatty():
                    say(f"{done:,} of {len(items):,} {what}{_pace(begun, (done, seconds), len(items))}")
                begun = begun or (done, seconds)
        self.encoded += done
        seconds = time.perf_counter() - started
        if say is not None and done > HANDFUL:
            say(f"encoded {done:,} {what} in {seconds:.1f} s ({done / seconds:.1f} images/s)")

    def _store(
        self, folder: Path, space: Space, digests: Sequence[bytes], features: Tensor, about: Mapping[str, str]
    ) -> None:
        with self._writing():
            path = write_shard(folder, space.text(), digests, features, about)
        feature_index.add(self.folder, path, Header(space.text(), dict(about), *features.shape))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"Expected to store image features in {self.folder}, but it can't be written "
                f"({reason}); choose another folder with --features-dir."
            ) from None


class _Table:
    """Rows ``[M, D]`` of M images, filled bit by bit."""

    def __init__(self, place: Mapping[bytes, int]) -> None:
        self._place = place
        self._held = bytearray(len(place))
        self._rows: Tensor | None = None

    def holds(self, digest: bytes) -> bool:
        """Whether the row of a wanted image is there."""
        return bool(self._held[self._place[digest]])

    def lacks(self, digest: bytes) -> bool:
        """Whether the image is wanted and its row not there yet."""
        place = self._place.get(digest)
        return place is not None and not self._held[place]

    def full(self) -> bool:
        """Whether every row is there."""
        return all(self._held)

    def fill(self, digests: Sequence[bytes], features: Tensor) -> None:
        """Take the rows ``[N, D]`` that are lacking."""
        if self._rows is None:
            self._rows = features.new_empty(len(self._held), features.shape[1])
        rows = [row for row, digest in enumerate(digests) if self.lacks(digest)]
        places = [self._place[digests[row]] for row in rows]
        self._rows[places] = features[rows]
        for place in places:
            self._held[place] = 1

    def rows(self, digests: Sequence[bytes]) -> Tensor:
        """Rows ``[N, D]`` in this order."""
        assert self._rows is not None
        return self._rows[[self._place[digest] for digest in digests]]


def _pace(begun: tuple[int, float] | None, now: tuple[int, float], total: int) -> str:
    """Rate and time left, by what came after the first shard, which compiling and starting workers slow.

    Args:
        begun: images and seconds of the first shard; None if there is no other yet.
        now: images and seconds so far.
        total: images.
    """
    if begun is None:
        return ""
    rate = (now[0] - begun[0]) / max(now[1] - begun[1], 1e-9)
    return f", {rate:.1f} images/s, {tqdm.format_interval((total - now[0]) / rate)} left"


def _whole_batches(rows: int, batch_size: int) -> int:
    """At most `rows` and `ROWS` rows in whole batches; one batch at least, if a shard holds it."""
    rows = min(rows, ROWS)
    return max(rows // batch_size, 1) * batch_size if batch_size <= ROWS else ROWS


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time, where there is a terminal, for what takes a moment."""
    with tqdm(total=total, desc=what, unit="img", leave=False, disable=None, delay=0.5) as bar:

        def update(count: int) -> None:
            bar.update(count)

        yield update


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("Damaged features %s can't be removed (%s).", path, error.strerror)
