"""BCCD from a real HTTP server: an archive as its repository gives it, and others."""

from __future__ import annotations

import functools
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunedeploy.cli import cli
from prunedeploy.data.bccd import fetch_bccd
from prunedeploy_engines.errors import DownloadError, StoreError


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that its files have."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def pack(source: Path, archive: Path, **changed: bytes) -> None:
    """The archive of the repository: what is wanted, and other files."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = path.relative_to(source).as_posix()
                content = changed.get(path.stem, path.read_bytes())
                packed.writestr(f"BCCD_Dataset-d272fb1/{'' if name == 'LICENSE' else 'BCCD/'}{name}", content)
        packed.writestr("BCCD_Dataset-d272fb1/README.md", "# BCCD")
        packed.writestr("BCCD_Dataset-d272fb1/scripts/split.py", "print()")


def test_the_published_files_arrive_with_their_licence_and_a_second_call_asks_for_nothing(served, shared, tmp_path):
    folder, address = served
    pack(shared / "real" / "bccd", folder / "bccd.zip")
    done = CliRunner().invoke(cli, ["data", "bccd", str(tmp_path / "bccd"), "--mirror", f"{address}/bccd.zip"])
    assert done.exit_code == 0, done.output
    arrived = {path.relative_to(tmp_path / "bccd") for path in (tmp_path / "bccd").rglob("*") if path.is_file()}
    assert arrived == {
        path.relative_to(shared / "real" / "bccd") for path in (shared / "real" / "bccd").rglob("*") if path.is_file()
    }
    assert "shenggan" in (tmp_path / "bccd" / "LICENSE").read_text()
    (folder / "bccd.zip").unlink()
    fetch_bccd(tmp_path / "bccd", f"{address}/bccd.zip")


def test_one_changed_photo_is_refused_and_nothing_is_left(served, shared, tmp_path):
    folder, address = served
    pack(shared / "real" / "bccd", folder / "bccd.zip", BloodImage_00100=b"another photo")
    with pytest.raises(DownloadError, match="is not BCCD as it was published: 733 files"):
        fetch_bccd(tmp_path / "bccd", f"{address}/bccd.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"served"}


def test_what_is_no_archive_is_one_line(served, tmp_path):
    folder, address = served
    (folder / "bccd.zip").write_bytes(b"<html>not here</html>")
    with pytest.raises(DownloadError, match="is not a whole zip archive"):
        fetch_bccd(tmp_path / "bccd", f"{address}/bccd.zip")
    with pytest.raises(DownloadError, match="404"):
        fetch_bccd(tmp_path / "bccd", f"{address}/other.zip")
    assert not (tmp_path / "bccd").exists()


def test_an_endless_answer_ends(served, tmp_path, monkeypatch):
    folder, address = served
    monkeypatch.setattr("prunedeploy.data.bccd.MOST_BYTES", 1 << 20)
    (folder / "bccd.zip").write_bytes(bytes(3 << 20))
    with pytest.raises(DownloadError, match="is longer than 1 MB"):
        fetch_bccd(tmp_path / "bccd", f"{address}/bccd.zip")


def test_a_folder_with_something_else_stays(served, tmp_path):
    _, address = served
    (tmp_path / "bccd").mkdir()
    (tmp_path / "bccd" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="does not hold BCCD"):
        fetch_bccd(tmp_path / "bccd", f"{address}/bccd.zip")
    assert (tmp_path / "bccd" / "mine.txt").read_text() == "mine"
