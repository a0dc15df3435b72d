"""The written repository in a real Triton server, where one is at hand.

The wheel of nvidia-pytriton has Triton's core and its Python backend, without ONNX Runtime's and TensorRT's. So all is
real here but the detector's own backend: a Python model runs the ONNX file in its place, under the configuration that
was written for it. Python backends of that age need NumPy 1:

    pip install --target FOLDER --no-deps nvidia-pytriton 'numpy<2' 'pillow>=10.1'
    PRUNEDEPLOY_TEST_TRITON=FOLDER pytest tests/export/cluster/test_triton_server.py
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.cluster.test_triton_models import DETECTORS, bundle_of, detect, encoded_images, rows_of
from prunedeploy_export.cluster.triton_config import TritonSettings
from prunedeploy_export.cluster.triton_repository import write_triton_repository

FOLDER = os.environ.get("PRUNEDEPLOY_TEST_TRITON")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="needs a Triton server: set PRUNEDEPLOY_TEST_TRITON, see the file"
)
http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")

DETECTOR = """
import json, os, sys, time
sys.path.insert(0, {libraries!r})  # NumPy as the backend needs it
sys.path.append({site!r})
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        self.outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        self.session = onnxruntime.InferenceSession(os.path.join(os.path.dirname(__file__), "model.onnx"))

    def execute(self, requests):
        with open({batches!r}, "a") as file:
            file.write(f"{{len(requests)}}\\n")
        time.sleep({seconds})
        responses = []
        for request in requests:
            images = triton.get_input_tensor_by_name(request, "images").as_numpy()
            values = self.session.run(self.outputs, {{"images": images}})
            responses.append(triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(self.outputs, values)]))
        return responses
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(repository: Path, folder: Path, seconds: float = 0.0) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start Triton on a repository whose detector computes in Python and takes so long."""
    given = Path(str(FOLDER)).resolve()
    triton = given / "pytriton" / "tritonserver"
    config = repository / "tiny" / "config.pbtxt"
    text = config.read_text().replace('backend: "onnxruntime"', 'backend: "python"')
    config.write_text(text.replace('platform: "onnxruntime_onnx"\n', "").replace('"model.onnx"', '"model.py"'))
    site = sysconfig.get_path("purelib")
    (repository / "tiny" / "1" / "model.py").write_text(
        DETECTOR.format(libraries=str(given), site=site, seconds=seconds, batches=str(folder / "batches.txt"))
    )
    for part in ("preprocess", "postprocess"):  # the interpreter's own NumPy may be of version 2
        for library in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
            (repository / f"tiny-{part}" / "1" / library).symlink_to(given / library)
    backend = folder / "backends" / "python"
    shutil.copytree(triton / "backends" / "python", backend)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    (backend / "triton_python_backend_stub").chmod(0o755)
    (triton / "bin" / "tritonserver").chmod(0o755)
    ports = free_port(), free_port()
    options = {
        "model-repository": repository,
        "backend-directory": backend.parent,
        "http-port": ports[0],
        "grpc-port": ports[1],
        "allow-metrics": "false",
        "disable-auto-complete-config": "",  # the configuration must be whole
        "exit-on-error": "true",
    }
    arguments = [f"--{name}={value}" if value != "" else f"--{name}" for name, value in options.items()]
    libraries = [sysconfig.get_config_var("LIBDIR"), str(given / "nvidia_pytriton.libs")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "OMP_NUM_THREADS": "1"}
    with (folder / "triton.log").open("wb") as log:
        server = subprocess.Popen(
            [triton / "bin" / "tritonserver", *arguments], env=environment, stdout=log, stderr=log
        )
    client = http.InferenceServerClient(f"127.0.0.1:{ports[0]}")
    for _ in range(120):
        time.sleep(0.5)
        if server.poll() is not None:
            break
        try:
            if client.is_server_ready():
                return server, *ports
        except OSError:
            continue
    stop(server)
    raise AssertionError((folder / "triton.log").read_text()[-5000:])


def stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


Ask = Callable[..., dict[str, np.ndarray]]


def asker(module: Any, port: int) -> Ask:
    """Ask the ensemble with the public client."""

    def ask(*images: bytes, **parameters: object) -> dict[str, np.ndarray]:
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        tensor = module.InferInput("image", [len(images)], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=object))
        answer = client.infer("tiny-detect", [tensor], parameters=parameters or None)
        return {name: answer.as_numpy(name) for name in ("boxes", "scores", "classes", "num_detections")}

    return ask


@pytest.fixture(scope="module", params=DETECTORS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Ask, Ask]]:
    """A bundle's folder, and its server asked over HTTP and over gRPC."""
    folder = tmp_path_factory.mktemp("triton")
    bundle = bundle_of(folder / "bundle", DETECTORS[request.param](folder / "source.onnx"))
    settings = TritonSettings(max_batch=16)
    write_triton_repository(bundle, folder / "models", name="tiny", settings=settings)
    server, http_port, grpc_port = start(folder / "models", folder)
    try:
        yield folder / "bundle", asker(http, http_port), asker(grpc, grpc_port)
    finally:
        stop(server)


