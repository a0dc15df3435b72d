"""`serve` as it is typed: what it says, what it answers, and how it ends."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from served_command import FREE_PORTS, Command, serving

for needed in ("fastapi", "uvicorn", "grpc", "prometheus_client", "python_multipart", "onnxruntime"):
    pytest.importorskip(needed, reason="serving needs the extras 'serve' and 'cpu'")
TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Random colours in cells, of several sizes, larger and smaller than the network's input."""
    random = np.random.default_rng(0)
    files = []
    for number, (height, width) in enumerate([(32, 48), (100, 61), (20, 300), (7, 9)]):
        cells = random.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        file = tmp_path / f"{number}{'.jpg' if number % 2 else '.png'}"
        Image.fromarray(cells.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]).save(file)
        files.append(file)
    return files


def detections(server: Command, file: Path, query: str) -> list[dict[str, Any]]:
    status, answer = server.ask("POST", f"/v1/detect?{query}", file.read_bytes(), {"Content-Type": TYPES[file.suffix]})
    assert status == 200, answer
    return answer["images"][0]["detections"]


@pytest.mark.parametrize(
    "runtime",
    [
        "onnxruntime",
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino"),
        ),
    ],
)
def test_detections_are_those_of_detect(run: Any, bundle: Path, pictures: list[Path], runtime: str) -> None:
    done = run("detect", bundle, *pictures, "--score-threshold", "0.4", "--json")
    expected = [row["detections"] for row in json.loads(done.stdout)]
    assert sum(map(len, expected)) > 10
    with serving(bundle, "--runtime", runtime) as server:
        found = [detections(server, file, "score_threshold=0.4") for file in pictures]
    for ours, theirs in zip(found, expected, strict=True):
        assert [one["class_id"] for one in ours] == [one["class_id"] for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            left, top, right, bottom = one["box"]
            box = [other[key] for key in ("x_min", "y_min", "width", "height")]
            assert [left, top, right - left, bottom - top] == pytest.approx(box, abs=2e-3)
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_one_line_says_what_is_served_and_where(run_process: Any, bundle: Path) -> None:
    # The process ends itself as soon as it has said where it listens.
    before = (
        "import click, os, signal; echo = click.echo\n"
        "click.echo = lambda *a, **k: (echo(*a, **k), os.kill(os.getpid(), signal.SIGTERM))"
    )
    done = run_process("serve", f"red={bundle}", *FREE_PORTS, before=before)
    assert done.returncode == 0, done.stderr
    host = r"127\.0\.0\.1:[1-9]\d*"
    assert re.fullmatch(rf"serving red at http://{host}, gRPC at {host}\n", done.stdout)
    done = run_process("serve", f"red={bundle}", *FREE_PORTS, "--no-grpc", "--host", "::1", before=before)
    assert re.fullmatch(r"serving red at http://\[::1\]:[1-9]\d*\n", done.stdout), done.stderr


def test_names_are_those_of_folders_unless_given(bundle: Path, tmp_path: Path) -> None:
    build = tmp_path / "ratio-0.75"
    build.mkdir()
    shutil.copytree(bundle, build / "bundle")
    for name in ("build.json", "results.json"):
        (build / name).write_text("{}")
    shutil.copytree(bundle, tmp_path / "plain")
    with serving(build, tmp_path / "plain", f"third={bundle}") as server:
        assert server.said["models"] == ["ratio-0.75", "plain", "third"]
        assert server.said["grpc"].startswith("127.0.0.1:")
        _, answer = server.ask("GET", "/v1/models")
        assert [model["name"] for model in answer["models"]] == server.said["models"]


def test_options_reach_the_server(bundle: Path, pictures: list[Path]) -> None:
    with serving(bundle, "--max-body-mb", "1", "--max-megapixels", "0.005", "--max-images", "1") as server:
        assert server.ask("POST", "/v1/detect", bytes(2 << 20), {"Content-Type": "image/png"})[0] == 413
        assert len(detections(server, pictures[0], "score_threshold=0")) > 0
        status, answer = server.ask("POST", "/v1/detect", pictures[1].read_bytes(), {"Content-Type": "image/jpeg"})
        assert (status, "6100 pixels" in answer["error"]) == (413, True)


def half_sent(server: Command, body: bytes) -> socket.socket:
    """A connection with all of a request but the second half of its body."""
    client = socket.create_connection(server.address, timeout=60)
    head = f"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body[: len(body) // 2])
    return client


def whole_answer(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    while part := client.recv(1 << 16):
        answer += part
    client.close()
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_begun_is_answered_after_a_signal(bundle: Path, red_cell: Path, number: int) -> None:
    body = red_cell.read_bytes()
    with serving(bundle) as server:
        clients = [half_sent(server, body) for _ in range(12)]
        assert server.ask("GET", "/v2/health/ready")[0] == 200  # so the server has read what was sent before
        server.signal(number)
        server.until_refused()
        for client in clients:
            client.sendall(body[len(body) // 2 :])
        for client in clients:
            head, _, content = whole_answer(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in head.lower()
            (found,) = json.loads(content)["images"][0]["detections"]
            assert (found["class"], found["box"]) == ("red", [8, 16, 16, 24])
        assert server.process.wait(60) == 0


def test_every_answer_of_a_server_that_is_stopped_under_load_arrives(
    bundle: Path, red_cell: Path, tmp_path: Path
) -> None:
    clients = pytest.importorskip("tritonclient.grpc")
    body = red_cell.read_bytes()
    answers: Counter[str] = Counter()  # increments of one name come from one thread
    refusals: list[str] = []
    enough = threading.Event()

    def rest(server: Command, name: str) -> None:
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        try:
            while True:
                connection.request("POST", "/v1/detect", body, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                assert answer.status == 200
                assert len(json.loads(answer.read())["images"][0]["detections"]) == 1
                answers[name] += 1
                if answers[name] == 20:
                    enough.set()
        except OSError:  # nothing listens any more
            connection.close()

    def grpc(server: Command, name: str) -> None:
        tensor = clients.InferInput("images", [1, 3, 32, 48], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 3, 32, 48), np.float32))
        with clients.InferenceServerClient(server.said["grpc"]) as client:
            while True:
                try:
                    client.infer("red", [tensor])
                except clients.InferenceServerException as error:
                    refusals.append(error.status())
                    return
                answers[name] += 1

    with serving(f"red={bundle}", log=tmp_path / "log") as server, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(rest, server, f"http {number}") for number in range(4)]
        asking += [pool.submit(grpc, server, f"grpc {number}") for number in range(4)]
        assert enough.wait(60)
        server.signal(signal.SIGTERM)
        for one in asking:
            one.result(60)
        assert server.process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    answered = [line for line in lines if line.get("status") in ("200", "OK") and line.get("images")]
    for protocol in ("http", "grpc"):
        came = sum(count for name, count in answers.items() if name.startswith(protocol))
        assert came == sum(line["protocol"] == protocol for line in answered) > 0
    # gRPC refuses what comes after the signal; it never gives up what it has accepted.
    assert refusals == ["StatusCode.UNAVAILABLE"] * 4
    assert {line["status"] for line in lines if "status" in line} <= {"200", "OK", "UNAVAILABLE"}


def test_a_second_signal_does_not_wait(bundle: Path, red_cell: Path) -> None:
    with serving(bundle) as server:
        client = half_sent(server, red_cell.read_bytes())
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        server.signal(signal.SIGTERM)
        server.until_refused()
        server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        # One signal would have waited for the client, and told it 408 in the end.
        assert whole_answer(client).startswith(b"HTTP/1.1 503 ")


def test_a_signal_while_models_load_ends_it_at_once(run_process: Any, bundle: Path) -> None:
    before = (
        "import os, signal, prunedeploy_engines.serving.core.repository as repository; load = repository.load_bundle\n"
        "repository.load_bundle = lambda path: (os.kill(os.getpid(), signal.SIGTERM), load(path))[1]"
    )
    done = run_process("serve", f"a={bundle}", f"b={bundle}", *FREE_PORTS, before=before)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs openssl")
    files = folder / "certificate.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subject = ["-subj", "/CN=a test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command = ["openssl", "req", "-x509", *curve, "-nodes", *subject, "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_token_and_tls_protect_both_ports(bundle: Path, red_cell: Path, tmp_path: Path) -> None:
    import grpc

    clients = pytest.importorskip("tritonclient.grpc")
    public, key = certificate(tmp_path)
    (tmp_path / "token").write_text("a long secret\n")
    options = ("--tls-certificate", public, "--tls-key", key, "--token-file", tmp_path / "token")
    with serving(f"red={bundle}", *options, tls=ssl.create_default_context(cafile=public)) as server:
        assert server.said["http"].startswith("https://")
        headers = {"Content-Type": "image/png"}
        assert server.ask("POST", "/v1/detect", red_cell.read_bytes(), headers)[0] == 401
        headers["Authorization"] = "Bearer a long secret"
        status, answer = server.ask("POST", "/v1/detect", red_cell.read_bytes(), headers)
        assert (status, len(answer["images"][0]["detections"])) == (200, 1)
        # Sent to its end before the answer is read, which the server must not lose by closing.
        assert server.ask("POST", "/v1/detect", bytes(40 << 20), headers)[0] == 413
        credentials = grpc.ssl_channel_credentials(public.read_bytes())
        with clients.InferenceServerClient(server.said["grpc"], creds=credentials, ssl=True) as client:
            with pytest.raises(clients.InferenceServerException, match="token"):
                client.get_model_metadata("red")
            bearer = {"authorization": "Bearer a long secret"}
            assert client.get_model_metadata("red", headers=bearer).name == "red"


def test_token_of_the_environment(bundle: Path) -> None:
    with serving(bundle, environment={"PRUNEDEPLOY_TOKEN": "secret"}) as server:
        assert server.ask("GET", "/v1/models")[0] == 401
        assert server.ask("GET", "/v1/models", None, {"Authorization": "Bearer secret"})[0] == 200
