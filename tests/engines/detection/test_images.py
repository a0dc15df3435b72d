from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines.detection.images import read_image, to_greyscale
from prunedeploy_engines.errors import DataError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_png_pixels_come_back_bit_for_bit(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image, pixels)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert image.flags["WRITEABLE"]


# Where each EXIF orientation puts the stored pixels, from the EXIF 2.3 standard, table of tag 0x0112.
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda stored: np.rot90(stored, 1)),
    ],
)
def test_exif_rotation_is_applied(tmp_path: Path, pixels: np.ndarray, orientation: int, upright) -> None:
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), upright(pixels))


def test_greyscale_file_has_three_equal_channels(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(pixels[..., :1], 3, axis=2))


def test_palette_file_shows_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    # Full cyan and no black is RGB (0, 255, 255); JPEG keeps a flat area to a step or two.
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (32, 32, 3)
    assert np.abs(image.astype(int) - (0, 255, 255)).max() <= 3


def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # 257 * v is v in 8 bits
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_dark_16_bit_greyscale_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 200]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_greyscale_of_fewer_bits_in_a_16_bit_file_fills_the_range(tmp_path: Path, bits: int, suffix: str) -> None:
    """Industrial, medical and thermal cameras write their 10, 12 or 14 bits as they are."""
    white = 2**bits - 1
    Image.fromarray(np.array([[0, white // 4, white // 2, white]], np.uint16)).save(tmp_path / f"a.{suffix}")
    # A quarter and a half of 255, of values that are rounded down to whole numbers: 63.7 and 127.4.
    assert read_image(tmp_path / f"a.{suffix}")[0, :, 0].tolist() == [0, 64, 127, 255]


def test_a_dim_12_bit_frame_stays_dim(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1500, 2048]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 93, 128]  # 255 / 4095 of each


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)  # 51 / 255 = .2
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]


def test_greyscale_is_rec_601_luma() -> None:
    # .299, .587 and .114 of 255: 76.245, 149.685, 29.07.
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]], dtype=np.uint8)
    grey = to_greyscale(image)
    assert grey[0, :, 0].tolist() == [76, 150, 29, 255, 18]  # 2.99 + 11.74 + 3.42 = 18.15
    assert (grey == grey[..., :1]).all()


def test_read_greyscale_is_the_luma_of_what_is_read(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    grey = read_image(tmp_path / "a.png", greyscale=True)
    assert np.abs(grey - luma[..., None]).max() <= 1
    assert np.array_equal(grey, to_greyscale(pixels))


def test_200_megapixels_are_refused_from_the_header(tmp_path: Path) -> None:
    # The file holds no pixels at all: reaching for them would give another error.
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(20_000, 10_000))
    with pytest.raises(DataError, match=r"huge\.png: the image has .*more than the limit of 50 megapixels"):
        read_image(path)


def test_limit_is_the_callers(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=13 * 17).shape == (13, 17, 3)
    with pytest.raises(DataError, match="limit"):
        read_image(tmp_path / "a.png", max_pixels=13 * 17 - 1)


def test_text_file_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg: this is not an image"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_truncated_image_is_refused(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="the image is damaged") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.png: there is no such image"):
        read_image(tmp_path / "b.png")
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path)


def test_genuine_photo_is_read(shared: Path) -> None:
    image = read_image(shared / "real" / "photos" / "dog.jpg")
    assert image.shape == (576, 768, 3)
