"""What the package logs, as plain sentences to the user of a command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Plainly(logging.Handler):
    """Says it on stderr, beside progress bars and not through them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, with the traceback where there is one."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def plain_messages() -> Iterator[None]:
    """Inside, messages of this package reach the user without level and module, and reach nobody else.

    Libraries give the root logger a form of their own, which would say everything once more.
    """
    log = logging.getLogger("cma_tune")
    handler = _Plainly()
    handler.setFormatter(logging.Formatter("cma-tune: %(message)s"))
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before
