"""`serve` with what it cannot serve: one line, exit code 2, and nothing on standard output."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunedeploy_engines import load_bundle
from prunedeploy_engines.bundle import BundleFile
from prunedeploy_engines.runtimes.tensorrt.engine_file import EngineFile, sidecar_path, write_engine_file
from served_command import FREE_PORTS

for needed in ("fastapi", "uvicorn", "grpc", "prometheus_client", "python_multipart", "onnxruntime"):
    pytest.importorskip(needed, reason="serving needs the extras 'serve' and 'cpu'")


def refused(done: Any, *said: str, lines: int = 1) -> None:
    """Check the exit code, and that the last of so many lines says all of this."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == lines, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("prunedeploy: error: ")
    assert [part for part in said if part not in last] == [], last


def without(*libraries: str) -> str:
    """Lines of Python that make them as absent as those that were never installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({libraries!r}))"


@pytest.fixture
def run_process(run: Any, run_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As its namesake, but a process is started only for what must be absent: what is refused leaves nothing behind."""

    def call(*arguments: object, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        if before:
            started: subprocess.CompletedProcess[str] = run_process(*arguments, before=before, **environment)
            return started
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in environment.items():
                patch.setenv(name, value)
            done = run(*arguments)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_port_in_use(run_process: Any, bundle: Path, taken: int) -> None:
    done = run_process("serve", bundle, "--port", taken, "--no-grpc")
    refused(done, "--port", f"127.0.0.1:{taken}", "in use", "choose another port")
    done = run_process("serve", bundle, "--port", 0, "--grpc-port", taken)
    refused(done, "--grpc-port", f"127.0.0.1:{taken}", "in use", "choose another port")


def test_two_servers_do_not_share_a_port(run_process: Any, bundle: Path) -> None:
    with socket.socket() as ours:  # what servers with SO_REUSEPORT would allow each other
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        port = ours.getsockname()[1]
        refused(run_process("serve", bundle, "--port", port, "--no-grpc"), "in use")
        refused(run_process("serve", bundle, "--port", 0, "--grpc-port", port), "in use")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "192.0.2.1"), ("cannot listen at 192.0.2.1",)),
        (("--host", "no host"), ("cannot listen at no host", "--host")),
        (("--host", ""), ("the host is empty",)),
        (("--port", "8000", "--grpc-port", "8000"), ("cannot both have port 8000",)),
        (("--max-batch", "65"), ("a queue of 64 images never fills a batch of 65",)),
        (("--max-delay-ms", "nan"), ("max_delay_ms cannot be nan",)),
        (("--timeout", "inf"), ("timeout_s cannot be inf",)),
        (("--max-batch", "0"), ("--max-batch",)),
        (("--port", "65536"), ("--port",)),
    ],
)
def test_options_that_no_server_can_run_with(
    run_process: Any, bundle: Path, options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    done = run_process("serve", bundle, *(() if "--port" in options else FREE_PORTS), *options)
    refused(done, *said, lines=2 if "cannot listen" in said[0] else 1)


def test_whoever_opens_it_to_the_network_is_warned(run_process: Any, bundle: Path, tmp_path: Path) -> None:
    nowhere = ("--host", "192.0.2.1")  # of no machine, so that nothing is opened
    done = run_process("serve", bundle, *FREE_PORTS, *nowhere)
    warning, _ = done.stderr.splitlines()
    expected = "prunedeploy: warning: anybody who reaches 192.0.2.1 can use this server; give --token-file"
    assert warning == expected
    (tmp_path / "token").write_text("secret")
    refused(run_process("serve", bundle, *FREE_PORTS, *nowhere, "--token-file", "token"), "cannot listen")
    refused(run_process("serve", bundle, *FREE_PORTS, *nowhere, PRUNEDEPLOY_TOKEN="secret"), "cannot listen")


def test_shared_memory_is_not_for_everybody_on_the_network(run_process: Any, bundle: Path) -> None:
    done = run_process("serve", bundle, *FREE_PORTS, "--host", "0.0.0.0", "--shared-memory")
    refused(done, "--shared-memory", "0.0.0.0", "--token-file")


def test_a_token_that_is_none(run_process: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    refused(run_process("serve", bundle, "--token-file", "token"), "the token is empty")
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    refused(run_process("serve", bundle, "--token-file", "token"), "token", "ASCII")
    refused(run_process("serve", bundle, "--token-file", "absent"), "--token-file", "absent")


def test_a_bundle_with_a_changed_byte(run_process: Any, bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[100] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    refused(run_process("serve", bundle, *FREE_PORTS), "model.onnx was changed")


def test_what_is_no_bundle(run_process: Any, tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(run_process("serve", "absent"), "absent: there is no such model")
    refused(run_process("serve", "a=absent"), "absent: there is no such model")
    refused(run_process("serve", "folder"), "folder", "neither a bundle nor a build")
    refused(run_process("serve", bundle.parent / "source.onnx"), "source.onnx: is not a bundle")
    refused(run_process("serve"), "BUNDLE")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a-detect"), ("a-detect", "a")])
def test_a_name_twice(run_process: Any, bundle: Path, names: tuple[str, str]) -> None:
    done = run_process("serve", *(f"{name}={bundle}" for name in names))
    refused(done, f"{names[0]!r}", f"{names[1]!r}", "clash", "choose another NAME")


def test_a_folders_name_twice(run_process: Any, bundle: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        shutil.copytree(bundle, tmp_path / folder / "same")
    refused(run_process("serve", "a/same", "b/same"), "b/same", "'same' and 'same' clash")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "ü"])
def test_names_that_no_address_can_have(run_process: Any, bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(bundle, tmp_path / "a b")
    done = run_process("serve", f"{name}={bundle}" if name else "a b")
    refused(done, "cannot be a model's name", "give NAME=BUNDLE")


def test_no_runtime(run_process: Any, bundle: Path) -> None:
    before = without("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    done = run_process("serve", bundle, *FREE_PORTS, before=before)
    refused(done, "no runtime", "pip install 'prunedeploy[cpu]'")
    done = run_process("serve", bundle, *FREE_PORTS, "--runtime", "openvino", before=before)
    refused(done, "OpenVINO is not installed", "pip install 'prunedeploy[openvino]'")


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "grpc", "google", "prometheus_client", "python_multipart"])
def test_no_extra(run_process: Any, bundle: Path, library: str) -> None:
    done = run_process("serve", bundle, *FREE_PORTS, before=without(library))
    refused(done, "serving needs", library, "pip install 'prunedeploy[serve]'")


def test_traces_without_opentelemetry(run_process: Any, bundle: Path) -> None:
    options = ("--otlp-endpoint", "http://127.0.0.1:9/v1/traces")
    done = run_process("serve", bundle, *FREE_PORTS, *options, before=without("opentelemetry.exporter"))
    refused(done, "pip install 'prunedeploy[tracing]'")


def test_a_precision_that_the_bundle_has_not(run_process: Any, bundle: Path) -> None:
    refused(run_process("serve", bundle, *FREE_PORTS, "--precision", "int8"), "has no onnx of precision int8")


def test_an_engine_for_another_device(run_process: Any, bundle: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, whose engines name their device")
    plan = tmp_path / "model.plan"
    content = b"vtrt" + bytes(64)  # refused before anything reads more of it
    engine = EngineFile(
        path=plan, library="tensorrt_rtx", version=library.__version__, target="sm999", device=None, precision="fp32",
        layers={"fp32": 2}, layers_from="engine", uint8_input=False, nms=None, class_names=[], sparsity=None,
        bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), key="", onnx_sha256="", flags={},
        created="2026-01-01T00:00:00+00:00", profile={"images": [[batch, 3, 32, 48] for batch in (1, 1, 8)]},
    )  # fmt: skip
    write_engine_file(engine, content)
    files = {"engine.plan": BundleFile(plan, "engine", "fp32", "sm999")}
    load_bundle(bundle).add_files(
        {**files, "engine.plan.json": BundleFile(sidecar_path(plan), "metadata", None, "sm999")}
    )
    done = run_process("serve", bundle, *FREE_PORTS, "--runtime", "tensorrt")
    refused(done, "engine.plan")
    assert "cannot run here" in done.stderr or "engine.plan (fp32, sm999)" in done.stderr  # without and with a GPU


def test_tls_files_that_are_no_pair(run_process: Any, bundle: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs openssl")

    def pair(name: str, *options: str) -> None:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=a test"]
        files = ["-out", tmp_path / f"{name}.pem", "-keyout", tmp_path / f"{name}.key"]
        subprocess.run(["openssl", "req", "-x509", *curve, *options, *files], check=True, capture_output=True)

    def serve(certificate: str, key: str) -> Any:
        return run_process("serve", bundle, *FREE_PORTS, "--tls-certificate", certificate, "--tls-key", key)

    pair("one", "-nodes")
    pair("other", "-nodes")
    pair("locked", "-passout", "pass:secret")
    (tmp_path / "text").write_text("no PEM")
    refused(serve("one.pem", "other.key"), "one.pem", "other.key", "MISMATCH")
    refused(serve("one.pem", "absent.key"), "absent.key", "No such file")
    refused(serve("text", "one.key"), "text", "give PEM files of a pair")
    refused(serve("locked.pem", "locked.key"), "locked.key", "give PEM files of a pair")
    done = run_process("serve", bundle, *FREE_PORTS, "--tls-certificate", "one.pem")
    refused(done, "TLS needs a certificate and its key")
