"""Downloads that break and go on, archives that are damaged or lead outside."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from web_server import CONTENT, Server, silent, tar_of, zip_of

from cma_tune.data.archives import BadArchive, extract
from cma_tune.data.download import download
from cma_tune.errors import UserError


def test_a_broken_download_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after = [1000, 0, 3000]
    path = download(f"{server.url}/file", tmp_path / "x/file", hashlib.md5(CONTENT).hexdigest(), silent)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1000-", "bytes=4000-"]
    assert [file.name for file in path.parent.iterdir()] == ["file"]
    download(f"{server.url}/file", path, say=silent)
    assert len(server.asked) == 4  # what is there is not asked for again


def test_a_download_that_stays_broken_is_kept_and_the_next_command_goes_on(
    server: Server, tmp_path: Path
) -> None:
    server.break_after = [1234, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"broke after 1,234 bytes .*kept in .*file.part.*same command goes on"
    ):
        download(f"{server.url}/file", tmp_path / "file", say=silent)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1234] and not (tmp_path / "file").exists()
    assert download(f"{server.url}/file", tmp_path / "file", say=silent).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1234-"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_or_a_server_without_ranges_begins_anew(
    ranges: bool, server: Server, tmp_path: Path
) -> None:
    server.break_after = [500, 0, 0, 0]
    with pytest.raises(UserError):
        download(f"{server.url}/file", tmp_path / "file", say=silent)
    if ranges:
        server.files["/file"], server.etag = CONTENT[::-1], '"two"'
    server.ranges = ranges
    assert download(f"{server.url}/file", tmp_path / "file", say=silent).read_bytes() == server.files["/file"]


def test_a_wrong_checksum_and_a_missing_file_are_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MD5 0000 at http.*, got [0-9a-f]{32}; it was removed"):
        download(f"{server.url}/file", tmp_path / "file", "0000", silent)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"server says 404 .*by hand"):
        download(f"{server.url}/none", tmp_path / "file", say=silent)
    with pytest.raises(UserError, match="http or https"):
        download("file:///etc/hostname", tmp_path / "file", say=silent)


def test_archives_are_unpacked(tmp_path: Path) -> None:
    entries: dict[str, bytes | str] = {"top/a/1.jpg": b"one", "top/2.jpg": b"two", "other/3.jpg": b"three"}
    plain = {name: content for name, content in entries.items() if isinstance(content, bytes)}
    for number, archive in enumerate(
        (tar_of(entries, tmp_path / "x.tgz"), zip_of(plain, tmp_path / "x.zip"))
    ):
        target = tmp_path / f"out{number}"
        (target / "a").mkdir(parents=True)
        (target / "a/1.jpg").write_bytes(b"old")
        assert extract(archive, target, "top") == 2
        found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
        assert found == {"a/1.jpg": b"one", "2.jpg": b"two"}
        with pytest.raises(UserError, match=r"files below 'none' in .*got none"):
            extract(archive, target, "none")


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "a\\..\\evil.jpg", "C:/evil.jpg"]
)
def test_paths_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    entries: dict[str, bytes | str] = {"good.jpg": b"good", name: b"evil"}
    archives = (
        tar_of(entries, tmp_path / "x.tgz"),
        zip_of({"good.jpg": b"g", name: b"e"}, tmp_path / "x.zip"),
    )
    for archive in archives:
        with pytest.raises(UserError, match=r"paths inside the target folder in .*nothing was unpacked"):
            extract(archive, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_refused(tmp_path: Path) -> None:
    archives = (
        tar_of({"images": "/tmp", "images/x.jpg": b"x"}, tmp_path / "x.tgz"),
        zip_of({"images": b"/tmp"}, tmp_path / "x.zip", link=True),
    )
    for archive in archives:
        with pytest.raises(UserError, match=r"the link or device 'images'; nothing was unpacked"):
            extract(archive, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = tar_of({"1.jpg": b"one"}, tmp_path / "x.tgz")
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(
        UserError, match=r"No space left on device\); make room .*the archive is kept"
    ) as error:
        extract(archive, tmp_path / "out")
    assert not isinstance(error.value, BadArchive) and archive.is_file()


@pytest.mark.parametrize("suffix", ["tgz", "zip"])
def test_truncated_archives_leave_nothing(suffix: str, tmp_path: Path) -> None:
    noise = hashlib.shake_256(b"noise").digest(50_000)
    path = tmp_path / f"x.{suffix}"
    if suffix == "tgz":
        tar_of({"a.jpg": b"whole", "b.jpg": noise}, path)
    else:
        zip_of({"a.jpg": b"whole", "b.jpg": noise}, path)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(UserError, match=r"whole tar or zip archive at .*can't be unpacked .*fetch it again"):
        extract(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
