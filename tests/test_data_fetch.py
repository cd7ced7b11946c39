"""Downloads that break and go on, archives that lead outside, and `cma-tune data fetch` on a local server."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest

from cma_tune.cli import main
from cma_tune.data import download as download_module
from cma_tune.data import fetch as fetch_module
from cma_tune.data.archives import extract
from cma_tune.data.catalog import ENTRIES, CatalogEntry
from cma_tune.data.download import OfflineError, download
from cma_tune.data.fetch import Archive, fetch, fetch_hub
from cma_tune.data.hub_repositories import HubForm
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature
from cma_tune.data.sources import load_dataset
from cma_tune.errors import UserError

CONTENT = bytes(range(256)) * 40


class Server:
    """A web server that knows byte ranges and breaks connections when told to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []  # bytes sent before a connection is cut, one per request to come
        self.asked: list[str | None] = []  # the Range of every request
        self.etag = '"one"'
        self.ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        content, wanted = self.files.get(request.path), request.headers.get("Range")
        self.asked.append(wanted)
        if content is None:
            request.send_error(404)
            return
        start = 0
        if wanted and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("ETag", self.etag)
        request.end_headers()
        end = start + self.break_after.pop(0) if self.break_after else len(content)
        request.wfile.write(content[start:end])
        request.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server = Server()
    server.files["/file"] = CONTENT
    yield server
    server.http.shutdown()
    server.http.server_close()


def silent(text: str) -> None:
    pass


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_offline_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "DRIVE", f"http://127.0.0.1:{free_port()}/?id=")
    monkeypatch.delenv("http_proxy", raising=False)
    archive = Archive(f"http://127.0.0.1:{free_port()}/dtd-r1.0.1.tar.gz")
    monkeypatch.setitem(fetch_module.ARCHIVES, "dtd", archive)
    with pytest.raises(OfflineError):
        download(archive.url, tmp_path / "file", say=silent)
    started = time.perf_counter()
    split, images = fetch("dtd", tmp_path, silent)
    assert time.perf_counter() - started < 2
    assert split.startswith("split file: Expected a network connection to 127.0.0.1")
    assert f"put it at {tmp_path}/dtd/split_zhou_DescribableTextures.json" in split
    assert images.startswith("images: Expected a network connection to 127.0.0.1")
    assert f"unpack them as {tmp_path}/dtd/images" in images and "dtd-r1.0.1.tar.gz" in images
    assert not (tmp_path / "dtd").exists()  # an empty folder would look like a dataset's


def tar_of(entries: dict[str, bytes | str], path: Path) -> Path:
    """A gzipped tar; a text value makes a symbolic link to it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def zip_of(entries: dict[str, bytes], path: Path, link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            packed.writestr(info, content)
    return path


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


def small(name: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """Have the catalogue expect a miniature's images."""
    monkeypatch.setitem(ENTRIES, name, replace(ENTRIES[name], sizes=sizes))
    return ENTRIES[name]


