"""`cma-tune data fetch` on a local server."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from web_server import Server, free_port, silent, zip_of

from cma_tune.cli import main
from cma_tune.data import fetch as fetch_module
from cma_tune.data.catalog import ENTRIES, CatalogEntry
from cma_tune.data.download import OfflineError, download
from cma_tune.data.fetch import Archive, fetch, fetch_hub
from cma_tune.data.hub_repositories import HubForm
from cma_tune.data.miniature import write_miniature
from cma_tune.data.miniature_hub import write_hub_miniature
from cma_tune.data.sources import load_dataset
from cma_tune.errors import UserError


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
    # An empty folder would look like a dataset's.
    assert [path.name for path in tmp_path.iterdir()] == []


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
    assert not (eurosat / ".downloads").exists()
    asked = len(server.asked)
    # Killed while unpacking: the archive is still there, and is unpacked again.
    (eurosat / ".downloads").mkdir()
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
    assert not (root / ".downloads").exists()
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
def test_a_damaged_archive_on_disk_is_kept_and_another_downloaded(
    with_checksum: bool, server: Server, eurosat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_checksum:
        monkeypatch.setitem(fetch_module.ARCHIVES, "eurosat", Archive(f"{server.url}/eurosat.zip"))
    (eurosat / ".downloads").mkdir(parents=True)
    archive = eurosat / ".downloads/eurosat.zip"
    damaged = server.files["/eurosat.zip"][:5000]
    archive.write_bytes(damaged)
    said: list[str] = []
    left = fetch("eurosat", eurosat, said.append)
    if with_checksum:
        assert left == [] and any("is kept as eurosat.zip.bad, to be downloaded" in text for text in said)
    else:
        (text,) = left
        assert "Expected a whole tar or zip archive" in text
        assert f"{archive} is kept as eurosat.zip.bad; the same command downloads it again" in text
        assert not archive.exists()
        assert fetch("eurosat", eurosat, silent) == []
    assert len(load_dataset("eurosat", eurosat).split.test) == 10
    assert [path.name for path in (eurosat / ".downloads").iterdir()] == ["eurosat.zip.bad"]
    assert (eurosat / ".downloads/eurosat.zip.bad").read_bytes() == damaged


def test_nothing_that_came_before_is_lost_offline(
    eurosat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(fetch_module, "DRIVE", f"{nowhere}/?id=")
    archive = Archive(f"{nowhere}/eurosat.zip", "0" * 32)
    monkeypatch.setitem(fetch_module.ARCHIVES, "eurosat", archive)
    downloads = eurosat / ".downloads"
    downloads.mkdir(parents=True)
    (downloads / "eurosat.zip.part").write_bytes(b"begun")
    (downloads / "eurosat.zip").write_bytes(b"put here by hand")
    _, images = fetch("eurosat", eurosat, print)
    assert "broke" not in (out := capsys.readouterr().out) and "is kept as eurosat.zip.bad" in out
    assert images.startswith("images: Expected a network connection to 127.0.0.1")
    assert f"the 5 bytes that came before are kept in {downloads}/eurosat.zip.part; go online" in images
    kept = {path.name: path.read_bytes() for path in downloads.iterdir()}
    assert kept == {"eurosat.zip.part": b"begun", "eurosat.zip.bad": b"put here by hand"}


def test_an_archive_without_the_lists_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_miniature("fgvc_aircraft", tmp_path / "origin", (1, 1, 1))
    small("fgvc_aircraft", (100, 100, 100), monkeypatch)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(tmp_path / "origin/fgvc_aircraft/images", "data/images")
    server.files["/a.tgz"] = (tmp_path / "a.tgz").read_bytes()
    monkeypatch.setitem(fetch_module.ARCHIVES, "fgvc_aircraft", Archive(f"{server.url}/a.tgz", None, "data"))
    (text,) = fetch("fgvc_aircraft", tmp_path / "root", silent)
    assert text.startswith("split: still lists that can't be read: 4 (first: variants.txt; images_variant_tr")
    assert text.endswith(
        f" The lists come with the images' archive, {server.url}/a.tgz; put variants.txt, "
        "images_variant_train.txt, images_variant_val.txt, images_variant_test.txt into "
        f"{tmp_path}/root/fgvc_aircraft."
    )
    assert "None" not in text


def test_a_hostile_archive_is_not_kept(server: Server, eurosat: Path, tmp_path: Path) -> None:
    hostile = zip_of({"2750/a.jpg": b"a", "../evil.jpg": b"evil"}, tmp_path / "hostile.zip").read_bytes()
    server.files["/eurosat.zip"] = hostile
    fetch_module.ARCHIVES["eurosat"] = Archive(f"{server.url}/eurosat.zip")
    (text,) = fetch("eurosat", eurosat, silent)
    assert "got '../evil.jpg'; nothing was unpacked" in text and "was removed" in text
    assert not (eurosat / ".downloads").exists() and not list(tmp_path.rglob("evil*"))


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
