"""Downloads from a real HTTP server in a thread."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cfg_text import sections_of
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


def sha1_of_content(content: bytes = CONTENT) -> str:
    return hashlib.sha1(content).hexdigest()


def test_a_file_is_checked_by_sha_1_where_that_is_what_is_stated(server, tmp_path):
    right = PublicFile("https://x.invalid/some.weights", len(CONTENT), sha1=sha1_of_content())
    assert fetch_file(right, tmp_path, base_url=server.url).read_bytes() == CONTENT
    wrong = replace(right, sha1=sha1_of_content(b""))
    with pytest.raises(DownloadError, match=r"the content is not that of some\.weights: SHA-1"):
        fetch_file(wrong, tmp_path / "wrong", base_url=server.url)
    assert list((tmp_path / "wrong").iterdir()) == []


def test_without_a_checksum_the_size_is_what_is_checked(server, tmp_path):
    file = PublicFile("https://x.invalid/some.weights", len(CONTENT))
    assert file.checked_by is None
    assert fetch_file(file, tmp_path, base_url=server.url).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"the server offers 1000003 bytes, some\.weights has 1000004"):
        fetch_file(replace(file, size=len(CONTENT) + 1), tmp_path / "other", base_url=server.url)


def test_a_checksum_that_is_given_is_the_one_that_counts():
    given = weights_of("yolov2-voc", "AB" * 32)
    assert (given.sha256, given.sha1, given.checked_by) == ("ab" * 32, None, "sha256")
    assert weights_of("yolov2-voc").checked_by == "sha1"
    with pytest.raises(DownloadError, match="is not a SHA-256"):
        weights_of("yolov2-voc", "ab" * 31)


def test_first_layers_are_cut_from_the_genuine_weights_as_darknet_cuts_them(server, tmp_path, shared):
    """The checksum of yolov3-tiny.conv.15 is that of a file which somebody else has cut with ``darknet partial``."""
    server.content = (shared / "real" / "yolov3-tiny" / "yolov3-tiny.weights").read_bytes()
    for name in ("yolov3-tiny.conv.15", "yolov3-tiny.conv.11"):
        path = fetch_file(weights_of(name), tmp_path, base_url=server.url)
        assert path.name == name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == WEIGHTS[name].sha256
    assert len(server.requests) == 1  # the whole file stays for the second cut


def test_a_cut_that_is_another_one_is_not_written(server, tmp_path):
    file = PublicFile("first.layers", 1000, "0" * 64, cut_from=FILE)
    with pytest.raises(DownloadError, match=r"the first layers are not those of first\.layers"):
        fetch_file(file, tmp_path, base_url=server.url)
    assert [path.name for path in tmp_path.iterdir()] == ["some.weights"]


CFG_OF = {"yolov2-voc": "yolo-voc", "darknet53": "yolov3", "darknet19_448": "yolov2"}
"""Cfgs of another name than the weights; backbones are the first layers of their detectors."""


@pytest.mark.parametrize("name", WEIGHTS)
def test_sizes_are_those_of_the_cfgs(shared, name):
    """Counted by hand from the text of the cfg, since sizes must hold for networks too that are not supported."""
    network, _, layers = name.partition(".conv.")
    text = (shared / "real" / "darknet-cfg" / f"{CFG_OF.get(network, network)}.cfg").read_text()
    values = sum(values_by_layer(text)[: int(layers) if layers else None])
    assert WEIGHTS[name].size - 4 * values in (16, 20)


def values_by_layer(text: str) -> list[int]:
    """Numbers of each section in a weights file: filters and weights, and with normalisation three per filter more."""
    sections = sections_of(text)
    channels, found = [], []
    for i, (kind, options) in enumerate(sections[1:]):
        width, values = channels[-1] if channels else 3, 0
        if kind == "convolutional":
            filters, size = int(options["filters"]), int(options["size"])
            values = filters * width // int(options.get("groups", 1)) * size * size
            values += filters * (4 if options.get("batch_normalize") == "1" else 1)
            width = filters
        elif kind == "route":
            read = [channels[int(at) if int(at) >= 0 else i + int(at)] for at in options["layers"].split(",")]
            width = sum(read) // int(options.get("groups", 1))
        elif kind == "reorg":
            width *= int(options["stride"]) ** 2
        channels.append(width)
        found.append(values)
    return found


def test_whoever_states_a_checksum_is_named():
    for name, file in WEIGHTS.items():
        assert (file.checked_by is None) == (file.source == ""), name
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256), name
        assert file.sha1 is None or re.fullmatch(r"[0-9a-f]{40}", file.sha1), name
        assert file.name == name if file.cut_from else file.url.startswith("https://"), name
    assert (WEIGHTS["yolov3"].size - 20) // 4 == 62_001_757
    unverified = {name for name, file in WEIGHTS.items() if file.checked_by is None}
    assert unverified == {
        *("yolov4-csp", "yolov7", "yolov7-tiny", "yolov7x"),
        *("yolov4-csp.conv.142", "yolov4x-mish.conv.166", "yolov7.conv.132", "yolov7-tiny.conv.87"),
    }


def test_the_guide_lists_every_file_with_its_size_and_its_source(repository):
    page = (repository / "docs" / "guides" / "your-own-classes.md").read_text(encoding="utf-8")
    how = {"sha256": "SHA-256", "sha1": "SHA-1", None: "size only"}
    for name, file in WEIGHTS.items():
        assert f"| `{name}` | {file.size:,} | {how[file.checked_by]} | {file.source or '–'} |" in page