@pytest.fixture
def eurosat(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server has a miniature EuroSAT as archive and split file; gives an empty data root."""
    folder = write_miniature("eurosat", tmp_path / "origin", (1, 1, 1))
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "2750").rglob("*.jpg"))}
    server.files["/eurosat.zip"] = zip_of(files, tmp_path / "eurosat.zip").read_bytes()
    entry = small("eurosat", (10, 10, 10), monkeypatch)
    server.files[f"/drive?id={entry.split_drive_id}"] = (folder / str(entry.split_file)).read_bytes()
    md5 = hashlib.md5(server.files["/eurosat.zip"]).hexdigest()
    monkeypatch.setattr(fetch_module, "DRIVE", f"{server.url}/drive?id=")
    monkeypatch.setitem(fetch_module.ARCHIVES, "eurosat", Archive(f"{server.url}/eurosat.zip", md5))
    return tmp_path / "root"


def test_fetch_brings_split_and_images(
    server: Server, eurosat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.break_after = [10**9, 2000, 0, 0, 0]  # no network in the middle of the images
    with pytest.raises(SystemExit) as exit_code:
        main(["data", "fetch", "eurosat", "--data-root", str(eurosat)])
    assert exit_code.value.code == 1
    out = capsys.readouterr().out
    assert "images: Expected the whole of" in out and "broke after 2,000 bytes" in out
    assert "the same command goes on from there" in out and out.endswith(f"not complete below {eurosat}\n")
    assert (eurosat / ".downloads/eurosat.zip.part").stat().st_size == 2000
    main(["data", "fetch", "eurosat", "--data-root", str(eurosat)])
    assert server.asked[-1] == "bytes=2000-"
    assert "eurosat: complete below" in capsys.readouterr().out
    dataset = load_dataset("eurosat", eurosat)
    assert len(dataset.split.test) == 10 and dataset.origin == "published split split_zhou_EuroSAT.json"
    assert list((eurosat / ".downloads").iterdir()) == []
    asked = len(server.asked)
    # Killed while unpacking: the archive is still there, and is unpacked again.
    (eurosat / ".downloads/eurosat.zip").write_bytes(server.files["/eurosat.zip"])
    shutil.rmtree(eurosat / "eurosat/2750/River")
    assert fetch("eurosat", eurosat, silent) == []
    assert len(load_dataset("eurosat", eurosat).split.test) == 10
    assert fetch("eurosat", eurosat, silent) == [] and len(server.asked) == asked


def test_a_page_in_place_of_the_split_file_is_said(
    server: Server, eurosat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive_id = ENTRIES["eurosat"].split_drive_id
    server.files[f"/drive?id={drive_id}"] = b"<html>Google Drive can't scan this file</html>"
    with pytest.raises(SystemExit) as exit_code:
        main(["data", "fetch", "eurosat", "--data-root", str(eurosat)])
    assert exit_code.value.code == 1
    out = capsys.readouterr().out
    where = eurosat / "eurosat/split_zhou_EuroSAT.json"
    assert "split file: Expected the published split file" in out and "something else came" in out
    assert f"Download https://drive.google.com/file/d/{drive_id} in a browser and put it at {where}." in out
    assert (eurosat / "eurosat/2750").is_dir() and not where.exists()
    assert [p.name for p in (eurosat / "eurosat").iterdir()] == ["2750"]


def test_an_archive_inside_the_archive_and_another_archive(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_miniature("caltech101", tmp_path / "origin", (1, 1, 1))
    small("caltech101", (100, 100, 100), monkeypatch)
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as tar:
        tar.add(folder / "101_ObjectCategories", "101_ObjectCategories")
    inner = (tmp_path / "inner.tar.gz").read_bytes()
    packed = zip_of({"caltech-101/in.tar.gz": inner, "caltech-101/Annotations.tar": b"x"}, tmp_path / "c.zip")
    server.files["/c.zip"] = packed.read_bytes()
    archive = Archive(f"{server.url}/c.zip", None, "caltech-101", "in.tar.gz")
    monkeypatch.setitem(fetch_module.ARCHIVES, "caltech101", archive)
    root = tmp_path / "root"
    (root / "caltech-101").mkdir(parents=True)
    shutil.copy(folder / "split_zhou_Caltech101.json", root / "caltech-101")
    assert fetch("caltech101", root, silent) == []
    assert len(load_dataset("caltech101", root).split.train) == 100
    assert list((root / ".downloads").iterdir()) == []
    server.files["/c.zip"] = zip_of({"wrong/x.jpg": b"x"}, tmp_path / "w.zip").read_bytes()
    monkeypatch.setitem(fetch_module.ARCHIVES, "imagenet_a", Archive(f"{server.url}/c.zip"))
    (text,) = fetch("imagenet_a", root, silent)
    assert "to hold imagenet-a, but it holds other folders" in text


def test_what_is_damaged_is_named_and_brought_again(server: Server, eurosat: Path) -> None:
    split_file = eurosat / "eurosat/split_zhou_EuroSAT.json"
    (eurosat / "eurosat/2750").mkdir(parents=True)
    split_file.write_text("garbage")
    said: list[str] = []
    assert fetch("eurosat", eurosat, said.append) == []
    assert said[:2] == [
        "eurosat: split file: can't be read as JSON",
        f"eurosat: no images in {eurosat}/eurosat/2750",
    ]
    assert split_file.with_name("split_zhou_EuroSAT.json.replaced").read_text() == "garbage"
    assert len(load_dataset("eurosat", eurosat).split.train) == 10
    (eurosat / "eurosat/2750/River/River_1.jpg").unlink()
    content = json.loads(split_file.read_text())
    split_file.write_text(json.dumps({**content, "test": content["test"][:7]}))
    said.clear()
    assert fetch("eurosat", eurosat, said.append) == []
    assert said[:2] == [
        "eurosat: 7 instead of 10 test images",
        "eurosat: absent images: River/River_1.jpg",
    ]
    assert len(load_dataset("eurosat", eurosat).split.test) == 10


def test_one_host_out_of_reach_does_not_stop_the_other(
    server: Server, eurosat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = fetch_module.DRIVE
    monkeypatch.setattr(fetch_module, "DRIVE", f"http://127.0.0.1:{free_port()}/?id=")
    with pytest.raises(SystemExit) as exit_code:
        main(["data", "fetch", "eurosat", "--data-root", str(eurosat)])
    assert exit_code.value.code == 1
    out = capsys.readouterr().out
    assert "split file: Expected a network connection to 127.0.0.1" in out and "images:" not in out
    assert len(list((eurosat / "eurosat/2750").rglob("*.jpg"))) == 30
    monkeypatch.setattr(fetch_module, "DRIVE", reached)
    server.break_after = [100, 0, 0, 0]
    (text,) = fetch("eurosat", eurosat, silent)
    assert text.startswith("split file: Expected the whole of") and "broke after 100 bytes" in text
    assert fetch("eurosat", eurosat, silent) == []
    assert server.asked[-1] == "bytes=100-"
    assert len(load_dataset("eurosat", eurosat).split.test) == 10


@pytest.mark.parametrize("with_checksum", [True, False])
def test_a_damaged_archive_on_disk_is_downloaded_again(
    with_checksum: bool, server: Server, eurosat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_checksum:
        monkeypatch.setitem(fetch_module.ARCHIVES, "eurosat", Archive(f"{server.url}/eurosat.zip"))
    (eurosat / ".downloads").mkdir(parents=True)
    archive = eurosat / ".downloads/eurosat.zip"
    archive.write_bytes(server.files["/eurosat.zip"][:5000])
    said: list[str] = []
    left = fetch("eurosat", eurosat, said.append)
    if with_checksum:
        assert left == [] and any("removed and is downloaded again" in text for text in said)
    else:
        (text,) = left
        assert "Expected a whole tar or zip archive" in text
        assert f"{archive} was removed; the same command downloads it again" in text
        assert not archive.exists()
        assert fetch("eurosat", eurosat, silent) == []
    assert len(load_dataset("eurosat", eurosat).split.test) == 10


def test_a_hostile_archive_is_not_kept(server: Server, eurosat: Path, tmp_path: Path) -> None:
    hostile = zip_of({"2750/a.jpg": b"a", "../evil.jpg": b"evil"}, tmp_path / "hostile.zip").read_bytes()
    server.files["/eurosat.zip"] = hostile
    fetch_module.ARCHIVES["eurosat"] = Archive(f"{server.url}/eurosat.zip")
    (text,) = fetch("eurosat", eurosat, silent)
    assert "got '../evil.jpg'; nothing was unpacked" in text and "was removed" in text
    assert list((eurosat / ".downloads").iterdir()) == [] and not list(tmp_path.rglob("evil*"))


def test_a_miniature_is_not_taken_for_the_dataset(tmp_path: Path) -> None:
    write_miniature("eurosat", tmp_path, (1, 1, 1))
    with pytest.raises(UserError, match=r"Expected no miniature at .*eurosat"):
        fetch("eurosat", tmp_path, silent)


def test_what_can_not_be_fetched_is_said_exactly(tmp_path: Path) -> None:
    (sentence,) = fetch("imagenet", tmp_path, silent)
    assert "registration" in sentence and f"{tmp_path}/imagenet/images" in sentence
    assert "--data-root hub: (ILSVRC/imagenet-1k)" in sentence
    assert len((tmp_path / "imagenet/classnames.txt").read_text().splitlines()) == 1000
    assert json.dumps(fetch("imagenet_sketch", tmp_path, silent)).count("ImageNet-Sketch") == 1


def test_a_hub_repository_is_kept_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets.disable_progress_bars()
    repo = write_hub_miniature("dtd", tmp_path / "repo", (1, 0, 1))
    monkeypatch.setitem(fetch_module.HUB, "dtd", HubForm(str(repo)))
    (tmp_path / "root/dtd").mkdir(parents=True)  # empty, it is in nobody's way
    for _ in range(2):
        main(["data", "fetch", "dtd", "--form", "hub", "--data-root", str(tmp_path / "root")])
        assert f"use it with --data-root hub:{tmp_path}/root" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["dtd"]
    assert len(load_dataset("dtd", Path(f"hub:{tmp_path}/root")).split.test) == 47
    (tmp_path / "root/food101/images").mkdir(parents=True)
    for name, sentence in (("ucf101", "known Hub repository"), ("food101", "no folder, or a table")):
        with pytest.raises(UserError, match=sentence):
            fetch_hub(name, tmp_path / "root", silent)
