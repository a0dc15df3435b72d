"""``POST /v1/detect`` and ``GET /v1/models`` against `Bundle.detect` and the bundle's own record."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines import Bundle
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.serving.http.detect_routes import preferred
from served_protocol import Answer, Running, picture, running, tiny_bundle

PNG = {"Content-Type": "image/png"}


def pixels_of(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart body by hand, as RFC 7578 has it."""
    body = b"".join(
        b'--limit\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"; filename="a"\r\n\r\n'
        + content
        + b"\r\n"
        for name, content in parts
    )
    return body + b"--limit--\r\n", {"Content-Type": "multipart/form-data; boundary=limit"}


def check_rows(answer: Answer, bundle: Bundle, files: list[bytes], **thresholds: float) -> None:
    assert answer.status == 200, answer.body
    assert len(answer.json["images"]) == len(files)
    with bundle:
        for row, file in zip(answer.json["images"], files, strict=True):
            image = pixels_of(file)
            found = bundle.detect(image, **thresholds)
            assert (row["height"], row["width"]) == image.shape[:2]
            assert len(found) > 0
            assert [one["class"] for one in row["detections"]] == [name for _, _, name in found]
            assert [one["class_id"] for one in row["detections"]] == found.class_ids.tolist()
            np.testing.assert_allclose([one["box"] for one in row["detections"]], found.boxes_xyxy, atol=1e-4)
            np.testing.assert_allclose([one["score"] for one in row["detections"]], found.scores, rtol=1e-5)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_raw_body(server: Running, bundle: Bundle, file_format: str) -> None:
    file = picture(1, (64, 96), file_format)
    answer = server.ask("POST", "/v1/detect?model=tiny", file, {"Content-Type": f"image/{file_format.lower()}"})
    check_rows(answer, bundle, [file])
    assert (answer.json["model"], answer.json["version"]) == ("tiny", "1")
    assert set(answer.json["times_ms"]) == {"decode", "preprocess", "queue", "compute", "postprocess", "encode"}


def test_thresholds_of_the_query(server: Running, bundle: Bundle) -> None:
    file = picture(2)
    answer = server.ask("POST", "/v1/detect?score_threshold=0.1&iou_threshold=0.2", file, PNG)
    check_rows(answer, bundle, [file], score_threshold=0.1, iou_threshold=0.2)


