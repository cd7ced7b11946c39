"""The Hugging Face Hub: learned things come from a local folder or a repository, and go to one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cma_tune.clip.sources import HUB, hub_found
from cma_tune.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_name(source: str | Path) -> str | None:
    """``ORG/NAME`` if `source` names a repository: a text of that form that is no local folder or file."""
    if isinstance(source, Path):
        return None
    name = source.removeprefix(HUB)
    if not _NAME.fullmatch(name) or (name == source and Path(source).exists()):
        return None
    return name


def local_folder(source: str | Path, files: Sequence[str], what: str) -> Path:
    """The folder itself, or one in the Hub's cache with the `files` of a repository.

    Args:
        source: a folder, ``ORG/NAME`` or ``hf-hub:ORG/NAME``; what exists locally is taken first.
        files: names or patterns of what is fetched; nothing else is.
        what: names it in an error.

    Raises:
        UserError: there is no such repository, or the Hub can't be reached and its cache lacks it.
    """
    name = hub_name(source)
    if name is None:
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    with _one_sentence(f"Expected {what} in a folder {source} or in the Hub's repository {name}"):
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=not hub_found()))


def upload(folder: Path, name: str, private: bool) -> str:
    """Put all files of `folder` into a repository, made if it is missing, and return its URL.

    Raises:
        UserError: `name` is not ``ORG/NAME``, nobody is logged in, or the Hub refuses or can't be reached.
    """
    check_repository(name)
    from huggingface_hub import HfApi

    with _one_sentence(f"Expected to write to the Hub's repository {name}"):
        if not hub_found():
            raise ConnectionError
        api = HfApi()
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A learned prompt of cma_tune")
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
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        # Refusals of the Hub are HTTP errors, which are OSErrors too; what is left are connections.
        if isinstance(error, errors.HfHubHTTPError):
            raise UserError(f"{expected}, but {_refusal(error)}.") from None
        raise UserError(
            f"{expected}, but there is none here and the Hub can't be reached; "
            "check the path or the connection."
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{expected}, but it is no name of a repository: {error}.") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "requests", "huggingface_hub"):
            raise
        raise UserError(f"{expected}, but the connection failed ({type(error).__name__}: {error}).") from None


def _refusal(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the name, or log in with 'hf auth login'"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "the Hub knows no right to do so; log in with 'hf auth login'"
    text = " ".join(str(error).split())
    return f"the Hub refused: {text[:300]}"
