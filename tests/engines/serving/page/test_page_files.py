"""The page's files as a client without a browser sees them."""

from __future__ import annotations

import http.client
import re

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from prunedeploy_engines.serving.http import page
from served_page import Served


def fetch(served: Served, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the path goes out exactly as it is given."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.putrequest("GET", path, skip_host=False)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def test_every_file_of_the_folder_is_served_and_nothing_else_is_listed() -> None:
    assert {name for name, _ in page.FILES.values()} == {path.name for path in page.FOLDER.iterdir()}


def test_every_address_that_a_file_names_exists() -> None:
    named = set()
    for path in page.FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        named |= {f"/static/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
        named |= {f"/{name}" for name in re.findall(r'"(static/[\w.]+)"', text)}
    assert "/static/page.js" in named
    assert named <= {*page.FILES, page.LIMITS}


@pytest.mark.parametrize("address", [*page.FILES, page.LIMITS])
def test_file_comes_with_its_type_and_the_headers_of_the_page(served: Served, address: str) -> None:
    status, headers, content = fetch(served, address)
    assert status == 200
    if address != page.LIMITS:
        name, kind = page.FILES[address]
        assert content == (page.FOLDER / name).read_bytes()
        assert headers["content-type"] == kind
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    status, _, content = fetch(served, address, If_None_Match=f'"other", W/{headers["etag"]}')
    assert (status, content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/index.html",
        "/static/../page.py",
        "/static/..%2fpage.py",
        "/static/%2e%2e/page.py",
        "/static//etc/passwd",
        "/static/page.js/..",
        "/static/page.js%00",
        "/static/..\\page.py",
    ],
)
def test_nothing_else_can_be_reached(served: Served, path: str) -> None:
    status, _, content = fetch(served, path)
    assert status == 404
    assert b"def add_page" not in content
    assert b"root:" not in content


def test_limits_are_those_of_the_server(served: Served) -> None:
    assert served.ask(page.LIMITS) == {"max_body_bytes": 32 * 2**20, "max_pixels": 50_000_000}


def test_no_script_or_style_stands_in_the_page_itself() -> None:
    text = (page.FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>", text) == ['<script type="module" src="static/page.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?:", text)