def test_several_images_in_a_form(server: Running, bundle: Bundle) -> None:
    files = [picture(3), picture(4, (33, 130), "JPEG")]
    body, headers = form(*(("image", file) for file in files))
    check_rows(server.ask("POST", "/v1/detect", body, headers), bundle, files)
    check_rows(server.ask("POST", "/v1/detect", body, headers, chunked=True), bundle, files)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What Pillow was asked to open: it parses the header each time."""
    asked: list[object] = []
    parse = Image.open

    def count(file: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(file)
        return parse(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", count)
    return asked


@pytest.mark.parametrize("accept", ["application/json", "image/png"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_header_of_an_image_is_parsed_once(
    server: Running, opened: list[object], file_format: str, accept: str
) -> None:
    file = picture(6, file_format=file_format)
    answer = server.ask("POST", "/v1/detect", file, {**PNG, "Accept": accept})
    assert (answer.status, answer.headers["content-type"]) == (200, accept)
    assert len(opened) == 1


def test_headers_of_a_form_and_of_the_protocol_are_parsed_once_each(server: Running, opened: list[object]) -> None:
    body, headers = form(*(("image", picture(number)) for number in range(3)))
    texts = [base64.b64encode(picture(number)).decode() for number in range(2)]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": texts}
    assert server.ask("POST", "/v1/detect", body, headers).status == 200
    assert len(opened) == 3
    assert server.ask("POST", "/v2/models/tiny-detect/infer", {"inputs": [tensor]}).status == 200
    assert len(opened) == 5


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_drawn_image(server: Running, bundle: Bundle, kind: str) -> None:
    file = picture(5)
    answer = server.ask("POST", "/v1/detect", file, {**PNG, "Accept": f"image/{kind}"})
    assert answer.headers["content-type"] == f"image/{kind}"
    with bundle:
        drawn = draw_detections(pixels_of(file), bundle.detect(pixels_of(file)))
    wanted = io.BytesIO()
    Image.fromarray(drawn).save(wanted, kind)
    assert answer.body == wanted.getvalue()


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("text/html, image/jpeg;q=0.9, */*;q=0.8", "image/jpeg"),
        ("application/json, image/png", "application/json"),
        ("image/png;q=0.1, application/json;q=0.2", "application/json"),
        ("image/png;q=none", "application/json"),
        ("text/html", "application/json"),
        ("", "application/json"),
    ],
)
def test_preferred_answer(accept: str, wanted: str) -> None:
    assert preferred(accept) == wanted


def body_of_parts(count: int) -> tuple[bytes, dict[str, str]]:
    return form(*[("image", picture(0))] * count)


REFUSED = {
    "text": (b"hello", {"Content-Type": "text/plain"}, "", 415, "Content-Type"),
    "no image": (b"hello", PNG, "", 415, "the body"),
    "nothing": (b"", PNG, "", 400, "the body"),
    "half": (picture(0)[:100], PNG, "", 400, "damaged"),
    "a gif": (picture(0, file_format="GIF"), {"Content-Type": "image/gif"}, "", 415, "format"),
    "threshold": (picture(0), PNG, "?score_threshold=2", 400, "score_threshold"),
    "no number": (picture(0), PNG, "?iou_threshold=nan", 400, "iou_threshold"),
    "twice": (picture(0), PNG, "?model=tiny&model=other", 400, "twice"),
    "unknown parameter": (picture(0), PNG, "?treshold=.1", 400, "treshold"),
    "unknown model": (picture(0), PNG, "?model=nobody", 404, "nobody"),
    "compressed": (picture(0), {**PNG, "Content-Encoding": "gzip"}, "", 415, "Content-Encoding"),
    "part's name": (*form(("picture", picture(0))), "", 400, "part 0"),
    "second part": (*form(("image", picture(0)), ("image", b"")), "", 400, "image[1]"),
    "too many": (*body_of_parts(33), "", 413, "32"),
    "no part": (*form(), "", 400, ""),
    "no boundary": (form()[0], {"Content-Type": "multipart/form-data"}, "", 400, "boundary"),
    "cut form": (form(("image", picture(0)))[0][:-9], form()[1], "", 400, "multipart"),
    "timeout": (picture(0), {**PNG, "X-Request-Timeout": "-1"}, "", 400, "X-Request-Timeout"),
    "no time": (picture(0), {**PNG, "X-Request-Timeout": "1e-9"}, "", 504, "deadline"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_is_one_line_that_names_the_field(server: Running, case: str) -> None:
    body, headers, query, status, said = REFUSED[case]
    answer = server.ask("POST", f"/v1/detect{query}", body, headers)
    assert answer.status == status, answer.body
    assert list(answer.json) == ["error"]
    assert said in answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert "/work" not in answer.json["error"]
    assert "Traceback" not in answer.json["error"]


def test_boxes_are_drawn_into_one_image_only(server: Running) -> None:
    body, headers = body_of_parts(2)
    assert server.ask("POST", "/v1/detect", body, {**headers, "Accept": "image/png"}).status == 400


def test_pixels_are_counted_before_decoding(bundle: Bundle) -> None:
    with running({"tiny": bundle}, max_pixels=10_000) as own:
        assert own.ask("POST", "/v1/detect", picture(0, (100, 100)), PNG).status == 200
        assert own.ask("POST", "/v1/detect", picture(0, (100, 101)), PNG).status == 413
        body, headers = form(("image", picture(0, (80, 80))), ("image", picture(1, (80, 80))))
        together = own.ask("POST", "/v1/detect", body, headers)
        assert (together.status, "together" in together.json["error"]) == (413, True)


def test_models_are_listed_with_what_the_page_shows(tmp_path: Path) -> None:
    record = {"method": "structured", "scores": "scaled", "ratio_requested": 0.75, "ratio_achieved": 0.7}
    made = tiny_bundle(tmp_path, pruning=record, metrics={"params": 12}, thresholds={"score": 0.3, "iou": 0.6})
    with running({"one": made, "two": made}) as own:
        own.ask("POST", "/v2/repository/models/two/unload")
        one, two = own.ask("GET", "/v1/models").json["models"]
    assert one["state"] == "READY"
    assert one["pruning"]["ratio_achieved"] == 0.7
    assert one["metrics"] == {"params": 12}
    assert one["thresholds"] == {"score": 0.3, "iou": 0.6}
    assert one["class_names"] == ["red", "green", "blue"]
    assert one["input_size"] == [32, 48]
    assert one["bytes"] == (made.path / "model.onnx").stat().st_size
    assert two == {"name": "two", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}


def test_a_jpeg_that_has_lost_its_end_is_answered_with_a_remark(server: Running) -> None:
    kind = {"Content-Type": "image/jpeg"}
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    whole = file.getvalue()
    full, short = (server.ask("POST", "/v1/detect?model=tiny", file, kind).json for file in (whole, whole[:-2]))
    assert short["images"] == full["images"]
    assert "remarks" not in full
    assert len(short["remarks"]) == 1
    assert short["remarks"][0].startswith("the body: the JPEG file has lost its end")
    damaged = server.ask("POST", "/v1/detect?model=tiny", whole[: len(whole) // 2], kind)
    assert (damaged.status, damaged.json) == (400, {"error": "the body: the image is damaged; send JPEG, PNG or WebP"})
