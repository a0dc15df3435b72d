"""The demo set: detection scenes composed from real product photos (Fashion-MNIST, Zalando SE, MIT licence).

Call it what it is: the objects are photos, the scenes are composed. Training and test scenes
share no photo. Six classes have their own hue, the other four any neutral tint, so that a
detector that sees greyscale only loses accuracy, as it does on COCO. Everything follows from the seed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunedeploy_engines.errors import DataError, StoreError
from prunedeploy_engines.files import write_atomically

DEMO_VERSION = 2
CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
# Hue in turns of the classes that have one of their own; the others are neutral.
CLASS_HUES = {"t-shirt": 0.0, "pullover": 1 / 6, "dress": 5 / 6, "coat": 2 / 3, "shirt": 1 / 3, "sneaker": 1 / 2}

DESCRIPTION = "prunedeploy demo: scenes composed from Fashion-MNIST photos (Zalando SE, MIT licence)"
SPRITES = Path(__file__).parents[1] / "assets" / "fashion_mnist_subset.npz"
# Mean absolute difference of an object's and its background's mean colour, in [0, 1], that the tint aims at.
MIN_CONTRAST = 0.2
# All files carry this time stamp, so that writing the set again gives the same content key.
_MTIME = 1_500_000_000

Rgb = NDArray[np.float32]


@dataclass(frozen=True)
class DemoSettings:
    """What the demo set is made of.

    Attributes:
        seed: Seed of all draws.
        train_scenes: Number of training scenes.
        test_scenes: Number of test scenes.
        size: Height and width of a scene in pixels.
        max_objects: Objects in a scene, 1 to this many, as far as they fit with little overlap.
        object_size: Smallest and largest longer side of an object in pixels.
    """

    seed: int = 2024
    train_scenes: int = 3000
    test_scenes: int = 600
    size: int = 160
    max_objects: int = 4
    object_size: tuple[int, int] = (44, 100)


def write_demo(
    folder: str | Path, settings: DemoSettings | None = None, progress: Callable[[int], object] = lambda scenes: None
) -> Path:
    """Write the demo set as a COCO folder: ``train.json``, ``test.json``, ``train/``, ``test/``.

    A folder that already holds the same set is left alone.

    Args:
        folder: Where to; created. It must be empty, missing, or hold a demo set.
        settings: What to compose.
        progress: Called with the number of finished scenes.

    Returns:
        The folder.

    Raises:
        DataError: The folder holds something else, be it beside a demo set.
        StoreError: The file system refuses.
    """
    # Resolved, so that "." has a name and a link is followed rather than replaced.
    folder = Path(folder).resolve()
    settings = settings or DemoSettings()
    if holds_demo(folder, settings):
        return folder
    if not _is_replaceable(folder):
        raise DataError("holds something other than a demo set", folder, "choose an empty or a new folder")
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        done = itertools.count(1)
        with np.load(SPRITES) as sprites:
            for split, scenes in (("train", settings.train_scenes), ("test", settings.test_scenes)):
                images, labels = sprites[f"{split}_images"], sprites[f"{split}_labels"]
                _write_split(temporary, split, scenes, images, labels, settings, lambda: progress(next(done)))
        write_atomically(temporary / "demo.json", _description(settings).encode())
        if holds_demo(folder, settings):
            return folder  # another process was faster, and somebody may be reading what it wrote
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", folder, "free space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def holds_demo(folder: Path, settings: DemoSettings) -> bool:
    """Whether the folder holds just this demo set, so that `write_demo` has nothing to do."""
    marker = folder / "demo.json"
    return marker.is_file() and marker.read_bytes() == _description(settings).encode()


def _description(settings: DemoSettings) -> str:
    return json.dumps({"demo_version": DEMO_VERSION, **asdict(settings)}, sort_keys=True)


def _is_replaceable(folder: Path) -> bool:
    """Whether ``folder`` is missing, empty, or holds a demo set and nothing else."""
    if not folder.is_dir():
        return not folder.exists()
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    try:
        ours = "demo_version" in json.loads((folder / "demo.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False
    return ours and names <= {"demo.json", "train", "test", "train.json", "test.json"}


def _write_split(
    folder: Path,
    split: str,
    scenes: int,
    sprites: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    settings: DemoSettings,
    scene_done: Callable[[], object],
) -> None:
    (folder / split).mkdir()
    cut_outs = [cut_out(sprite) for sprite in sprites]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(scenes):
        rng = np.random.default_rng((settings.seed, DEMO_VERSION, split == "test", number))
        scene, boxes, classes = compose_scene(rng, cut_outs, labels, settings)
        name = f"{number:05d}.png"
        path = folder / split / name
        Image.fromarray(scene).save(path, compress_level=3)
        os.utime(path, (_MTIME, _MTIME))
        images.append({"id": number + 1, "file_name": name, "width": settings.size, "height": settings.size})
        for box, label in zip(boxes, classes, strict=True):
            x_min, y_min, x_max, y_max = box
            width, height = x_max - x_min, y_max - y_min
            annotations.append({
                "id": len(annotations) + 1, "image_id": number + 1, "category_id": int(label) + 1,
                "bbox": [x_min, y_min, width, height], "area": width * height, "iscrowd": 0,
            })  # fmt: skip
        scene_done()
    document = {
        "info": {"description": DESCRIPTION},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)],
    }
    write_atomically(folder / f"{split}.json", json.dumps(document).encode())


def cut_out(sprite: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut a product photo out of its black background.

    Args:
        sprite: ``(28, 28)`` uint8, the product bright on 0.

    Returns:
        ``shade`` in [0, 1] and ``alpha`` in {0, 1}, both cropped to the product. Gaps inside the outline, as
        between the straps of a sandal, belong to the product.
    """
    from scipy import ndimage

    padded = np.pad(sprite, 3)
    solid = ndimage.binary_closing(padded > 12, iterations=2)
    solid = ndimage.binary_fill_holes(solid)
    parts, count = ndimage.label(solid)
    if count > 1:
        sizes = ndimage.sum_labels(solid, parts, np.arange(1, count + 1))
        solid = np.isin(parts, 1 + np.flatnonzero(sizes >= 0.1 * sizes.max()))
    window = _bounds(solid)
    shade = padded[window].astype(np.float32) / np.float32(255)
    return shade, solid[window].astype(np.float32)


