"""Opening a `datasets` table: from the Hub, which may be out of reach, or from a local folder."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cma_tune.errors import UserError

CONNECT_SECONDS = 5.0
"""How long the Hub may take to answer before it counts as out of reach."""


def open_table(place: str) -> Mapping[str, Any]:
    """Parts by name, from the Hub, a folder of parquet files or images, or ``save_to_disk``'s folder."""
    import datasets

    local = Path(place).expanduser()
    reachable = local.exists() or _hub_answers()
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            table = datasets.load_from_disk(str(local))
        else:
            with contextlib.nullcontext() if reachable else _offline():
                table = datasets.load_dataset(str(local) if local.is_dir() else place)
    except Exception as error:  # what `datasets` raises for a wrong or unreachable place has no common base
        if not reachable:
            raise UserError(
                f"Expected a network connection to the Hub for '{place}', got none, and no copy was kept "
                "from before; go online, or name a local folder."
            ) from None
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"Expected a dataset at '{place}' (a Hub repository or a local folder), "
            f"but it can't be opened ({reason}); check the name and the network."
        ) from None
    return table if isinstance(table, dict) else {"train": table}


def _hub_answers() -> bool:
    """Whether the Hub can be reached; where a proxy or offline mode decides that, it is taken to be."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or {"http", "https", "all"} & set(getproxies()):
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Look into the cache at once, where the libraries would try to connect for half a minute."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