def test_public_clients_get_what_detect_gives(served: tuple[Path, Ask, Ask], tmp_path: Path) -> None:
    bundle, *askers = served
    files = encoded_images()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = detect(bundle, *(tmp_path / name for name in files))
    for ask in askers:
        assert rows_of(ask(*files.values())) == expected
        nothing = ask(files["black.png"])
        assert (nothing["boxes"].shape, nothing["scores"].shape) == ((1, 0, 4), (1, 0))


def test_thresholds_as_parameters_of_the_request(served: tuple[Path, Ask, Ask], tmp_path: Path) -> None:
    bundle, over_http, over_grpc = served
    content = encoded_images()["large.jpg"]
    (tmp_path / "large.jpg").write_bytes(content)
    expected = detect(bundle, tmp_path / "large.jpg", options=("--score-threshold", "0.75"))
    assert rows_of(over_http(content, score_threshold=0.75)) == expected
    assert rows_of(over_grpc(content, score_threshold=0.75)) == expected
    assert rows_of(over_http(content, score_threshold="0.75")) == expected


def test_bad_requests_are_the_clients_fault(served: tuple[Path, Ask, Ask]) -> None:
    _, over_http, over_grpc = served
    good = encoded_images()["small.png"]
    for images, parameters, said in (
        ([b"no image"], {}, "image 0: the image has a format that is not accepted"),
        ([good] * 17, {}, "a request must have 1 to 16 images, this one has 17"),
        ([good], {"iou_threshold": 2}, "iou_threshold must be in"),
    ):
        with pytest.raises(http.InferenceServerException, match=said) as refused:
            over_http(*images, **parameters)
        assert refused.value.status() == "400"
        with pytest.raises(grpc.InferenceServerException, match=said) as refused:
            over_grpc(*images, **parameters)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_full_queue_refuses_at_once_and_answers_the_rest(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", DETECTORS["plain"](tmp_path / "source.onnx"))
    settings = TritonSettings(max_batch=1, max_queue=2, python_instances=1, timeout_s=60)
    write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=settings)
    server, port, _ = start(tmp_path / "models", tmp_path, seconds=0.5)
    image = encoded_images()["small.png"]

    def outcome(_: int) -> str:
        try:
            return f"{asker(http, port)(image)['num_detections'][0]} found"
        except http.InferenceServerException as error:
            return str(error)

    try:
        with ThreadPoolExecutor(24) as pool:
            outcomes = list(pool.map(outcome, range(24)))
    finally:
        stop(server)
    answered = [text for text in outcomes if text.endswith("found")]
    refused = [text for text in outcomes if "maximum queue size" in text]
    assert len(answered) + len(refused) == 24, outcomes
    assert len(answered) >= 3  # one computes, two wait
    assert len(refused) >= 3
    assert len(set(answered)) == 1


def test_requests_of_many_clients_become_batches(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", DETECTORS["plain"](tmp_path / "source.onnx"))
    settings = TritonSettings(max_batch=8, preferred_batch=(8,), max_delay_ms=500)
    write_triton_repository(bundle, tmp_path / "models", name="tiny", settings=settings)
    server, port, _ = start(tmp_path / "models", tmp_path, seconds=0.2)
    (tmp_path / "batches.txt").unlink()  # of the warm-up
    image = encoded_images()["small.png"]
    try:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: rows_of(asker(http, port)(image)), range(16)))
    finally:
        stop(server)
    assert all(answer == answers[0] for answer in answers)
    batches = [int(line) for line in (tmp_path / "batches.txt").read_text().split()]
    assert sum(batches) == 16
    assert 1 < max(batches) <= 8
