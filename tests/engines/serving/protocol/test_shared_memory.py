"""Tensors in shared memory, through Triton's public clients and plain files: what is refused, and what is left."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunedeploy_engines import Bundle
from served_protocol import HEIGHT, WIDTH, Running, images, picture, running
from tiny_detector import cell_boxes, cell_scores

SHM = Path("/dev/shm")
if not SHM.is_dir():
    pytest.skip("POSIX shared memory is in /dev/shm on Linux only", allow_module_level=True)

ONE = images(3, 1)
SHAPE = [1, 3, HEIGHT, WIDTH]
BASE = "/v2/systemsharedmemory"


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> Iterator[Running]:
    """A server that offers shared memory; its tests leave no region behind."""
    with running({"tiny": bundle}, shared_memory=True, max_body_bytes=1 << 20) as there:
        yield there


@pytest.fixture
def memory() -> Iterator[Callable[[int], shared_memory.SharedMemory]]:
    """Makes shared memory objects that are gone after the test."""
    made: list[shared_memory.SharedMemory] = []

    def make(size: int) -> shared_memory.SharedMemory:
        made.append(shared_memory.SharedMemory(f"prunedeploy-{secrets.token_hex(6)}", create=True, size=size))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.unlink()


@pytest.fixture
def region(shared: Running, memory: Any) -> Iterator[shared_memory.SharedMemory]:
    """A registered object, ``r``, with one image at its start and room behind it."""
    there = memory(1 << 16)
    there.buf[: ONE.nbytes] = ONE.tobytes()
    assert register(shared, "r", there.name, 1 << 16).status == 200
    yield there
    assert shared.ask("POST", f"{BASE}/unregister").status == 200


def register(server: Running, name: str, key: Any, byte_size: Any, offset: Any = 0) -> Any:
    body = {"key": key, "offset": offset, "byte_size": byte_size}
    return server.ask("POST", f"{BASE}/region/{name}/register", body)


def place(size: Any = ONE.nbytes, region: Any = "r", offset: Any = 0) -> dict[str, Any]:
    named = {"region": region, "byte_size": size, "offset": offset}
    return {f"shared_memory_{name}": value for name, value in named.items()}


def asked(server: Running, where: dict[str, Any], **more: Any) -> Any:
    tensor = {"name": "images", "datatype": "FP32", "shape": SHAPE, "parameters": where}
    return server.ask("POST", "/v2/models/tiny/infer", {"inputs": [tensor], **more})


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritons_clients_pass_inputs_and_outputs(shared: Running, protocol: str) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}", reason="the public client is not installed")
    utils = pytest.importorskip("tritonclient.utils.shared_memory", reason="the public client is not installed")
    pixels = images(5, 2)
    key_in, key_out = (f"/prunedeploy-{secrets.token_hex(6)}" for _ in range(2))
    sent = utils.create_shared_memory_region("sent", key_in, 64 + pixels.nbytes)
    got = utils.create_shared_memory_region("got", key_out, 4096)
    try:
        utils.set_shared_memory_region(sent, [pixels], offset=64)
        with module.InferenceServerClient(getattr(shared, protocol)) as client:
            client.register_system_shared_memory("sent", key_in, 32 + pixels.nbytes, offset=32)
            client.register_system_shared_memory("got", key_out, 4096)
            status = client.get_system_shared_memory_status(**({"as_json": True} if protocol == "grpc" else {}))
            regions = status["regions"].values() if protocol == "grpc" else status
            assert sorted((one["name"], one["key"], int(one["byte_size"])) for one in regions) == [
                ("got", key_out, 4096),
                ("sent", key_in, 32 + pixels.nbytes),
            ]
            given = module.InferInput("images", list(pixels.shape), "FP32")
            given.set_shared_memory("sent", pixels.nbytes, offset=32)
            wanted = [module.InferRequestedOutput("scores"), module.InferRequestedOutput("boxes")]
            wanted[0].set_shared_memory("got", 2048, offset=512)
            answer = client.infer("tiny", [given], outputs=wanted)
            scores = answer.get_output("scores")
            shape = scores["shape"] if protocol == "http" else list(scores.shape)
            in_memory = utils.get_contents_as_numpy(got, np.float32, shape, offset=512)
            np.testing.assert_allclose(in_memory, cell_scores(pixels), rtol=1e-5)
            assert not any(got._mpsm_handle.buf[:512]), "nothing in front of the offset was touched"
            boxes = np.repeat(cell_boxes(HEIGHT, WIDTH)[None], 2, axis=0)
            np.testing.assert_array_equal(answer.as_numpy("boxes"), boxes)
            client.unregister_system_shared_memory("sent")
            client.unregister_system_shared_memory()
            assert "system_shared_memory" in shared.ask("GET", "/v2").json["extensions"]
            assert shared.ask("GET", f"{BASE}/status").json == []
    finally:
        del in_memory
        utils.destroy_shared_memory_region(sent)
        utils.destroy_shared_memory_region(got)


def test_files_of_images_lie_there_too(shared: Running, region: shared_memory.SharedMemory) -> None:
    file = picture(4)
    raw = len(file).to_bytes(4, "little") + file
    region.buf[: len(raw)] = raw
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": place(len(raw))}
    answer = shared.ask("POST", "/v2/models/tiny-detect/infer", {"inputs": [tensor]})
    assert answer.status == 200, answer.body
    (found,) = shared.ask("POST", "/v1/detect", file, {"Content-Type": "image/png"}).json["images"]
    boxes = next(one for one in answer.json["outputs"] if one["name"] == "boxes")
    np.testing.assert_array_equal(
        np.reshape(boxes["data"], boxes["shape"])[0], [one["box"] for one in found["detections"]]
    )


@pytest.mark.parametrize(
    ("name", "key", "size", "offset", "said"),
    [
        ("r", None, 16, 0, "registered already"),
        ("a%2Fb", None, 16, 0, "name"),
        ("a/b", None, 16, 0, "name"),
        ("", None, 16, 0, "name"),
        ("x" * 256, None, 16, 0, "name"),
        ("a", "prunedeploy-nobody", 16, 0, "no shared memory"),
        ("a", "../../etc/passwd", 16, 0, "key"),
        ("a", "/../etc/passwd", 16, 0, "key"),
        ("a", "..", 16, 0, "key"),
        ("a", "", 16, 0, "key"),
        ("a", "/", 16, 0, "key"),
        ("a", "a\0b", 16, 0, "key"),
        ("a", "\ud800", 16, 0, "key"),
        ("a", "x" * 256, 16, 0, "key"),
        ("a", "sem.a", 16, 0, "key"),
        ("a", 5, 16, 0, "key"),
        ("a", None, (1 << 16) + 1, 0, "65537 are needed"),
        ("a", None, 1 << 16, 1, "65537 are needed"),
        ("a", None, 1 << 62, 1 << 62, "needed"),
        ("a", None, 0, 0, "byte_size"),
        ("a", None, -1, 0, "byte_size"),
        ("a", None, 16, -1, "offset"),
        ("a", None, 16, 1 << 70, "offset"),
        ("a", None, 16.0, 0, "byte_size"),
        ("a", None, True, 0, "byte_size"),
    ],
)
def test_regions_that_are_refused(
    shared: Running, region: shared_memory.SharedMemory, name: str, key: Any, size: Any, offset: Any, said: str
) -> None:
    answer = register(shared, name, region.name if key is None else key, size, offset)
    assert answer.status == 400, answer.body
    assert said in answer.json["error"]
    assert [one["name"] for one in shared.ask("GET", f"{BASE}/status").json] == ["r"]
    assert asked(shared, place()).status == 200


@pytest.mark.parametrize("made", ["link", "pipe", "folder"])
def test_only_memory_is_opened(shared: Running, tmp_path: Path, made: str) -> None:
    odd = SHM / f"prunedeploy-{secrets.token_hex(6)}"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    if made == "link":
        odd.symlink_to(secret)
    elif made == "pipe":
        os.mkfifo(odd)
    else:
        odd.mkdir()
    try:
        answer = register(shared, "odd", odd.name, 16)
        assert answer.status == 400, answer.body
        assert "no shared memory" in answer.json["error"]
    finally:
        odd.rmdir() if made == "folder" else odd.unlink()


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        (place(region="nobody"), 400, "no region 'nobody'"),
        (place(region=5), 400, "shared_memory_region"),
        (place(size=ONE.nbytes - 4), 400, f"its shape and type make {ONE.nbytes}"),
        (place(offset=(1 << 16) - ONE.nbytes + 1), 400, "end behind"),
        (place(offset=1 << 62), 400, "end behind"),
        (place(offset=-1), 400, "shared_memory_offset"),
        (place(size=-1), 400, "shared_memory_byte_size"),
        (place(size="7"), 400, "shared_memory_byte_size"),
        ({"shared_memory_region": "r"}, 400, "shared_memory_byte_size"),
        ({"shared_memory_offset": 0}, 400, "without shared_memory_region"),
        ({**place(), "binary_data_size": 0}, 400, "both"),
    ],
)
def test_places_that_are_refused(
    shared: Running, region: shared_memory.SharedMemory, where: dict[str, Any], status: int, said: str
) -> None:
    answer = asked(shared, where)
    assert answer.status == status, answer.body
    assert said in answer.json["error"]
    assert asked(shared, place()).status == 200


def test_an_input_is_no_larger_than_a_body_may_be(shared: Running, memory: Any) -> None:
    large = memory(2 << 20)
    assert register(shared, "large", large.name, 2 << 20).status == 200
    assert asked(shared, place(size=(1 << 20) + 1, region="large")).status == 413
    assert shared.ask("POST", f"{BASE}/region/large/unregister").status == 200


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (place(size=4), "outputs[0]"),
        (place(size=4096, offset=(1 << 16) - 4095), "end behind"),
        (place(region="nobody"), "no region"),
    ],
)
def test_places_of_outputs_that_are_refused(
    shared: Running, region: shared_memory.SharedMemory, where: dict[str, Any], said: str
) -> None:
    before = bytes(region.buf)
    answer = asked(shared, place(), outputs=[{"name": "scores", "parameters": where}])
    assert answer.status == 400, answer.body
    assert said in answer.json["error"]
    assert bytes(region.buf) == before


def test_memory_that_shrinks_costs_its_client_the_answer_and_nobody_the_server(shared: Running, memory: Any) -> None:
    there = memory(1 << 16)
    assert register(shared, "shrinks", there.name, 1 << 16).status == 200
    os.truncate(SHM / there.name, 100)
    answer = asked(shared, place(region="shrinks"))
    assert answer.status == 400, answer.body
    assert f"100 bytes, and {ONE.nbytes} are needed" in answer.json["error"]
    data = {"name": "images", "datatype": "FP32", "shape": SHAPE, "data": ONE.ravel().tolist()}
    output = {"name": "scores", "parameters": place(size=4096, region="shrinks")}
    answer = shared.ask("POST", "/v2/models/tiny/infer", {"inputs": [data], "outputs": [output]})
    assert answer.status == 400, answer.body
    assert (SHM / there.name).stat().st_size == 100, "an answer does not make it grow again"
    assert shared.ask("POST", f"{BASE}/region/shrinks/unregister").status == 200


def test_a_region_that_may_only_be_read_takes_no_outputs(memory: Any, shared: Running) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    there = memory(1 << 16)
    (SHM / there.name).chmod(0o400)
    assert register(shared, "readable", there.name, 1 << 16).status == 200
    answer = asked(
        shared, place(region="readable"), outputs=[{"name": "scores", "parameters": place(4096, "readable")}]
    )
    assert "may not write" in answer.json["error"]
    assert shared.ask("POST", f"{BASE}/unregister").status == 200


def test_an_object_stays_the_one_that_was_registered(shared: Running, memory: Any) -> None:
    there = memory(1 << 16)
    there.buf[: ONE.nbytes] = ONE.tobytes()
    assert register(shared, "kept", there.name, 1 << 16).status == 200
    path = SHM / there.name
    path.rename(moved := path.with_name(path.name + "-moved"))
    try:
        path.write_bytes(bytes(10))  # another object of the same name, which is too small
        assert asked(shared, place(region="kept")).status == 200
    finally:
        path.unlink()
        moved.rename(path)
    assert shared.ask("POST", f"{BASE}/region/kept/unregister").status == 200


def test_no_descriptor_stays_open(shared: Running, memory: Any) -> None:
    there = memory(1 << 16)

    def opened() -> int:
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and os.readlink(link).endswith(there.name) for link in links)

    before = opened()
    assert register(shared, "a", there.name, 1 << 16).status == 200
    for name, size in (("a", 1 << 16), ("b", 1 << 17)):
        assert register(shared, name, there.name, size).status == 400
    assert opened() == before + 1
    assert shared.ask("POST", f"{BASE}/region/a/unregister").status == 200
    assert shared.ask("POST", f"{BASE}/region/a/unregister").status == 200, "as with Triton"
    assert opened() == before
    assert shared.ask("GET", f"{BASE}/region/a/status").status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/status"), ("POST", "/unregister"), ("POST", "/region/a/register"), ("GET", "/region/a/status")],
)
def test_without_the_option_there_is_none(server: Running, method: str, path: str) -> None:
    assert server.ask(method, BASE + path).status == 501
    assert "system_shared_memory" not in server.ask("GET", "/v2").json["extensions"]


def test_without_the_option_there_is_none_over_grpc(server: Running) -> None:
    client = pytest.importorskip("tritonclient.grpc", reason="the public client is not installed")
    utils = pytest.importorskip("tritonclient.utils", reason="the public client is not installed")
    refused = pytest.raises(utils.InferenceServerException, match="UNIMPLEMENTED")
    with client.InferenceServerClient(server.grpc) as opened, refused:
        opened.register_system_shared_memory("a", "/a", 16)
