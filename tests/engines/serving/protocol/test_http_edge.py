"""What stands around every HTTP request: token, headers, ids, limits, and refusals that tell nothing."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from prunedeploy_engines import Bundle
from served_protocol import Running, images, infer_body, picture, running

PNG = {"Content-Type": "image/png"}


def infer(server: Running, body: Any, **headers: str) -> Any:
    return server.ask("POST", "/v2/models/tiny/infer", body, {"Content-Type": "application/json", **headers})


def changed(**tensor: Any) -> dict[str, Any]:
    """A good request with one input changed; None leaves a key out."""
    body = infer_body(images(0, 1))
    for key, value in tensor.items():
        body["inputs"][0][key] = value
        if value is None:
            del body["inputs"][0][key]
    return body


GOOD = infer_body(images(0, 1))
REFUSED: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "UTF-8"),
    "UTF-16": ('{"inputs": []}'.encode("utf-16"), "UTF-8"),
    "NaN": (b'{"inputs": [NaN]}', "NaN"),
    "long number": (b'{"inputs": ' + b"9" * 5000 + b"}", "number"),
    "no object": ([], "object"),
    "no inputs": ({}, "inputs"),
    "inputs empty": ({"inputs": []}, "inputs"),
    "two inputs": ({"inputs": [*GOOD["inputs"], *GOOD["inputs"]]}, "inputs"),
    "input no object": ({"inputs": [3]}, "inputs[0]"),
    "id": ({**GOOD, "id": 7}, "id"),
    "parameters": ({**GOOD, "parameters": []}, "parameters"),
    "timeout": ({**GOOD, "parameters": {"timeout": 0.5}}, "timeout"),
    "sequence": ({**GOOD, "parameters": {"sequence_id": 5}}, "sequence_id"),
    "flag": ({**GOOD, "parameters": {"binary_data_output": 1}}, "binary_data_output"),
    "name": (changed(name=None), "inputs[0].name"),
    "wrong name": (changed(name="picture"), "images"),
    "datatype": (changed(datatype="FP8"), "inputs[0].datatype"),
    "datatype list": (changed(datatype=["FP32"]), "inputs[0].datatype"),
    "no shape": (changed(shape=None), "inputs[0].shape"),
    "negative": (changed(shape=[-1, 3, 32, 48]), "inputs[0].shape"),
    "fraction": (changed(shape=[1.0, 3, 32, 48]), "inputs[0].shape"),
    "boolean": (changed(shape=[True, 3, 32, 48]), "inputs[0].shape"),
    "overflow": (changed(shape=[2**31 - 1] * 8), "inputs[0]"),
    "rank": (changed(shape=[1] * 9), "inputs[0].shape"),
    "other shape": (changed(shape=[1, 3, 48, 32]), "inputs[0].shape"),
    "no data": (changed(data=None), "inputs[0].data"),
    "short": (changed(data=[0.5]), "inputs[0].data"),
    "text": (changed(data=["0.5"] * 4608), "inputs[0].data"),
    "null": (changed(data=[None] * 4608), "inputs[0].data"),
    "ragged": (changed(data=[[1, 2], [3]]), "inputs[0].data"),
    "huge": (changed(data=[1e300] * 4608), "inputs[0].data"),
    "endless": (changed(data=[10**400] * 4608), "inputs[0].data"),
    "shared memory": (changed(parameters={"shared_memory_region": "a"}), "shared_memory"),
    "both": (changed(parameters={"binary_data_size": 0}), "inputs[0]"),
    "outputs": ({**GOOD, "outputs": [{"name": "masks"}]}, "outputs[0].name"),
    "outputs no list": ({**GOOD, "outputs": "boxes"}, "outputs"),
    "classification": (
        {**GOOD, "outputs": [{"name": "scores", "parameters": {"classification": 3}}]},
        "classification",
    ),
    "deep": (b'{"inputs": ' + b"[" * 50 + b"]" * 50 + b"}", "nested"),
    "very deep": (b"[" * 300_000, "nested"),
    "deep behind a string": (b'{"a\\\\\\"": "[[", "b": ' + b"[" * 50 + b"]" * 50 + b"}", "nested"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_request_names_its_field(server: Running, case: str) -> None:
    body, said = REFUSED[case]
    answer = infer(server, body)
    assert answer.status == 400, answer.body
    assert list(answer.json) == ["error"]
    assert said in answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_brackets_in_strings_are_not_nesting(server: Running) -> None:
    assert infer(server, {**GOOD, "id": '[[[["\\' * 60}).status == 200


def test_too_many_lists(server: Running) -> None:
    assert infer(server, b'{"inputs": [' + b"[]," * 200_001 + b"[]]}").status == 413


@pytest.mark.parametrize(
    ("length", "size", "said"),
    [
        ("x", 18432, "Inference-Header-Content-Length"),
        ("-5", 18432, "Inference-Header-Content-Length"),
        ("99999999", 18432, "Inference-Header-Content-Length"),
        (None, 18433, "binary_data_size"),
        (None, -1, "binary_data_size"),
        (None, 18431, "inputs[0]"),
        (None, True, "binary_data_size"),
    ],
)
def test_binary_sizes_are_checked(server: Running, length: str | None, size: Any, said: str) -> None:
    import json

    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 32, 48], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    header = {"Inference-Header-Content-Length": length or str(len(text))}
    answer = infer(server, text + images(0, 1).tobytes(), **header)
    assert answer.status == 400, answer.body
    assert said in answer.json["error"]


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xff\xff\xff", b"\x05\0\0\0ab", b"\x01\0", b"", b"\x01\0\0\0a\x01\0\0\0b", b"\0\0\0\0" * 1000],
)
def test_lengths_of_elements_are_checked(server: Running, raw: bytes) -> None:
    import json

    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = server.ask("POST", "/v2/models/tiny-detect/infer", text + raw, headers)
    assert answer.status == 400, answer.body
    assert "inputs[0]" in answer.json["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit(bundle: Bundle, chunked: bool) -> None:
    with running({"tiny": bundle}, max_body_bytes=1000) as own:
        assert own.ask("POST", "/v2/repository/index", b" " * 998 + b"{}", chunked=chunked).status == 200
        answer = own.ask("POST", "/v2/repository/index", b" " * 999 + b"{}", chunked=chunked)
        assert answer.status == 413
        assert "1000" in answer.json["error"]


def test_slow_client_is_cut_off(bundle: Bundle) -> None:
    with running({"tiny": bundle}, body_timeout_s=0.3) as own:
        host, port = own.http.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
            answer = b""
            while part := slow.recv(4096):  # ends because the server closes
                answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()


def test_client_that_hangs_up_does_no_harm(server: Running) -> None:
    host, port = server.http.split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=20) as gone:
            gone.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    assert server.ask("POST", "/v1/detect", picture(0), PNG).status == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/v2", "/v1/models", "/metrics", "/nowhere", "/openapi.json"])
def test_headers_of_every_answer(server: Running, path: str) -> None:
    headers = server.ask("GET", path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    assert len(headers["x-request-id"]) == 16


@pytest.mark.parametrize(("given", "kept"), [("abc-7.X", True), ("a b", False), ("x" * 65, False), ("<b>", False)])
def test_request_id_comes_back_if_it_is_plain(server: Running, given: str, kept: bool) -> None:
    answer = server.ask("GET", "/v2", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is kept


def test_wrong_addresses_and_methods(server: Running) -> None:
    assert server.ask("GET", "/v3").json == {"error": "there is no such address"}
    refused = server.ask("DELETE", "/v1/detect")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    for path in ("/v2/models/tiny/versions/2", "/v2/models/tiny%2F..%2Fx", "/v2/models/nobody/ready"):
        assert server.ask("GET", path).status == 404


def test_parameters_of_loading_are_refused(server: Running) -> None:
    for parameters in ({"config": "{}"}, {"file:1/model.onnx": "AAAA"}):
        answer = server.ask("POST", "/v2/repository/models/tiny/load", {"parameters": parameters})
        assert answer.status == 400
        assert next(iter(parameters)) in answer.json["error"]


def test_bundle_that_is_damaged_later_tells_the_client_no_path(bundle: Bundle, tmp_path: Any) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    from prunedeploy_engines import load_bundle

    with running({"tiny": load_bundle(copy)}) as own:
        with (copy / "model.onnx").open("ab") as file:
            file.write(b"x")
        answer = own.ask("POST", "/v2/repository/models/tiny/load")
        assert answer.status == 503
        assert str(tmp_path) not in answer.json["error"]
        assert own.ask("POST", "/v1/detect", picture(0), PNG).status == 200, "the one that was loaded stays"


def test_token_opens_all_but_what_is_open(bundle: Bundle) -> None:
    with running({"tiny": bundle}, token="a-secret") as own:
        for path in ("/", "/docs", "/openapi.json", "/static/page.js", "/v2/health/live", "/v2/health/ready"):
            assert own.ask("GET", path).status == 200, path
        for path in ("/v2", "/v1/models", "/metrics", "/v2/models/tiny", "/nowhere"):
            refused = own.ask("GET", path)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer"), path
        for given in ("Bearer a-secre", "Bearer a-secret2", "bearer", "a-secret", "Bearer é"):
            assert own.ask("GET", "/v2", headers={"Authorization": given}).status == 401, given
        for given in ("Bearer a-secret", "bearer a-secret"):
            assert own.ask("GET", "/v2", headers={"Authorization": given}).status == 200, given


def test_full_queue_answers_503_at_once_and_loses_nothing(bundle: Bundle) -> None:
    with running({"tiny": bundle}, max_batch=1, max_queue=1, max_delay_ms=0.0) as own:
        body = infer_body(images(1, 1))
        seen: list[Any] = []

        def ask() -> None:
            for _ in range(15):
                seen.append(own.ask("POST", "/v2/models/tiny/infer", body))

        # Nothing but load makes the queue full, so ask until it was.
        until = time.monotonic() + 60
        while not any(answer.status == 503 for answer in seen) and time.monotonic() < until:
            threads = [threading.Thread(target=ask) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        refused = [answer for answer in seen if answer.status == 503]
        assert refused, "the queue was never full"
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.status for answer in seen} == {200, 503}
