"""Text as people's editors leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunedeploy.data.class_names import read_names
from prunedeploy_engines.errors import ConfigError

NAMES = ["RBC", "traffic light", "player #7", "#1", "größer"]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(NAMES).encode(),
        ("\ufeff" + "\r\n".join(NAMES) + "\r\n").encode(),
        ("\ufeff" + "\r\n".join(NAMES)).encode("utf-16-le"),
        "# the classes, by id\n\nRBC # red\ntraffic light\t# 1\nplayer #7\n#1\n größer  \n\n#\n".encode(),
    ],
    ids=["plain", "mark and carriage returns", "UTF-16", "comments and blank lines"],
)
def test_names_are_read_as_editors_leave_them(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.names"
    path.write_bytes(content)
    assert read_names(path) == NAMES


@pytest.mark.parametrize("content", [b"RBC\ngr\xf6\xdfer\n", b"\xff\xfeR\x00B"], ids=["code page", "half a character"])
def test_names_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.names"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not UTF-8 text") as caught:
        read_names(path)
    assert "\n" not in str(caught.value)
