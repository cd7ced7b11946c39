"""Small files are written whole or not at all, and read with one clear sentence if they can't be."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cma_tune.errors import UserError
from cma_tune.files import read_json, write_atomically, write_json, write_text


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"λ": [0.1, None, True], "name": "naïve"}
    write_json(tmp_path / "deep/er/a.json", content)
    assert read_json(tmp_path / "deep/er/a.json", "it") == content
    assert "naïve" in (tmp_path / "deep/er/a.json").read_text(encoding="utf-8")
    assert [file.name for file in (tmp_path / "deep/er").iterdir()] == ["a.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_json_leave_the_old_file(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"accuracy": value})
    assert read_json(tmp_path / "a.json", "it") == 1


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a.txt", fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_json(path, [number] * 2000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content = read_json(path, "it")
            assert len(content) == 2000 and len(set(content)) == 1
    assert not failures
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path, length = tmp_path / "a.txt", 20_000_000
    script = (
        "import sys, pathlib; from cma_tune.files import write_text\n"
        f"texts = [digit * {length} for digit in '0123456789']\n"
        "for n in range(10**6): write_text(pathlib.Path(sys.argv[1]), texts[n % 10]); print(n, flush=True)"
    )
    generator = random.Random(0)
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()  # it has written once
        time.sleep(generator.uniform(0, 0.1))
        writer.kill()
        writer.communicate()
        content = path.read_bytes()
        assert len(content) == length and content == content[:1] * length
    torn = [file for file in tmp_path.iterdir() if file != path]
    assert torn  # some kill came in the middle of a write
    assert all(file.name.startswith(".a.txt.") and file.name.endswith(".tmp") for file in torn)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"Expected the card at {tmp_path}/a\.json, but there is no such file"
    ):
        read_json(tmp_path / "a.json", "the card")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"Expected the card at {tmp_path}, but it can't be opened \(Is a dir"
    ):
        read_json(tmp_path, "the card")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'a': 1}", b"\xff", b"[" * 100_000, json.dumps([1]).encode()[:-1]]
)
def test_a_file_that_is_not_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"the card at .*a\.json to be JSON, but it can't be read .*replace"):
        read_json(tmp_path / "a.json", "the card")