def _bounds(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest window of rows and columns that holds all of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def compose_scene(
    rng: np.random.Generator,
    cut_outs: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    labels: NDArray[np.uint8],
    settings: DemoSettings,
) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]], list[int]]:
    """Compose one scene.

    Args:
        rng: Draws everything.
        cut_outs: Shade and alpha of each photo, as `cut_out` gives them.
        labels: Class index of each photo.
        settings: Sizes and counts.

    Returns:
        The scene ``(size, size, 3)`` uint8 RGB, its boxes as whole-pixel xyxy, and their class indices.
    """
    size = settings.size
    scene = background(rng, size, cut_outs)
    boxes: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    for _ in range(int(rng.integers(1, settings.max_objects + 1))):
        index = int(rng.integers(len(cut_outs)))
        shade, alpha = _resize_object(rng, *cut_outs[index], settings)
        height, width = alpha.shape
        for _attempt in range(12):
            x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
            box = (x, y, x + width, y + height)
            if all(_overlap(box, other) < 0.08 for other in boxes):
                break
        else:
            continue
        label = int(labels[index])
        window = scene[y : y + height, x : x + width]
        lit = _contrasting_object(rng, CLASS_NAMES[label], shade, window)
        window += alpha[..., None] * (lit - window)
        boxes.append(box)
        classes.append(label)
    return (scene.clip(0, 1) * 255 + 0.5).astype(np.uint8), boxes, classes


def _resize_object(
    rng: np.random.Generator, shade: NDArray[np.float32], alpha: NDArray[np.float32], settings: DemoSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale to a random size, flip at random, and crop to the pixels that are more object than not."""
    longer = rng.uniform(*settings.object_size)
    if rng.random() < 0.5:
        shade, alpha = shade[:, ::-1], alpha[:, ::-1]
    scale = longer / max(alpha.shape)
    size = max(8, round(alpha.shape[1] * scale)), max(8, round(alpha.shape[0] * scale))
    shade = np.asarray(Image.fromarray(shade).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    alpha = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC))
    alpha = ((alpha - 0.5) * 4 + 0.5).clip(0, 1)  # a crisp edge, one or two pixels wide
    window = _bounds(alpha > 0.5)
    return shade[window], alpha[window]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Overlap of two boxes as a share of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _contrasting_object(rng: np.random.Generator, class_name: str, shade: NDArray[np.float32], behind: Rgb) -> Rgb:
    """Tint an object so that it differs from what is behind it: the first draw that does, else the best."""
    mean_behind = behind.mean((0, 1))
    best: tuple[float, Rgb] | None = None
    for _ in range(6):
        lit = (0.4 + 0.6 * shade)[..., None] * tint(rng, class_name)
        contrast = float(np.abs(lit.mean((0, 1)) - mean_behind).mean())
        if best is None or contrast > best[0]:
            best = contrast, lit
        if contrast >= MIN_CONTRAST:
            break
    assert best is not None
    return best[1]


def tint(rng: np.random.Generator, class_name: str) -> NDArray[np.float32]:
    """Colour of an object: its class's own hue, or a neutral one. ``(3,)`` RGB in [0, 1]."""
    hue = CLASS_HUES.get(class_name)
    if hue is None:
        return (rng.uniform(0.55, 1.0) + rng.uniform(-0.08, 0.08, 3)).clip(0, 1).astype(np.float32)
    return _hsv(hue + rng.uniform(-0.04, 0.04), rng.uniform(0.4, 0.8), rng.uniform(0.6, 1.0))


def _hsv(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    """HSV to RGB; hue in turns."""
    offsets = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * saturation * np.minimum(offsets, 4 - offsets).clip(0, 1)).astype(np.float32)


def background(
    rng: np.random.Generator, size: int, cut_outs: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> Rgb:
    """A background: gradient, noise, stripes, or an enlarged crop of a photo.

    Args:
        rng: Draws everything.
        size: Height and width in pixels.
        cut_outs: Shade and alpha of each photo.

    Returns:
        ``(size, size, 3)`` float32 RGB in [0, 1].
    """
    base = (rng.uniform(0.12, 0.55) + rng.uniform(-0.12, 0.12, 3)).astype(np.float32)
    kind = rng.integers(4)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if kind == 0:
        angle = rng.uniform(0, 2 * np.pi)
        pattern = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    elif kind == 1:
        cells = int(rng.integers(4, 40))
        coarse = rng.uniform(-0.5, 0.5, (cells, cells)).astype(np.float32)
        pattern = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    elif kind == 2:
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(3, 20)
        pattern = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y)) / 2
    else:
        shade = cut_outs[int(rng.integers(len(cut_outs)))][0]
        height, width = shade.shape
        top, left = height // 4, width // 4
        crop = shade[top : max(top + 4, height * 3 // 4), left : max(left + 4, width * 3 // 4)]
        pattern = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)) - 0.5
    amplitude = rng.uniform(0.1, 0.4)
    direction = (1 + rng.uniform(-0.3, 0.3, 3)).astype(np.float32)
    return (base + amplitude * pattern[..., None] * direction).clip(0, 1).astype(np.float32)
