"""What a client can do to a connection before and behind its request, and what stays of it in memory."""

from __future__ import annotations

import gc
import io
import json
import logging
import socket
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines import Bundle
from prunedeploy_engines.serving.grpc.messages import SERVICE, message_type
from prunedeploy_engines.serving.http.connection import MAX_HEAD_BYTES
from prunedeploy_engines.serving.telemetry.logs import configure_logs
from served_protocol import Running, picture, running

PNG = {"Content-Type": "image/png"}
MIB = 1 << 20
UPLOAD = b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"


def connected(server: Running) -> socket.socket:
    host, port = server.http.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def until_closed(client: socket.socket) -> bytes:
    """All that comes; ends when the server closes the connection, or resets it."""
    answer = b""
    try:
        while part := client.recv(1 << 16):
            answer += part
    except ConnectionError:
        pass
    return answer


def sent_before_it_is_cut(client: socket.socket, start: bytes, piece: bytes) -> int:
    """Bytes that can be sent, piece by piece, until the server has closed; 64 MiB if it never does."""
    client.sendall(start)
    sent = 0
    try:
        while sent < 64 * MIB:
            client.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /v2 HTTP/1.1\r\nX: ", b"a" * 65536),
        (b"GET /v2 HTTP/1.1\r\n", b"X: a\r\n" * 8192),
        (b"GET /", b"a" * 65536),
        (UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: a\r\n" * 8192),
    ],
    ids=["one header", "many headers", "address", "trailers"],
)
def test_endless_head_is_cut(server: Running, start: bytes, piece: bytes) -> None:
    with connected(server) as client:
        # What lies in the sockets' buffers counts as sent, and is a few MiB on loopback.
        assert sent_before_it_is_cut(client, start, piece) < 32 * MIB
    assert server.ask("GET", "/v2/health/live").status == 200


def test_head_over_the_limit_is_told_so(server: Running) -> None:
    with connected(server) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n")
        for _ in range(2):  # the first arrives by itself, so that the second is over the limit
            client.sendall(b"X: " + b"a" * MAX_HEAD_BYTES)
            time.sleep(0.2)
        answer = until_closed(client)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert list(json.loads(answer.split(b"\r\n\r\n")[1])) == ["error"]


def test_large_body_is_no_endless_head(server: Running) -> None:
    file = picture(0)
    with connected(server) as client:
        client.sendall(UPLOAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(file), 7):
            piece = file[start : start + 7]
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.sendall(b"0\r\n\r\n")
        assert until_closed(client).startswith(b"HTTP/1.1 200 ")
    assert server.ask("POST", "/v2/repository/index", b" " * MAX_HEAD_BYTES * 3 + b"{}").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        UPLOAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        UPLOAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        UPLOAD + b"Content-Length: -5\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_400_in_the_one_form_of_errors(server: Running, sent: bytes) -> None:
    with connected(server) as client:
        client.sendall(sent)
        answer = until_closed(client)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert list(json.loads(answer.split(b"\r\n\r\n")[1])) == ["error"]


def test_warnings_of_the_http_server_are_lines_of_json_too(server: Running) -> None:
    stream = io.StringIO()
    handler = configure_logs(stream)
    try:
        with connected(server) as client:
            client.sendall(b"nonsense\r\n\r\n")
            until_closed(client)
    finally:
        for name in ("prunedeploy_engines.serving", "uvicorn"):
            logging.getLogger(name).removeHandler(handler)
        logging.getLogger("prunedeploy_engines.serving").propagate = True
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["warning"]


def test_client_that_does_not_read_its_answer_is_cut_off(bundle: Bundle) -> None:
    # Noise that is small as a poor JPEG and more than the sockets' buffers hold as a PNG.
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2500, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=5)
    asked = UPLOAD + b"Accept: image/png\r\nContent-Length: %d\r\n\r\n" % len(file.getvalue())
    with running({"tiny": bundle}, body_timeout_s=1.0) as own, connected(own) as client:
        client.sendall(asked + file.getvalue())
        assert client.recv(1024).startswith(b"HTTP/1.1 200 ")
        time.sleep(3)
        rest = until_closed(client)
        whole = own.ask("POST", "/v1/detect", file.getvalue(), {**PNG, "Accept": "image/png"})
    assert whole.status == 200
    assert len(rest) < len(whole.body)


def kept_after(requests: Callable[[], object]) -> int:
    """Bytes that Python still holds after requests, while its garbage collector rests."""
    requests()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(6):
            requests()
        until = time.monotonic() + 20
        # The server may still be busy with the last.
        while (kept := tracemalloc.get_traced_memory()[0] - before) > 4 * MIB and time.monotonic() < until:
            time.sleep(0.05)
        return kept
    finally:
        tracemalloc.stop()
        gc.enable()


def test_refused_bodies_do_not_stay_until_the_garbage_collector_comes(bundle: Bundle) -> None:
    late = {**PNG, "X-Request-Timeout": "1e-9"}
    announced = UPLOAD + b"Content-Length: %d\r\n\r\n" % (5 * MIB) + b"x" * 4 * MIB
    with running({"tiny": bundle}, body_timeout_s=0.3) as own:

        def four_bodies() -> None:
            with connected(own) as slow:
                slow.sendall(announced)
                assert until_closed(slow).startswith(b"HTTP/1.1 408 ")
            with connected(own) as gone:
                gone.sendall(announced)
            assert own.ask("POST", "/v1/detect", b"\xff\xd8\xff" + b"x" * 4 * MIB, PNG).status == 400
            assert own.ask("POST", "/v1/detect", picture(0) + b"x" * 4 * MIB, late).status == 504

        assert kept_after(four_bodies) <= 4 * MIB


def test_refused_messages_do_not_stay_until_the_garbage_collector_comes(server: Running) -> None:
    grpc = pytest.importorskip("grpc")
    message = message_type("ModelInferRequest")(model_name="tiny", raw_input_contents=[bytes(4 * MIB)])
    message.inputs.add(name="images", datatype="FP32", shape=[1, 3, 32, 48])
    sent = message.SerializeToString()  # once, so that what this side keeps is the same bytes
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        def one_message() -> None:
            with pytest.raises(grpc.RpcError, match="inputs"):
                infer(sent, timeout=20)

        assert kept_after(one_message) <= 4 * MIB
