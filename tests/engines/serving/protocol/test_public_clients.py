"""The server through Triton's public clients; what comes back is compared with arithmetic and with `Bundle.detect`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines import Bundle
from served_protocol import HEIGHT, WIDTH, Running, images, picture, running
from tiny_detector import cell_boxes, cell_scores

http_client = pytest.importorskip("tritonclient.http", reason="the public client is not installed")
grpc_client = pytest.importorskip("tritonclient.grpc", reason="the public client is not installed")
utils = pytest.importorskip("tritonclient.utils", reason="the public client is not installed")

MODULES = {"http": http_client, "grpc": grpc_client}


@pytest.fixture(params=MODULES)
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def client(protocol: str, server: Running) -> Any:
    with MODULES[protocol].InferenceServerClient(getattr(server, protocol)) as opened:
        yield opened


def tensor(protocol: str, name: str, array: np.ndarray, **options: Any) -> Any:
    made = MODULES[protocol].InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, **options)
    return made


def as_json(client: Any, protocol: str, method: str, *arguments: Any) -> Any:
    return getattr(client, method)(*arguments, **({"as_json": True} if protocol == "grpc" else {}))


def test_health_and_metadata(client: Any, protocol: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny-detect", "1")
    about = as_json(client, protocol, "get_server_metadata")
    assert about["name"] == "prunedeploy"
    assert "binary_tensor_data" in about["extensions"]
    metadata = as_json(client, protocol, "get_model_metadata", "tiny")
    shapes = {one["name"]: [int(side) for side in one["shape"]] for one in metadata["inputs"] + metadata["outputs"]}
    assert shapes == {"images": [-1, 3, HEIGHT, WIDTH], "boxes": [-1, -1, 4], "scores": [-1, -1, 3]}


@pytest.mark.parametrize("count", [1, 3, 11])  # 11 are more than a batch
def test_boxes_and_scores_are_the_networks(client: Any, protocol: str, count: int) -> None:
    pixels = images(count, count)
    answer = client.infer("tiny", [tensor(protocol, "images", pixels)], request_id="one-of-mine")
    np.testing.assert_array_equal(answer.as_numpy("boxes"), np.repeat(cell_boxes(HEIGHT, WIDTH)[None], count, axis=0))
    np.testing.assert_allclose(answer.as_numpy("scores"), cell_scores(pixels), rtol=1e-5)
    response = answer.get_response()
    assert (response["id"] if protocol == "http" else response.id) == "one-of-mine"


def test_uint8_is_the_same_as_its_fraction_of_255(client: Any, protocol: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (2, 3, HEIGHT, WIDTH), dtype=np.uint8)
    answer = client.infer("tiny", [tensor(protocol, "images", pixels)])
    np.testing.assert_allclose(answer.as_numpy("scores"), cell_scores(pixels / 255), rtol=1e-5)


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_http_takes_and_gives_tensors_as_json_and_as_bytes(server: Running, binary_in: bool, binary_out: bool) -> None:
    pixels = images(6, 2)
    outputs = [
        http_client.InferRequestedOutput("scores", binary_data=binary_out),
        http_client.InferRequestedOutput("boxes", binary_data=not binary_out),
    ]
    with http_client.InferenceServerClient(server.http) as client:
        sent = tensor("http", "images", pixels, binary_data=binary_in)
        answer = client.infer("tiny", [sent], outputs=outputs)
    np.testing.assert_allclose(answer.as_numpy("scores"), cell_scores(pixels), rtol=1e-5)
    assert answer.as_numpy("boxes").shape == (2, 24, 4)
    assert [one["name"] for one in answer.get_response()["outputs"]] == ["scores", "boxes"]


def test_grpc_takes_typed_contents(server: Running) -> None:
    pixels = images(7, 1)
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name="tiny", id="typed")
    given = request.inputs.add(name="images", datatype="FP32", shape=pixels.shape)
    given.contents.fp32_contents.extend(pixels.ravel().tolist())
    import grpc

    with grpc.insecure_channel(server.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    assert [output.name for output in answer.outputs] == ["boxes", "scores"]
    scores = np.frombuffer(answer.raw_output_contents[1], np.float32).reshape(answer.outputs[1].shape)
    np.testing.assert_allclose(scores, cell_scores(pixels), rtol=1e-5)


@pytest.mark.parametrize(("score", "iou"), [(None, None), (0.2, 0.3)])
def test_encoded_images_give_what_the_bundle_finds(
    client: Any, protocol: str, bundle: Bundle, score: float | None, iou: float | None
) -> None:
    files = [picture(1), picture(2, (50, 31), "JPEG"), picture(3, (40, 200), "WEBP")]
    parameters = {name: value for name, value in (("score_threshold", score), ("iou_threshold", iou)) if value}
    array = np.array(files, dtype=object)
    answer = client.infer("tiny-detect", [tensor(protocol, "image", array)], parameters=parameters or None)
    counts = answer.as_numpy("num_detections")
    boxes, scores, classes = (answer.as_numpy(name) for name in ("boxes", "scores", "classes"))
    assert boxes.shape == (3, counts.max(), 4)
    with bundle:
        for row, file in enumerate(files):
            pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
            found = bundle.detect(pixels, score_threshold=score, iou_threshold=iou)
            assert counts[row] == len(found)
            np.testing.assert_allclose(boxes[row, : len(found)], found.boxes_xyxy, atol=1e-4)
            np.testing.assert_allclose(scores[row, : len(found)], found.scores, rtol=1e-5)
            np.testing.assert_array_equal(classes[row, : len(found)], found.class_ids)
            assert not boxes[row, len(found) :].any()


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("nobody", images(0, 1), "nobody"),
        ("tiny", images(0, 1)[:, :2], "shape"),
        ("tiny", images(0, 1).astype(np.float64), "datatype"),
        ("tiny", images(0, 1) * 255, "255"),
        ("tiny", images(0, 1) * np.nan, "[0, 1]"),
        ("tiny", images(0, 33), "33 images"),
        ("tiny", images(0, 0), "no image"),
    ],
)
def test_refusals_name_the_field(client: Any, protocol: str, name: str, array: np.ndarray, said: str) -> None:
    with pytest.raises(utils.InferenceServerException) as refused:
        client.infer(name, [tensor(protocol, "images", array)])
    assert said in str(refused.value)
    assert refused.value.status() in {"400", "404", "413", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"}


def test_timeout_of_a_microsecond_is_a_deadline(client: Any, protocol: str) -> None:
    with pytest.raises(utils.InferenceServerException) as refused:
        client.infer("tiny", [tensor(protocol, "images", images(0, 1))], timeout=1)
    assert refused.value.status() in {"504", "StatusCode.DEADLINE_EXCEEDED"}


def test_models_are_unloaded_and_loaded(protocol: str, bundle: Bundle) -> None:
    with (
        running({"tiny": bundle, "other": bundle}) as own,
        MODULES[protocol].InferenceServerClient(getattr(own, protocol)) as client,
    ):
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        assert client.is_model_ready("other")
        assert client.is_server_ready(), "it was unloaded on request"
        listed = as_json(client, protocol, "get_model_repository_index")
        states = {one["name"]: one["state"] for one in (listed if protocol == "http" else listed["models"])}
        assert states == {
            "tiny": "UNAVAILABLE", "other": "READY", "tiny-detect": "UNAVAILABLE", "other-detect": "READY"
        }  # fmt: skip
        with pytest.raises(utils.InferenceServerException, match="not loaded"):
            client.infer("tiny", [tensor(protocol, "images", images(0, 1))])
        client.load_model("tiny-detect")
        assert client.is_model_ready("tiny")
        with pytest.raises(utils.InferenceServerException, match="parameters"):
            client.load_model("tiny", config="{}")
        with pytest.raises(utils.InferenceServerException, match="there is no model"):
            client.load_model("nobody")


def test_token_is_asked_for_in_both_protocols(protocol: str, bundle: Bundle) -> None:
    with (
        running({"tiny": bundle}, token="a-secret") as own,
        MODULES[protocol].InferenceServerClient(getattr(own, protocol)) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in (None, {"authorization": "Bearer another"}, {"authorization": "Basic a-secret"}):
            with pytest.raises(utils.InferenceServerException, match="token"):
                client.get_model_metadata("tiny", headers=headers)
        assert client.get_model_metadata("tiny", headers={"authorization": "Bearer a-secret"})


def test_message_over_the_limit_is_refused(protocol: str, bundle: Bundle) -> None:
    with (
        running({"tiny": bundle}, max_body_bytes=20_000) as own,
        MODULES[protocol].InferenceServerClient(getattr(own, protocol)) as client,
    ):
        client.infer("tiny", [tensor(protocol, "images", images(0, 1))])  # 18,432 bytes of pixels
        with pytest.raises((utils.InferenceServerException, OSError)):
            client.infer("tiny", [tensor(protocol, "images", images(0, 2))])
        assert client.is_server_live()
