"""mPC and rPC worked by hand, and mAP under corruption against the evaluation of images corrupted beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunedeploy.data.coco import load_coco
from prunedeploy.data.corruptions import corrupt
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import evaluate
from prunedeploy.evaluation.corruption import UnderCorruption, corrupted_images, evaluate_corrupted
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from tiny_detector import CLASS_NAMES, save_tiny_detector

HEIGHT, WIDTH = 32, 48


def figures(*values: float) -> np.ndarray:
    return np.array(values)


def test_mpc_and_rpc_by_hand() -> None:
    found = UnderCorruption(
        # The figure itself, and two resamples.
        figures(0.5, 0.4, 0.8),
        (1, 5),
        {
            "fog": [figures(0.4, 0.4, 0.8), figures(0.2, 0.2, 0.4)],
            "snow": [figures(0.3, 0.1, 0.4), figures(0.1, 0.1, 0)],
        },
    )
    # Fog (.4 + .2) / 2 = .3, snow (.3 + .1) / 2 = .2, so mPC is .25 and rPC .25 / .5. Resamples: fog .3, snow .1,
    # mPC .2, rPC .2 / .4; fog .6, snow .2, mPC .4, rPC .4 / .8.
    assert found.mpc == pytest.approx([0.25, 0.2, 0.4])
    assert found.rpc == pytest.approx([0.5, 0.5, 0.5])
    document = found.as_dict()
    assert document["map"] == {"fog": [0.4, 0.2], "snow": [0.3, 0.1]}
    assert (document["mpc"], document["rpc"]) == (pytest.approx(0.25), pytest.approx(0.5))
    # The 2.5 and 97.5 per cent points between two values.
    assert document["intervals"]["mpc"] == pytest.approx([0.205, 0.395])
    assert document["intervals"]["map"]["fog"][1] == pytest.approx([0.205, 0.395])
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_what_is_undefined_is_none() -> None:
    blind = UnderCorruption(figures(0.0), (3,), {"fog": [figures(0.0)]}).as_dict()
    assert (blind["mpc"], blind["rpc"], blind["intervals"]["rpc"]) == (0.0, None, None)
    nothing_to_find = UnderCorruption(figures(np.nan), (3,), {"fog": [figures(np.nan)]}).as_dict()
    assert (nothing_to_find["map_clean"], nothing_to_find["map"]["fog"]) == (None, [None])
    assert (nothing_to_find["mpc"], nothing_to_find["rpc"]) == (None, None)


def write_scenes(folder: Path, images: dict[int, np.ndarray], boxes: dict[int, list[tuple[int, list[int]]]]) -> Path:
    """A COCO split of PNG files."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "test").mkdir()
    for number, pixels in images.items():
        Image.fromarray(pixels).save(folder / "test" / f"{number}.png")
    sizes = {number: pixels.shape for number, pixels in images.items()}
    annotations = [
        {"image_id": number, "category_id": kind + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, some in boxes.items()
        for kind, box in some
    ]
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": s[0], "width": s[1]} for n, s in sizes.items()],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, 1)],
    }
    path = folder / "annotations" / "test.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def scenes() -> tuple[dict[int, np.ndarray], dict[int, list[tuple[int, list[int]]]]]:
    """Six noisy images of the detector's size with coloured cells, and the boxes of these cells."""
    rng = np.random.default_rng(1)
    images, boxes = {}, {}
    for number in range(10, 16):
        pixels = rng.integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        boxes[number] = []
        for cell in rng.permutation(24)[:5].tolist():
            y, x, kind = 8 * (cell // 6), 8 * (cell % 6), int(rng.integers(3))
            pixels[y : y + 8, x : x + 8, kind] = rng.integers(120, 256)
            boxes[number].append((kind, [x, y, 8, 8]))
        images[number] = pixels
    return images, boxes


def test_map_is_that_of_images_corrupted_beforehand(tmp_path: Path, scenes) -> None:
    images, boxes = scenes
    dataset = load_coco(write_scenes(tmp_path / "clean", images, boxes), tmp_path / "clean" / "test")
    model = save_tiny_detector(tmp_path / "tiny.onnx", HEIGHT, WIDTH)
    loader = EvaluationLoader(dataset, (HEIGHT, WIDTH), 4)
    seen: list[int] = []
    with OnnxRuntimeRunner(model) as runner:
        found = evaluate_corrupted(
            {"one": runner, "two": runner},
            loader,
            dataset,
            ["gaussian_noise", "glass_blur"],
            [2, 5],
            resamples=20,
            seed=6,
            progress=seen.append,
        )
        assert found["one"].as_dict() == found["two"].as_dict()
        assert sum(seen) == len(images) * 5
        cells = {("clean", 0): found["one"].clean}
        cells |= {
            (name, severity): one
            for name, some in found["one"].corrupted.items()
            for severity, one in zip([2, 5], some, strict=True)
        }
        assert len(cells) == 5
        values = set()
        for (name, severity), cell in cells.items():
            folder = tmp_path / f"{name}-{severity}"
            changed = images
            if severity:
                changed = {
                    number: corrupt(pixels, name, severity, seed=6, image_id=number)
                    for number, pixels in images.items()
                }
            worse = load_coco(write_scenes(folder, changed, boxes), folder / "test")
            expected = evaluate(runner, EvaluationLoader(worse, (HEIGHT, WIDTH), 4), worse, resamples=20, seed=6)[
                "onnxruntime"
            ].clean.usual
            assert cell[0] == expected.result.map_50_95
            ends = found["one"].as_dict()["intervals"]
            own = ends["map"][name][[2, 5].index(severity)] if severity else ends["map_clean"]
            interval = expected.intervals.map_50_95
            assert own == pytest.approx([interval.low, interval.high])
            values.add(cell[0])
        assert len(values) == 5  # each corruption did something


@pytest.mark.parametrize("greyscale", [False, True])
def test_padding_stays_and_the_image_is_corrupted_alone(tmp_path: Path, greyscale: bool) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (24, 60, 3), dtype=np.uint8)
    images = {1: pixels, 2: pixels[:, :20].copy()}  # a wide one and a tall one
    dataset = load_coco(write_scenes(tmp_path, images, {1: [], 2: []}), tmp_path / "test")
    (batch,) = EvaluationLoader(dataset, (30, 60), 2, greyscale=greyscale)
    found = corrupted_images(batch, "snow", 4, seed=9, greyscale=greyscale)
    assert found.shape == batch.images.shape
    assert found.dtype == batch.images.dtype
    for number, geometry in enumerate(batch.geometries):
        height, width = geometry.resized_size
        inside = np.zeros((30, 60), bool)
        inside[geometry.pad_top : geometry.pad_top + height, geometry.pad_left : geometry.pad_left + width] = True
        before, after = (255 * one[number].permute(1, 2, 0).numpy() for one in (batch.images, found))
        assert np.array_equal(after[~inside], before[~inside])
        assert (~inside).any()
        shown = np.rint(before[inside]).astype(np.uint8).reshape(height, width, 3)
        alone = corrupt(shown[..., :1] if greyscale else shown, "snow", 4, seed=9, image_id=number + 1)
        assert np.array_equal(np.rint(after[inside]).reshape(height, width, 3), np.broadcast_to(alone, shown.shape))
