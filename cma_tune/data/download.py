"""Downloads that go on where they broke, with a checksum; standard library only."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cma_tune.errors import UserError
from cma_tune.files import write_json

TIMEOUT = 10.0
"""Seconds to wait for a connection or the next bytes."""

ATTEMPTS = 3
"""Times that a broken download is taken up again by itself while none of them brings anything."""

PAUSE = 1.0
"""Seconds before a broken download is taken up again."""

BLOCK = 2**18


class OfflineError(UserError):
    """The server can't be reached at all."""


def download(url: str, path: Path, md5: str | None = None, say: Callable[[str], None] = print) -> Path:
    """Download `url` to `path`, going on from what an earlier, broken attempt left in ``PATH.part``.

    A partial file is gone on with only where the server still has the same file (ETag or modification time);
    else it is begun anew. `path` appears only when everything is there and the checksum is right.

    Args:
        url: http or https.
        path: the file; if it exists, nothing is done but comparing its checksum, and one of another is put
            aside (`put_aside`) and downloaded.
        md5: checksum in hex, as the dataset's authors or torchvision publish it.
        say: told what happens.

    Raises:
        OfflineError: the server can't be reached; what came before is kept.
        UserError: the server refuses, the connection breaks again and again (what came is kept), or the
            checksum is another.
    """
    if path.is_file():
        if md5 is None or (found := _md5(path)) == md5:
            return path
        say(f"{path}: its MD5 is {found}, not {md5}; it is kept as {put_aside(path).name}, to be downloaded")
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"Expected an http or https address, got {url}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, about = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    failures, reached = 0, False
    while True:
        before = _size(part)
        trouble = _go_on(url, part, about, say, reached)
        if trouble is None:
            break
        reached = True
        failures = 0 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise UserError(
                f"Expected the whole of {url}, but the connection broke after {_size(part):,} bytes "
                f"({trouble}); they are kept in {part}, and the same command goes on from there."
            )
        say(f"connection broke after {_size(part):,} bytes, going on")
        time.sleep(PAUSE)
    if md5 is not None and (found := _md5(part)) != md5:
        part.unlink()
        about.unlink(missing_ok=True)
        raise UserError(
            f"Expected a file with MD5 {md5} at {url}, got {found}; it was removed, fetch it again or "
            "download it by hand."
        )
    os.replace(part, path)
    about.unlink(missing_ok=True)
    return path


def put_aside(path: Path) -> Path:
    """Call a file that is not what it should be ``PATH.bad``, since it may be the user's; gives that path."""
    return path.replace(path.with_name(f"{path.name}.bad"))


def _go_on(url: str, part: Path, about: Path, say: Callable[[str], None], reached: bool) -> str | None:
    """Fetch what is missing of `part`; None when it is whole, else why it is not.

    Args:
        url, part, about, say: see `download`.
        reached: whether the server has answered before, so that it may do so again.
    """
    have, mark = _size(part), _mark(about, url)
    headers = {"User-Agent": "cma_tune", "Accept-Encoding": "identity"}
    if have and mark:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after what we have, or another file by now
            part.unlink()
            return "it has changed on the server"
        if error.code >= 500:
            return f"the server says {error.code}"
        raise UserError(
            f"Expected a file at {url}, but the server says {error.code} {error.reason}; download it by hand."
        ) from None
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if have and (reached or not isinstance(error, URLError)):
            return str(reason)
        kept = f"; the {have:,} bytes that came before are kept in {part}" if have else ""
        raise OfflineError(
            f"Expected a network connection to {urlsplit(url).netloc}, got none ({reason}){kept}; go online "
            "or download by hand."
        ) from None
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length is not None else None
        if not resumed:
            mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
            # A weak ETag promises nothing about bytes.
            write_json(about, {"url": url, "mark": None if (mark or "").startswith("W/") else mark})
        shown = f"{total / 1e6:,.1f} MB" if total is not None else "unknown size"
        say(f"{url} ({shown}{f', going on after {have:,} bytes' if resumed else ''})")
        try:
            with open(part, "ab" if resumed else "wb") as handle:
                while block := response.read(BLOCK):
                    handle.write(block)
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        except OSError as error:
            raise UserError(
                f"Expected to write {part}, but it can't be written ({error.strerror})."
            ) from None
    if total is not None and _size(part) < total:
        return f"{total:,} bytes were promised"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _mark(about: Path, url: str) -> str | None:
    """What tells the server's file from a changed one, if the partial file is of this address."""
    try:
        content: Any = json.loads(about.read_text(encoding="utf-8"))
        return str(content["mark"]) if content["url"] == url and content["mark"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.hexdigest()
