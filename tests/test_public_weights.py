"""Downloads from a real HTTP server in a thread."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prunedeploy.public_weights import WEIGHTS, PublicFile, fetch_file, weights_of
from prunedeploy_engines.errors import DownloadError

CONTENT = os.urandom(1_000_003)
FILE = PublicFile("https://unreachable.invalid/files/some.weights", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Server(ThreadingHTTPServer):
    """Serves ``content`` under every path that ends in .weights."""

    daemon_threads = True
    content = CONTENT
    ranges = True
    cut_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        if not self.path.endswith(".weights"):
            self.send_error(404)
            return
        body, start = self.server.content, 0
        if asked and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = len(body) if self.server.cut_after is None else start + self.server.cut_after
        self.wfile.write(body[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server: Server, folder: Path, **more) -> Path:
    return fetch_file(FILE, folder, base_url=server.url, **more)


def refused(server: Server, folder: Path) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(server, folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "some.weights").exists()
    return str(caught.value)


def test_a_file_arrives_whole_and_progress_is_told(server, tmp_path):
    told = []
    path = fetch(server, tmp_path / "new" / "folder", progress=told.append)
    assert path == tmp_path / "new" / "folder" / "some.weights"
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["some.weights"]
    assert sum(told) == len(CONTENT)
    assert min(told) >= 0


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_another_file_of_that_name_is_left_alone(server, tmp_path):
    (tmp_path / "some.weights").write_bytes(b"my own training")
    with pytest.raises(DownloadError, match="another file of this name"):
        fetch(server, tmp_path)
    assert (tmp_path / "some.weights").read_bytes() == b"my own training"
    assert server.requests == []


def test_a_broken_download_is_continued_where_it_broke(server, tmp_path):
    server.cut_after = 400_000
    assert "the connection broke off after 400000 of 1000003 bytes" in refused(server, tmp_path)
    assert "the connection broke off after 800000 of 1000003 bytes" in refused(server, tmp_path)
    server.cut_after = None
    told = []
    assert fetch(server, tmp_path, progress=told.append).read_bytes() == CONTENT
    assert (told[0], sum(told)) == (800_000, len(CONTENT))
    assert server.requests == [None, "bytes=400000-", "bytes=800000-"]


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "some.weights.part").write_bytes(CONTENT[:1234])
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1234-"]


def test_a_complete_part_needs_no_server(server, tmp_path):
    (tmp_path / "some.weights.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_a_part_that_is_too_long_is_started_again(server, tmp_path):
    (tmp_path / "some.weights.part").write_bytes(CONTENT + b"x")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None]


def test_a_wrong_checksum_is_refused_and_the_part_removed(server, tmp_path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    assert "SHA-256" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_found_by_the_checksum(server, tmp_path):
    (tmp_path / "some.weights.part").write_bytes(b"0" * 1234)
    assert "SHA-256" in refused(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_file_of_another_length_is_refused_before_it_is_fetched(server, tmp_path):
    server.content = b"<html>moved</html>"
    assert "the server offers 18 bytes" in refused(server, tmp_path)


def test_no_such_file_on_the_server(server, tmp_path):
    with pytest.raises(DownloadError, match="the server says 404 Not Found"):
        fetch_file(PublicFile("https://x.invalid/other.txt", 3, "0" * 64), tmp_path, base_url=server.url)


def test_connection_refused(tmp_path):
    with socket.socket() as placeholder:  # bound and not listening: nobody else gets this port
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        with pytest.raises(DownloadError, match=r"cannot be reached .*check the network connection"):
            fetch_file(FILE, tmp_path, base_url=f"http://127.0.0.1:{port}")


def test_no_such_host(tmp_path):
    with pytest.raises(DownloadError, match=r"unreachable\.invalid.*(cannot be reached|the server says)"):
        fetch_file(FILE, tmp_path)


def test_an_address_that_is_no_url(tmp_path):
    with pytest.raises(DownloadError, match="not an http or https address"):
        fetch_file(FILE, tmp_path, base_url="file:///etc")


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(server, tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, the disk that is always full, is not there")
def test_a_full_disk_is_named(server, tmp_path):
    (tmp_path / "some.weights.part").symlink_to("/dev/full")
    message = refused(server, tmp_path)
    assert "the disk is full; free space" in message
    assert "run the command again to continue" in message


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(DownloadError, match="yolov3-tiny"):
        weights_of("yolov9")


def test_the_table_describes_the_genuine_tiny_weights(server, tmp_path, shared):
    server.content = (shared / "real" / "yolov3-tiny" / "yolov3-tiny.weights").read_bytes()
    path = fetch_file(weights_of("yolov3-tiny"), tmp_path, base_url=server.url)
    assert path.name == "yolov3-tiny.weights"
    assert path.read_bytes() == server.content


def test_sizes_in_the_table_are_whole_floats_behind_a_20_byte_header():
    assert set(WEIGHTS) == {"yolov3", "yolov3-tiny", "yolov3-spp"}
    assert (WEIGHTS["yolov3"].size - 20) // 4 == 62_001_757
    for file in WEIGHTS.values():
        assert (file.size - 20) % 4 == 0
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
