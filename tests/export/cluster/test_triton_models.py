"""The written models give what `prunedeploy detect` gives, run as Triton runs them, with no prunedeploy there.

Triton itself is not here: its steps are followed as config.pbtxt says, the Python models run in a process that can
import only NumPy and Pillow (`triton_process`), the detector runs in ONNX Runtime, as it would in Triton.
`test_triton_server` runs the real server where there is one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from detector_variants import save_nms_detector, save_uint8_detector
from export.cluster.triton_models import RefusedError, run_ensemble, run_python_model
from prunedeploy.cli import cli
from prunedeploy_engines.bundle import Bundle, BundleFile, write_bundle
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_export import onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.cluster.triton_config import TritonSettings
from prunedeploy_export.cluster.triton_repository import write_triton_repository
from prunedeploy_export.graph.edit import read_model, write_model
from prunedeploy_export.precision.files import fp16_from_fp32
from tiny_detector import CLASS_NAMES, save_tiny_detector

HEIGHT, WIDTH = 32, 48
DETECTORS: dict[str, Callable[[Path], Path]] = {
    "plain": save_tiny_detector,
    "uint8": save_uint8_detector,
    "nms": save_nms_detector,
}


def bundle_of(folder: Path, model: Path, **input_spec: Any) -> Bundle:
    size = {"height": HEIGHT, "width": WIDTH, **input_spec}
    thresholds = {"score": 0.55, "iou": 0.45}
    files = {"model.onnx": BundleFile(model, "onnx", "fp32")}
    return write_bundle(folder, files, class_names=CLASS_NAMES, input=size, thresholds=thresholds)


def encoded_images() -> dict[str, bytes]:
    """Every form in which an image may come, as files."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 2, (6, 9, 3), dtype=np.uint8) * 255  # large areas of pure colours: they are detected
    photo = Image.fromarray(coarse).resize((90, 60), Image.Resampling.NEAREST)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    clear = photo.convert("RGBA")
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (60, 90), dtype=np.uint8)))
    forms: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "small.png": (photo, "PNG", {}),
        "exact.png": (photo.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST), "PNG", {}),
        "large.jpg": (photo.resize((1000, 700)), "JPEG", {"quality": 85}),
        "turned.jpg": (photo, "JPEG", {"exif": turned}),
        "clear.png": (clear, "PNG", {}),
        "palette.png": (photo.quantize(16), "PNG", {}),
        "grey.png": (Image.fromarray(rng.integers(0, 65536, (40, 30), dtype=np.uint16)), "PNG", {}),
        "long.webp": (photo.resize((300, 20)), "WEBP", {"lossless": True}),
        "black.png": (Image.new("RGB", (31, 77)), "PNG", {}),
        "noise.jpg": (Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)), "JPEG", {}),
        "dot.png": (Image.new("RGB", (1, 1), (255, 0, 0)), "PNG", {}),
    }
    files = {}
    for name, (image, kind, options) in forms.items():
        content = io.BytesIO()
        image.save(content, kind, **options)
        files[name] = content.getvalue()
    files["short.jpg"] = files["noise.jpg"][:-2]  # without its end marker
    return files


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    for name, content in encoded_images().items():
        (folder / name).write_bytes(content)
    return {path.name: path for path in sorted(folder.iterdir())}


def detect(bundle: Path, *images: Path, options: tuple[str, ...] = ()) -> list[list[tuple[float, ...]]]:
    """What ``prunedeploy detect`` prints: per image, rows of class, score, x, y, width, height."""
    arguments = ["detect", str(bundle), *map(str, images), "--json", "--threads", "1", *options]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.stderr
    keys = ("class_id", "score", "x_min", "y_min", "width", "height")
    return [[tuple(row[key] for key in keys) for row in image["detections"]] for image in json.loads(done.stdout)]


