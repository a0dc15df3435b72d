"""Requests that are refused by their heads: the answer comes before the body does, and its client gets to read it."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prunedeploy_engines import Bundle
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.serving.core.served_model import ServedModel
from prunedeploy_engines.serving.grpc.messages import SERVICE, message_type
from prunedeploy_engines.serving.http import connection as http_connection
from served_protocol import Running, images, infer_body, picture, running

MIB = 1 << 20
PICTURE = base64.b64encode(picture(0)).decode()
AUTHORIZED = b"Authorization: Bearer secret\r\n"
INFER = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\n"


class Gate:
    """Holds back a runner."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self._begun = threading.Semaphore(0)

    def run(self) -> None:
        """The runner has begun something."""
        self._begun.release()
        assert self.open.wait(30)

    def close(self) -> None:
        """From now on."""
        while self._begun.acquire(blocking=False):  # what was begun before
            pass
        self.open.clear()

    def wait(self) -> None:
        """Until the runner has begun something and is held back."""
        assert self._begun.acquire(timeout=30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Of every runner."""
    made = Gate()
    infer = OnnxRuntimeRunner._infer

    def held(self: OnnxRuntimeRunner, pixels: Any) -> Any:
        made.run()
        return infer(self, pixels)

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", held)
    yield made
    made.open.set()


@pytest.fixture
def busy(bundle: Bundle, gate: Gate) -> Iterator[Running]:
    """A server whose one runner is at work until the gate opens, with a full queue behind it."""
    with running({"tiny": bundle}, max_batch=1, max_queue=1, max_delay_ms=0.0, token="secret") as there:
        gate.close()
        asking = [threading.Thread(target=ask_politely, args=(there,)) for _ in range(2)]
        asking[0].start()
        gate.wait()
        asking[1].start()
        while b'queue_depth{model="tiny"} 1.0' not in there.ask("GET", "/metrics", headers=BEARER).body:
            pass
        yield there
        gate.open.set()
        for thread in asking:
            thread.join()


BEARER = {"Authorization": "Bearer secret"}


def ask_politely(server: Running) -> None:
    assert server.ask("POST", "/v2/models/tiny/infer", infer_body(images(0, 1)), BEARER).status == 200


def connected(server: Running) -> socket.socket:
    host, port = server.http.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def one_answer(client: socket.socket) -> tuple[int, bytes, dict[str, Any]]:
    """Status, head in lower case and JSON of the next answer."""
    stream = client.makefile("rb")
    head = b"".join(iter(stream.readline, b"\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    return int(head.split()[1]), head, json.loads(stream.read(length))


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no token": (INFER + b"Content-Length: %d\r\n\r\n" % (8 * MIB), 401, "token"),
    "unknown model": (
        INFER.replace(b"tiny", b"nobody") + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % (8 * MIB),
        404,
        "nobody",
    ),
    "too large": (INFER + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % (40 * MIB), 413, "larger"),
    "queue full": (INFER + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % (8 * MIB), 503, "1 images wait"),
    "queue full, chunked": (INFER + AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n", 503, "1 images wait"),
    "image": (
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\n" + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % (8 * MIB),
        503,
        "1 images wait",
    ),
    "kind": (
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Type: text/html\r\n"
        + AUTHORIZED
        + b"Content-Length: %d\r\n\r\n" % (8 * MIB),
        415,
        "Content-Type",
    ),
    "no such address": (
        INFER.replace(b"/v2", b"/v3") + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % (8 * MIB),
        404,
        "address",
    ),
}


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"], ids=["", "expects"])
@pytest.mark.parametrize("case", REFUSED)
def test_the_answer_comes_before_a_byte_of_the_body_was_sent(busy: Running, case: str, expects: bytes) -> None:
    head, status, said = REFUSED[case]
    with connected(busy) as client:
        client.sendall(head.replace(b"Host: a\r\n", b"Host: a\r\n" + expects))
        answered, told, document = one_answer(client)
        assert client.recv(1) == b"", "nothing more comes"
    assert answered == status, "and not 100"
    assert said in document["error"]
    assert b"connection: close" in told


@pytest.mark.parametrize("case", ["no token", "too large", "queue full"])
def test_a_client_that_sends_everything_before_it_reads_sees_the_answer(busy: Running, case: str) -> None:
    head, status, _ = REFUSED[case]
    length = int(head.split(b"Content-Length: ")[1])
    with connected(busy) as client:
        client.sendall(head)
        for _ in range(length // MIB):
            client.sendall(bytes(MIB))  # would fail if the server had reset the connection
        assert one_answer(client)[0] == status


def test_of_a_small_body_the_connection_goes_on(busy: Running, gate: Gate) -> None:
    body = json.dumps(infer_body(images(0, 1))).encode()
    asked = INFER + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % len(body)
    with connected(busy) as client:
        for _ in range(3):
            client.sendall(asked)
            status, head, _ = one_answer(client)
            assert status == 503
            assert b"connection: close" not in head
            client.sendall(body)  # although nobody wants it any more
        gate.open.set()
        answered = 503
        while answered == 503:  # until the queue is empty
            client.sendall(asked + body)
            answered = one_answer(client)[0]
        assert answered == 200


def test_one_that_expects_to_be_told_to_go_on_is_told_if_it_is_let_in(server: Running) -> None:
    body = json.dumps(infer_body(images(0, 1))).encode()
    with connected(server) as client:
        client.sendall(INFER + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert one_answer(client)[0] == 200


def test_reading_on_has_an_end(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "LINGER_BYTES", 4 * MIB)
    sent = 0
    with connected(server) as client:
        client.sendall(INFER + b"Content-Length: %d\r\n\r\n" % (1 << 40))
        assert one_answer(client)[0] == 413
        with contextlib.suppress(ConnectionError):
            while sent < 256 * MIB:
                client.sendall(bytes(MIB))
                sent += MIB
    assert 4 * MIB <= sent < 32 * MIB, "what lies in the sockets' buffers counts as sent"


def test_reading_on_ends_for_those_who_do_nothing(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "LINGER_S", 0.05)
    with connected(server) as client:
        client.sendall(INFER.replace(b"tiny", b"nobody") + b"Content-Length: %d\r\n\r\n" % (8 * MIB))
        assert one_answer(client)[0] == 404
        with contextlib.suppress(ConnectionError):
            while True:  # which ends, or the test's time does
                client.sendall(b"x")
                threading.Event().wait(0.01)


@pytest.mark.parametrize("place", ["header", "JSON"])
def test_a_deadline_that_cannot_be_kept_is_refused_before_the_tensor_comes(
    bundle: Bundle, gate: Gate, place: str
) -> None:
    pixels = images(0, 1)
    tensor = {"name": "images", "datatype": "FP32", "shape": list(pixels.shape)}
    document: dict[str, Any] = {"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}]}
    header = b""
    if place == "JSON":
        document["parameters"] = {"timeout": 200_000}
    else:
        header = b"X-Request-Timeout: 0.2\r\n"
    text = json.dumps(document).encode()
    head = INFER + header + b"Inference-Header-Content-Length: %d\r\n" % len(text)
    head += b"Content-Length: %d\r\n\r\n" % (len(text) + pixels.nbytes)
    with running({"tiny": bundle}, max_batch=1, max_delay_ms=0.0) as there, connected(there) as client:
        slow = held_back(there, gate)
        threading.Event().wait(0.6)  # so that the model is known to take longer than the deadline
        gate.open.set()
        slow.join()
        client.sendall(head + text + pixels.tobytes())
        assert one_answer(client)[0] in (200, 504), "nothing is in front of it, so it gets its chance"
        slow = held_back(there, gate)
        client.sendall(head + (text if place == "JSON" else b""))
        status, _, answer = one_answer(client)
        gate.open.set()
        slow.join()
    assert status == 503
    assert "in front of it" in answer["error"]


def held_back(server: Running, gate: Gate) -> threading.Thread:
    """A request that a runner is at until the gate opens."""
    gate.close()
    asking = threading.Thread(target=server.ask, args=("POST", "/v2/models/tiny/infer", infer_body(images(0, 1))))
    asking.start()
    gate.wait()
    return asking


def test_an_answer_that_comes_too_late_is_not_given(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ServedModel._detections

    def slow(self: ServedModel, *given: Any) -> Any:
        threading.Event().wait(1.5)  # behind the network, where nothing looks at the time
        return found(self, *given)

    headers = {"Content-Type": "image/png", "X-Request-Timeout": "1"}
    monkeypatch.setattr(ServedModel, "_detections", slow)
    answer = server.ask("POST", "/v1/detect", picture(0), headers)
    assert answer.status == 504, answer.body
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [PICTURE]}]}
    answer = server.ask("POST", "/v2/models/tiny-detect/infer", body, headers)
    assert answer.status == 504, answer.body
    monkeypatch.undo()
    assert server.ask("POST", "/v1/detect", picture(0), headers).status == 200


def grpc_call(server: Running, messages: Any, **options: Any) -> Any:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            infer(messages, **options)
    return refused.value


@pytest.mark.parametrize(("token", "code"), [("nobody", "UNAUTHENTICATED"), ("secret", "RESOURCE_EXHAUSTED")])
def test_grpc_refuses_before_the_message_comes(busy: Running, token: str, code: str) -> None:
    never: queue.Queue[bytes] = queue.Queue()
    error = grpc_call(busy, iter(never.get, b""), timeout=20, metadata=(("authorization", f"Bearer {token}"),))
    never.put(b"")
    assert error.code().name == code


def test_grpc_does_not_wait_for_ever_for_a_message(bundle: Bundle) -> None:
    with running({"tiny": bundle}, body_timeout_s=0.2) as own:
        for _ in range(3):
            never: queue.Queue[bytes] = queue.Queue()  # its own, or it might be given what frees the one before
            error = grpc_call(own, iter(never.get, b""))
            assert error.code().name == "DEADLINE_EXCEEDED"
            assert error.details() == "the message did not arrive within 0.2 s"
            never.put(b"")
        message = message_type("ModelInferRequest")(model_name="nobody").SerializeToString()
        assert grpc_call(own, iter([message])).code().name == "NOT_FOUND"


def test_grpc_without_a_message_is_refused(server: Running) -> None:
    error = grpc_call(server, iter(()), timeout=20)
    assert error.code().name == "INVALID_ARGUMENT"
    assert "no ModelInferRequest" in error.details()


def test_grpc_large_messages_are_not_taken_in_before_they_are_refused(busy: Running) -> None:
    message = message_type("ModelInferRequest")(model_name="tiny", raw_input_contents=[bytes(24 * MIB)])
    counted = Counting(busy.grpc)
    there = Running(busy.http, counted.address)
    error = grpc_call(there, iter([message.SerializeToString()]), timeout=20, metadata=(("authorization", "x"),))
    counted.close()
    assert error.code().name == "UNAUTHENTICATED"
    assert counted.passed < 12 * MIB, "windows of HTTP/2 and buffers, but not the message"


class Counting:
    """A relay in front of a server that counts what clients send."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.passed = 0
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def _relay(self) -> None:
        client, _ = self._listening.accept()
        with client, socket.create_connection(self._target) as server:
            back = threading.Thread(target=self._pump, args=(server, client, lambda size: None), daemon=True)
            back.start()
            self._pump(client, server, self._count)
            back.join(30)

    def _count(self, size: int) -> None:
        self.passed += size

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
        try:
            while part := source.recv(1 << 14):
                count(len(part))
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listening.close()
        self._thread.join(30)
