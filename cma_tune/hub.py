"""The Hugging Face Hub: learned things come from a local folder or a repository, and go to one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cma_tune.clip.sources import HUB, hub_found
from cma_tune.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


MESSAGE = "A learned prompt of cma_tune"
"""Of a commit, unless it is given another."""


def hub_name(source: str | Path) -> str | None:
    """``ORG/NAME`` if `source` names a repository: a text of that form that is no local folder or file."""
    if isinstance(source, Path):
        return None
    name = source.removeprefix(HUB)
    if not _NAME.fullmatch(name) or (name == source and Path(source).exists()):
        return None
    return name


def local_folder(
    source: str | Path, files: Sequence[str], what: str, local_files_only: bool = False, **download: Any
) -> Path:
    """The folder itself, or one in the Hub's cache with the `files` of a repository.

    Args:
        source: a folder, ``ORG/NAME`` or ``hf-hub:ORG/NAME``; what exists locally is taken first.
        files: names or patterns of what is fetched; nothing else is.
        what: names it in an error.
        local_files_only: take it from the cache, whatever the Hub has.
        download: `revision`, `token`, `cache_dir` and `force_download` of huggingface_hub's
            `snapshot_download`.

    Raises:
        UserError: there is no such repository, or the Hub can't be reached and its cache lacks it.
    """
    name = hub_name(source)
    if name is None:
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    with _one_sentence(f"Expected {what} in a folder {source} or in the repository {name} of the Hub"):
        offline = local_files_only or not hub_found()
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=offline, **download))


def upload(folder: Path, name: str, private: bool | None, token: str | None = None, **commit: Any) -> str:
    """Put all files of `folder` into a repository, made if it is missing, and return its URL.

    Args:
        folder: of the files.
        name: ``ORG/NAME``.
        private: whether it is made for its owner alone; None leaves it to the organisation.
        token: if not that of the login.
        commit: more of `huggingface_hub.HfApi.upload_folder`, such as `commit_message` or `revision`.

    Raises:
        UserError: `name` is not ``ORG/NAME``, nobody is logged in, or the Hub refuses or can't be reached.
    """
    check_repository(name)
    from huggingface_hub import HfApi

    expected = f"Expected to write to the repository {name} of the Hub"
    if not hub_found():
        raise UserError(f"{expected}, but the Hub can't be reached; check the connection.")
    with _one_sentence(expected):
        api = HfApi(token=token)
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, **{"commit_message": MESSAGE, **commit})
    return str(url)


def check_repository(name: str) -> None:
    """Raise a `UserError` if `name` is not of the form ``ORG/NAME``."""
    if not _NAME.fullmatch(name):
        raise UserError(f"Expected --repo of the form ORG/NAME, got '{name}'.")


@contextmanager
def _one_sentence(expected: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise UserError(
            f"{expected}, but the Hub can't be reached and nothing is here; check the name or the connection."
        ) from None
    except errors.LocalTokenNotFoundError:
        raise UserError(f"{expected}, but nobody is logged in; log in with 'hf auth login'.") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"{expected}, but {_refusal(error)}.") from None
    except Exception as error:
        # Which HTTP client there is depends on huggingface_hub's version; other exceptions are mistakes here.
        if not type(error).__module__.startswith(("httpx", "requests", "huggingface_hub")):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{expected}, but it failed ({type(error).__name__}: {reason}).") from None


def _refusal(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the name, or log in with 'hf auth login'"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "the Hub knows no right to do so; log in with 'hf auth login'"
    text = " ".join(str(error).split())
    return f"the Hub refused: {text[:300]}"