def rows_of(answer: dict[str, np.ndarray]) -> list[list[tuple[float, ...]]]:
    """The same from the tensors of an ensemble."""
    found = []
    for number, count in enumerate(answer["num_detections"]):
        boxes = answer["boxes"][number, :count].tolist()  # float32 to float is exact
        scores = answer["scores"][number, :count].tolist()
        class_ids = answer["classes"][number, :count].tolist()
        found.append(
            [
                (class_id, score, x1, y1, x2 - x1, y2 - y1)
                for (x1, y1, x2, y2), score, class_id in zip(boxes, scores, class_ids, strict=True)
            ]
        )
        assert not answer["boxes"][number, count:].any()
        assert not answer["scores"][number, count:].any()
        assert not answer["classes"][number, count:].any()
    return found


@pytest.mark.parametrize(
    ("greyscale", "letterbox"), [(False, True), (True, True), (False, False)], ids=["colour", "grey", "stretched"]
)
@pytest.mark.parametrize("kind", DETECTORS)
def test_ensemble_gives_what_detect_gives_bit_by_bit(
    tmp_path: Path, image_files: dict[str, Path], kind: str, greyscale: bool, letterbox: bool
) -> None:
    model = DETECTORS[kind](tmp_path / "source.onnx")
    bundle = bundle_of(
        tmp_path / "bundle", model, greyscale=greyscale, letterbox=letterbox, letterbox_colour=[10, 100, 30]
    )
    settings = TritonSettings(max_batch=len(image_files))
    write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=settings)
    files = list(image_files.values())
    together = run_ensemble(tmp_path / "models", "tiny-detect", {"image": [path.read_bytes() for path in files]})
    expected = detect(tmp_path / "bundle", *files)
    assert rows_of(together) == expected
    found = {path.name: len(rows) for path, rows in zip(files, expected, strict=True)}
    assert found["black.png"] == 0
    assert greyscale or found["small.png"] > 3
    assert {name: value.dtype.name for name, value in together.items()} == {
        "boxes": "float32",
        "scores": "float32",
        "classes": "int64",
        "num_detections": "int32",
    }
    longest = max(found.values())
    assert together["boxes"].shape == (len(files), longest, 4)
    assert together["scores"].shape == together["classes"].shape == (len(files), longest)


def _yolov3_tiny(shared: Path, folder: Path, kind: str) -> Path:
    """The genuine network as a file of this kind."""
    from prunedeploy.models.darknet import FoldedDarknet, load_darknet

    real = shared / "real" / "yolov3-tiny"
    names = (real / "coco.names").read_text().split("\n")[:80]
    path = folder / "fp32.onnx"
    onnx_from_torch(
        FoldedDarknet(load_darknet(real / "yolov3-tiny.cfg", real / "yolov3-tiny.weights")), path, class_names=names
    )
    if "fp16" in kind:
        fp16_from_fp32(path, folder / "fp16.onnx")
        path = folder / "fp16.onnx"
    changed = read_model(path)
    if "nms" in kind:
        changed = with_nms(changed, NmsInGraph(score_threshold=0.3, iou_threshold=0.45, max_detections=50))
    if "uint8" in kind:
        changed = with_uint8_input(changed)
    write_model(changed, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["fp32", "fp32 uint8 nms", "fp16 nms"])
def test_genuine_network_on_a_photo_bit_by_bit(tmp_path: Path, shared: Path, kind: str) -> None:
    model = _yolov3_tiny(shared, tmp_path, kind)
    names = (shared / "real" / "yolov3-tiny" / "coco.names").read_text().split("\n")[:80]
    bundle = write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(model, "onnx", kind[:4])},
        class_names=names,
        input={"height": 416, "width": 416},
        thresholds={"score": 0.3, "iou": 0.45},
    )
    write_triton_repository(bundle, tmp_path / "models", name="yolo", precision=kind[:4])
    photo = shared / "real" / "photos" / "dog.jpg"
    answer = run_ensemble(tmp_path / "models", "yolo-detect", {"image": [photo.read_bytes()]})
    expected = detect(tmp_path / "bundle", photo, options=("--precision", kind[:4]))
    assert rows_of(answer) == expected
    assert {"dog", "car"} <= {names[int(row[0])] for row in expected[0]}


