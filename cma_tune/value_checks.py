"""Mistakes in single values of a config: a `UserError` with the flag, what is expected and what came."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cma_tune.errors import UserError, typed


def check_output(output: str | Path, written: bool = True) -> None:
    """A folder, or nothing yet; where it is written to, this can be done."""
    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"Expected a folder for --output, got the file {output}.")
    if written:
        check_writable("output", output)


def check_writable(flag: str, folder: str | Path) -> None:
    """A folder in which something can be written, or a place where such a folder can be made."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    try:
        # Permissions don't tell of read-only and special file systems.
        with tempfile.TemporaryDirectory(dir=place, prefix=".cma-tune-"):
            pass
    except OSError as error:
        raise UserError(
            f"Expected a folder that can be written to for --{typed(flag)}, got {folder} "
            f"({error.strerror or error}); name another place."
        ) from None


def check_file_to_write(flag: str, path: str | Path) -> None:
    """A file, or nothing yet, in a folder in which something can be written."""
    if Path(path).is_dir():
        raise UserError(f"Expected a file for --{typed(flag)}, got the folder {path}; add a file's name.")
    check_writable(flag, Path(path).parent)


def check_axis(name: str, values: Sequence[object]) -> None:
    """At least one value, and none twice."""
    if not values:
        raise UserError(f"Expected at least one value for --{name}, got none.")
    if len(set(values)) < len(values):
        raise UserError(f"Expected every value of --{name} once, got {values}.")


def check_seeds(seeds: Sequence[int]) -> None:
    """An axis of seeds that every generator takes."""
    check_axis("seeds", seeds)
    for seed in seeds:
        if not 0 <= seed < 2**32:  # NumPy's generator takes no others
            raise UserError(f"Expected --seeds from 0 to {2**32 - 1}, got {seed}.")


def above_zero(flag: str, value: float) -> None:
    """Finite and above 0."""
    if not 0 < value < math.inf:
        raise UserError(f"Expected a finite --{typed(flag)} above 0, got {value}.")


def not_negative(flag: str, value: float) -> None:
    """Finite and at least 0."""
    if not 0 <= value < math.inf:
        raise UserError(f"Expected a finite --{typed(flag)} of at least 0, got {value}.")


def from_0_to_1(flag: str, value: float) -> None:
    """Both ends included."""
    if not 0 <= value <= 1:
        raise UserError(f"Expected --{typed(flag)} between 0 and 1, got {value}.")


def at_least(flag: str, value: int, least: int) -> None:
    """`least` included."""
    if value < least:
        raise UserError(f"Expected --{typed(flag)} of at least {least}, got {value}.")
