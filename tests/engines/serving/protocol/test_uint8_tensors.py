"""UINT8 over the protocol: a network sees what `detect` shows it; one that takes bytes gets the very bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines.bundle import Bundle, BundleFile, write_bundle
from prunedeploy_engines.detection.letterbox import to_input
from prunedeploy_engines.runtimes import runner
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.serving.core import served_model
from prunedeploy_engines.serving.grpc.messages import SERVICE, message_type
from prunedeploy_export import with_uint8_input
from prunedeploy_export.graph.edit import read_model, write_model
from served_protocol import HEIGHT, WIDTH, Running, running
from tiny_detector import CLASS_NAMES, save_tiny_detector

Send = Callable[[Running, str, np.ndarray], None]


@pytest.fixture(scope="module")
def takes_bytes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serves the tiny detector with uint8 input, as ``tiny``."""
    folder = tmp_path_factory.mktemp("bytes")
    write_model(with_uint8_input(read_model(save_tiny_detector(folder / "float.onnx"))), folder / "uint8.onnx")
    file = BundleFile(folder / "uint8.onnx", "onnx", "fp32")
    size = {"height": HEIGHT, "width": WIDTH}
    made = write_bundle(folder / "bundle", {"model.onnx": file}, class_names=CLASS_NAMES, input=size)
    with running({"tiny": made}) as there:
        yield there


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images that have reached a model."""
    kept: list[np.ndarray] = []
    infer = OnnxRuntimeRunner._infer

    def keep(self: OnnxRuntimeRunner, images: Any) -> Any:
        kept.append(images)
        return infer(self, images)

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", keep)
    return kept


@pytest.fixture
def pixels() -> np.ndarray:
    """``(HEIGHT, WIDTH, 3)`` uint8 with each of the 256 values in every channel, in an order of its own."""
    rng = np.random.default_rng(0)
    channels = [rng.permutation(np.resize(np.arange(256, dtype=np.uint8), HEIGHT * WIDTH)) for _ in range(3)]
    image = np.stack(channels, axis=1).reshape(HEIGHT, WIDTH, 3)
    assert all(len(np.unique(image[..., channel])) == 256 for channel in range(3))
    return image


def rest_json(server: Running, model: str, planes: np.ndarray) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(planes.shape), "data": planes.ravel().tolist()}
    answer = server.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    assert answer.status == 200, answer.body


def rest_binary(server: Running, model: str, planes: np.ndarray) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(planes.shape)}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": planes.nbytes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.ask("POST", f"/v2/models/{model}/infer", head + planes.tobytes(), headers)
    assert answer.status == 200, answer.body


def grpc_raw(server: Running, model: str, planes: np.ndarray) -> None:
    request = message_type("ModelInferRequest")(model_name=model)
    request.inputs.add(name="images", datatype="UINT8", shape=planes.shape)
    request.raw_input_contents.append(planes.tobytes())
    call(server, request)


def grpc_typed(server: Running, model: str, planes: np.ndarray) -> None:
    request = message_type("ModelInferRequest")(model_name=model)
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=planes.shape)
    tensor.contents.uint_contents.extend(planes.ravel().tolist())
    call(server, request)


def call(server: Running, request: Any) -> None:
    import grpc

    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_type("ModelInferResponse").FromString,
        )
        assert len(infer(request, timeout=20).outputs) == 2


WAYS = [rest_json, rest_binary, grpc_raw, grpc_typed]


@pytest.mark.parametrize("send", WAYS)
def test_a_network_sees_the_pixels_that_detect_shows_it_bit_for_bit(
    server: Running, bundle: Bundle, seen: list[np.ndarray], pixels: np.ndarray, send: Send
) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    answer = server.ask("POST", "/v1/detect?model=tiny", file.getvalue(), {"Content-Type": "image/png"})
    assert answer.status == 200, answer.body
    send(server, "tiny", np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    by_detect, by_tensor = seen
    assert by_tensor.dtype == by_detect.dtype == np.float32
    np.testing.assert_array_equal(by_tensor, by_detect)
    np.testing.assert_array_equal(by_tensor[0], bundle.prepare(pixels)[0])


@pytest.mark.parametrize("send", WAYS)
def test_a_network_that_takes_bytes_gets_them_without_a_detour(
    takes_bytes: Running, seen: list[np.ndarray], pixels: np.ndarray, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("bytes were converted")

    monkeypatch.setattr(runner, "to_uint8_input", refuse)
    monkeypatch.setattr(served_model, "unit_pixels", refuse, raising=False)
    several = np.stack([pixels, pixels[::-1], pixels[:, ::-1]])
    send(takes_bytes, "tiny", np.ascontiguousarray(several.transpose(0, 3, 1, 2)))
    (given,) = seen
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given, several)


def test_a_network_that_takes_bytes_still_takes_fractions(
    takes_bytes: Running, seen: list[np.ndarray], pixels: np.ndarray
) -> None:
    planes = to_input(pixels)[None]
    tensor = {"name": "images", "datatype": "FP32", "shape": list(planes.shape), "data": planes.ravel().tolist()}
    answer = takes_bytes.ask("POST", "/v2/models/tiny/infer", {"inputs": [tensor]})
    assert answer.status == 200, answer.body
    np.testing.assert_array_equal(seen[0], pixels[None])


def test_bytes_of_another_shape_are_refused(takes_bytes: Running, pixels: np.ndarray) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *pixels.shape], "data": pixels.ravel().tolist()}
    answer = takes_bytes.ask("POST", "/v2/models/tiny/infer", {"inputs": [tensor]})
    assert answer.status == 400
    assert f"(N, 3, {HEIGHT}, {WIDTH})" in answer.json["error"]


@pytest.mark.parametrize(("served", "datatype"), [("server", "FP32"), ("takes_bytes", "UINT8")])
def test_metadata_names_the_type_and_shape_that_the_network_is_best_given(
    request: pytest.FixtureRequest, served: str, datatype: str
) -> None:
    import grpc

    running: Running = request.getfixturevalue(served)
    (said,) = running.ask("GET", "/v2/models/tiny").json["inputs"]
    assert said == {"name": "images", "datatype": datatype, "shape": [-1, 3, HEIGHT, WIDTH]}
    with grpc.insecure_channel(running.grpc) as channel:
        metadata = channel.unary_unary(
            f"/{SERVICE}/ModelMetadata",
            request_serializer=message_type("ModelMetadataRequest").SerializeToString,
            response_deserializer=message_type("ModelMetadataResponse").FromString,
        )
        (over_grpc,) = metadata(message_type("ModelMetadataRequest")(name="tiny"), timeout=20).inputs
    assert (over_grpc.name, over_grpc.datatype, list(over_grpc.shape)) == tuple(said.values())
    # What it says can be sent as it is.
    shape = [1 if side == -1 else side for side in said["shape"]]
    tensor = {**said, "shape": shape, "data": [1] * int(np.prod(shape))}
    answer = running.ask("POST", "/v2/models/tiny/infer", {"inputs": [tensor]})
    assert answer.status == 200, answer.body
