"""Good requests, damaged at random in every way that a client could: never a 500, never an end of the server."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import grpc
import numpy as np
import pytest

from prunedeploy_engines import Bundle
from served_protocol import Running, images, infer_body, picture, running

ALLOWED = {200, 400, 404, 405, 408, 413, 415, 503, 504}
ALLOWED_GRPC = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
TOKENS = [
    b"null", b"-1", b"1e999", b"NaN", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"[[[[", b"99999999999999999999",
    b"\x00", b"\xff\xfe", b'"data":', b'"shape":', b",", b"\r\n", b"--limit", b"\x7f\xff\xff\xff", b"\xff" * 9,
]  # fmt: skip
Sent = tuple[str, bytes, dict[str, str]]


def good_requests() -> list[Sent]:
    pixels = images(0, 1)
    tensor = {"name": "images", "datatype": "FP32", "shape": list(pixels.shape)}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    file = picture(0)
    element = len(file).to_bytes(4, "little") + file
    encoded = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(element)}}
    encoded_head = json.dumps({"inputs": [encoded], "parameters": {"score_threshold": 0.3}}).encode()
    form = b'--limit\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + file + b"\r\n--limit--\r\n"
    length = "Inference-Header-Content-Length"
    return [
        ("/v2/models/tiny/infer", json.dumps(infer_body(np.round(pixels, 1))).encode(), {}),
        ("/v2/models/tiny/infer", head + pixels.tobytes(), {length: str(len(head))}),
        ("/v2/models/tiny-detect/infer", encoded_head + element, {length: str(len(encoded_head))}),
        ("/v1/detect?score_threshold=0.3", file, {"Content-Type": "image/png"}),
        ("/v1/detect", picture(1, file_format="JPEG"), {"Content-Type": "image/jpeg", "Accept": "image/png"}),
        ("/v1/detect", picture(2, file_format="WEBP"), {"Content-Type": "image/webp", "X-Request-Timeout": "5"}),
        ("/v1/detect?model=tiny", form, {"Content-Type": "multipart/form-data; boundary=limit"}),
        ("/v2/repository/index", b'{"ready": true, "parameters": {}}', {}),
        ("/v2/repository/models/nobody/load", b'{"parameters": {"unload_dependents": false}}', {}),
    ]


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut out, doubled or replaced by a token, mostly near the front, where structure is."""
    for _ in range(random.integers(1, 4)):
        front = min(len(data), 300) if random.random() < 0.7 else len(data)
        start = int(random.integers(0, front + 1))
        end = min(len(data), start + int(random.integers(0, 20)))
        token = TOKENS[random.integers(len(TOKENS))]
        noise = random.integers(0, 256, 4, dtype=np.uint8).tobytes()
        middle = [b"", noise, token, data[start:end] * 3][random.integers(4)]
        data = data[:start] + middle + data[end:]
    return data[: int(random.integers(0, len(data) + 1))] if random.random() < 0.1 else data


def damaged_request(good: Sent, random: np.random.Generator) -> Sent:
    path, body, headers = good
    if headers and random.random() < 0.2:
        name = list(headers)[random.integers(len(headers))]
        text = damaged(headers[name].encode(), random).decode("latin-1")
        headers = {**headers, name: "".join(letter for letter in text if letter.isprintable())}
    return path, damaged(body, random), headers


def attack(server: Running, count: int, seed: int) -> dict[int, int]:
    """Send damaged requests over few connections; how many were answered with which status."""
    random = np.random.default_rng(seed)
    good = good_requests()
    seen: dict[int, int] = {}
    connection = http.client.HTTPConnection(server.http, timeout=30)
    for number in range(count):
        path, body, headers = damaged_request(good[number % len(good)], random)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status in ALLOWED, (number, path, headers, body[:400], content)
        if answer.status >= 400:
            line = json.loads(content)["error"]
            assert "\n" not in line
            assert "Traceback" not in line
            assert "site-packages" not in line
        seen[answer.status] = seen.get(answer.status, 0) + 1
    connection.close()
    return seen


def still_good(server: Running) -> None:
    for path, body, headers in good_requests()[:8]:
        assert server.ask("POST", path, body, headers).status == 200, path


def test_damaged_requests(server: Running) -> None:
    seen = attack(server, 1000, seed=0)
    assert sum(count for status, count in seen.items() if status >= 400) > 500, "most damage should be noticed"
    still_good(server)


def test_damaged_messages(server: Running) -> None:
    messages = pytest.importorskip("tritonclient.grpc.service_pb2", reason="the reference is tritonclient[grpc]")
    pixels = images(0, 1)
    request = messages.ModelInferRequest(model_name="tiny", id="a")
    request.inputs.add(name="images", datatype="FP32", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    typed = messages.ModelInferRequest(model_name="tiny-detect")
    given = typed.inputs.add(name="image", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(picture(0))
    good = [
        ("ModelInfer", request.SerializeToString()),
        ("ModelInfer", typed.SerializeToString()),
        ("ModelMetadata", messages.ModelMetadataRequest(name="tiny", version="1").SerializeToString()),
        ("RepositoryIndex", messages.RepositoryIndexRequest(ready=True).SerializeToString()),
    ]
    random = np.random.default_rng(1)
    seen = set()
    with grpc.insecure_channel(server.grpc) as channel:
        calls = {name: channel.unary_unary(f"/inference.GRPCInferenceService/{name}") for name, _ in good}
        for number in range(400):
            name, message = good[number % len(good)]
            try:
                calls[name](damaged(message, random), timeout=20)
                seen.add("OK")
            except grpc.RpcError as error:
                seen.add(error.code().name)
        for name, message in good:
            calls[name](message, timeout=20)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= seen <= ALLOWED_GRPC


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see the memory")
def test_ten_thousand_damaged_requests_leave_nothing_behind(bundle: Bundle) -> None:
    with running({"tiny": bundle}) as own:
        attack(own, 2000, seed=2)  # so that every cache is as full as it gets
        before = resident()
        attack(own, 10_000, seed=3)
        assert resident() < before + 32 * 2**20
        still_good(own)