def test_thresholds_of_a_request(tmp_path: Path, image_files: dict[str, Path]) -> None:
    bundle = bundle_of(tmp_path / "bundle", save_tiny_detector(tmp_path / "source.onnx"))
    write_triton_repository(bundle, tmp_path / "models", name="tiny")
    image = image_files["large.jpg"]
    counts = []
    for given in (0.2, "0.2", 0.99, 1):
        answer = run_ensemble(
            tmp_path / "models", "tiny-detect", {"image": [image.read_bytes()]}, score_threshold=given
        )
        assert rows_of(answer) == detect(tmp_path / "bundle", image, options=("--score-threshold", str(given)))
        counts.append(int(answer["num_detections"][0]))
    assert counts[0] == counts[1] > counts[2]
    assert counts[3] == 0  # a score is never greater than 1
    assert answer["boxes"].shape == (1, 0, 4)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be in [0, 1], got 1.5"),
        ({"iou_threshold": "-1"}, "iou_threshold must be in [0, 1], got '-1'"),
        ({"iou_threshold": "nan"}, "iou_threshold must be in [0, 1], got 'nan'"),
        ({"score_threshold": "high"}, "score_threshold must be a number, got 'high'"),
        ({"score_threshold": True}, "score_threshold must be in [0, 1], got True"),
    ],
)
def test_threshold_that_is_none(tmp_path: Path, image_files: dict[str, Path], parameters: dict, said: str) -> None:
    bundle = bundle_of(tmp_path / "bundle", save_tiny_detector(tmp_path / "source.onnx"))
    write_triton_repository(bundle, tmp_path / "models", name="tiny")
    with pytest.raises(RefusedError) as refused:
        run_ensemble(tmp_path / "models", "tiny-detect", {"image": [image_files["dot.png"].read_bytes()]}, **parameters)
    assert refused.value.args == (6, said)  # 6: TRITONSERVER_ERROR_INVALID_ARG of the stand-in


def test_bad_images_spoil_their_own_request_only(tmp_path: Path, image_files: dict[str, Path]) -> None:
    bundle = bundle_of(tmp_path / "bundle", save_tiny_detector(tmp_path / "source.onnx"))
    write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=TritonSettings(max_batch=4))
    good = image_files["large.jpg"].read_bytes()
    bitmap = io.BytesIO()
    Image.new("RGB", (8, 8)).save(bitmap, "BMP")
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")  # 64 megapixels in a few kilobytes
    requests = [
        [good],
        [good, b"no image"],
        [bitmap.getvalue()],  # Pillow reads it, a client must not send it
        [good[:-2000]],
        [bomb.getvalue()],
        [b""],
        [good] * 5,
        [good],
    ]
    answers = run_python_model(tmp_path / "models", "tiny-preprocess", [{"image": images} for images in requests])
    said = {number: answer.args[1] for number, answer in enumerate(answers) if isinstance(answer, RefusedError)}
    assert said == {
        1: "image 1: the image has a format that is not accepted; send JPEG, PNG or WebP",
        2: "image 0: the image has a format that is not accepted; send JPEG, PNG or WebP",
        3: "image 0: the image is damaged; send JPEG, PNG or WebP",
        4: "image 0: the image has 64000000 pixels, more than 50000000; scale it down",
        5: "image 0: the image is empty; send JPEG, PNG or WebP",
        6: "a request must have 1 to 4 images, this one has 5",
    }
    np.testing.assert_array_equal(answers[0]["images"], answers[7]["images"])
    assert answers[0]["image_size"].tolist() == [[700, 1000]]


@pytest.mark.parametrize("part", ["preprocess", "postprocess"])
def test_copied_modules_are_the_originals(tmp_path: Path, repository: Path, part: str) -> None:
    bundle = bundle_of(tmp_path / "bundle", save_tiny_detector(tmp_path / "source.onnx"))
    write_triton_repository(bundle, tmp_path / "models", name="tiny")
    folder = tmp_path / "models" / f"tiny-{part}" / "1"
    homes = {"prunedeploy_engines": repository / "engines", "prunedeploy_export": repository / "export"}
    copied = [path for package in homes for path in sorted((folder / package).rglob("*.py")) if path.stem != "__init__"]
    assert f"triton_{part}.py" in {path.name for path in copied}
    for path in copied:
        of_package = path.relative_to(folder)
        assert path.read_bytes() == (homes[of_package.parts[0]] / of_package).read_bytes()
