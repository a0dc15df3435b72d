"""JPEG files without their end: what was decoded of them is compared with the whole file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines.detection.images import read_image
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.serving.core.decoding import decode_image, open_image
from prunedeploy_engines.serving.core.errors import InvalidRequestError

NOTE = "the JPEG file has lost its end, less than 1 % of the picture; it is used as it is"


def photo(mode: str = "RGB", size: tuple[int, int] = (640, 480), **options: Any) -> bytes:
    """A picture with detail everywhere: smooth colours and noise."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1)
    pixels = (smooth + np.random.default_rng(0).normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def turned() -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "no subsampling": {"subsampling": 0},
    "restart markers": {"restart_marker_rows": 1},
    "turned": turned(),
    "small": {"size": (33, 17)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", [1, 2])
def test_without_its_end_marker_every_pixel_is_there(tmp_path: Path, kind: str, lost: int) -> None:
    whole = photo(**KINDS[kind])
    assert whole.endswith(b"\xff\xd9")
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "short.jpg").write_bytes(whole[:-lost])
    with pytest.warns(UserWarning, match=r"short\.jpg: .*has lost its end"):
        pixels = read_image(tmp_path / "short.jpg")
    assert np.array_equal(pixels, read_image(tmp_path / "whole.jpg"))


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey"])
def test_a_few_bytes_more_cost_less_than_a_hundredth(tmp_path: Path, kind: str) -> None:
    whole = photo(**KINDS[kind])
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "short.jpg").write_bytes(whole[:-40])
    with pytest.warns(UserWarning, match="lost its end"):
        pixels = read_image(tmp_path / "short.jpg")
    assert 0 < (pixels != read_image(tmp_path / "whole.jpg")).any(axis=2).mean() < 0.01


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "restart markers"])
@pytest.mark.parametrize("kept", [0.03, 0.5, 0.9, 0.96])
def test_a_file_that_lacks_more_is_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    whole = photo(**KINDS[kind])
    (tmp_path / "short.jpg").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match="the image is damaged"):
        read_image(tmp_path / "short.jpg")


def test_zeros_in_place_of_the_end_are_an_end_too(tmp_path: Path) -> None:
    """As a download leaves them that has set the file's size at once."""
    whole = photo()
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "zeros.jpg").write_bytes(whole[:-2] + bytes(100))
    assert np.array_equal(read_image(tmp_path / "zeros.jpg"), read_image(tmp_path / "whole.jpg"))


def test_a_whole_file_is_read_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "whole.jpg").write_bytes(photo())
    (tmp_path / "more.jpg").write_bytes(photo() + b"something behind the end")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(tmp_path / "whole.jpg"), read_image(tmp_path / "more.jpg"))


def test_png_without_its_last_chunk_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_the_server_decides_as_the_reader_does(tmp_path: Path, kind: str) -> None:
    whole = photo(size=(320, 240), **KINDS[kind])
    decided = set()
    for lost in (0, 1, 2, 3, 20, 60, 100, 150, 200, 300, 500, 1000, len(whole) // 2, len(whole) - 20):
        file = whole[: len(whole) - lost]
        (tmp_path / "short.jpg").write_bytes(file)
        remarks: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read: Any = read_image(tmp_path / "short.jpg")
            except DataError:
                read = None
        try:
            served: Any = decode_image(open_image(file, 10**6, "the body"), "the body", remarks.append)
        except InvalidRequestError:
            served = None
        assert (read is None) == (served is None), lost
        assert read is None or np.array_equal(read, served)
        assert remarks == [f"the body: {NOTE}"] * len(caught)
        decided.add((read is None, len(remarks)))
    assert decided == {(False, 0), (False, 1), (True, 0)}


def test_genuine_photos_without_their_last_two_bytes(shared: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV reads the whole files for comparison")
    photos = sorted((shared / "real" / "coco-val128").rglob("*.jpg"))[:8]
    assert len(photos) == 8
    for path in photos:
        (tmp_path / "short.jpg").write_bytes(path.read_bytes()[:-2])
        with pytest.warns(UserWarning, match="lost its end"):
            pixels = read_image(tmp_path / "short.jpg")
        other = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(pixels, read_image(path))
        assert np.abs(pixels.astype(int) - other).mean() < 1  # its own chroma upsampling
