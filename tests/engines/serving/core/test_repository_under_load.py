"""Loading, unloading and closing while clients keep asking and operators give up, on ONNX Runtime and real bundles."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines.bundle import Bundle, BundleFile, load_bundle, write_bundle
from prunedeploy_engines.errors import BundleError
from prunedeploy_engines.serving.core import repository as repository_module
from prunedeploy_engines.serving.core.errors import ModelUnavailableError
from prunedeploy_engines.serving.core.repository import ModelRepository
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.telemetry.metrics import Metrics
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes
from tiny_detector import CLASS_NAMES, save_tiny_detector

for needed in ("onnxruntime", "prometheus_client"):
    pytest.importorskip(needed)
THREADS = ServingSettings(threads=1)
IMAGES = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)


def made_bundle(folder: Path, height: int = 32, width: int = 48) -> Bundle:
    model = BundleFile(save_tiny_detector(folder.with_suffix(".onnx"), height, width), "onnx", "fp32")
    size = {"height": height, "width": width}
    return write_bundle(folder, {"model.onnx": model}, class_names=CLASS_NAMES, input=size, overwrite=folder.exists())


def soon() -> float:
    return time.monotonic() + 30


async def detected(model: Any, picture: np.ndarray) -> Any:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    (found,), _ = await model.detect([file.getvalue()], ["the body"], None, None, soon(), RequestNotes("id"))
    return found


def serve(folder: Path, what: Callable[[ModelRepository], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        repository = ModelRepository({"tiny": folder}, THREADS, Metrics())
        try:
            return await what(repository)
        finally:
            await repository.close()

    return asyncio.run(whole())


@pytest.fixture
def runner_threads() -> Callable[[], list[str]]:
    """Names of the threads of runners that were started since: servers of other tests may have some."""
    before = set(threading.enumerate())
    return lambda: [thread.name for thread in set(threading.enumerate()) - before if "runner" in thread.name]


class Held:
    """Holds every loading back until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        monkeypatch.setattr(repository_module, "load_bundle", self._load)

    def _load(self, path: Path) -> Bundle:
        self.begun.set()
        assert self.go.wait(30)
        return load_bundle(path)

    async def until_begun(self) -> None:
        await asyncio.to_thread(self.begun.wait, 30)


@pytest.mark.parametrize("end", ["unload", "close"])
def test_every_request_before_the_end_is_answered_and_every_later_one_refused(tmp_path, end):
    with made_bundle(tmp_path / "bundle").runner(threads=1) as runner:
        expected = runner.infer(IMAGES)
    answered: list[Any] = []
    refused: list[Exception] = []

    async def ask(repository: ModelRepository) -> None:
        await repository.load("tiny")
        model = repository.get("tiny")

        async def client() -> None:
            while not refused:
                try:
                    outputs, _ = await model.infer(IMAGES, soon())
                except Exception as error:  # noqa: BLE001 - it is what is looked at
                    refused.append(error)
                    return
                answered.append(outputs)

        clients = [asyncio.create_task(client()) for _ in range(8)]
        while len(answered) < 40:
            await asyncio.sleep(0)
        await (repository.unload("tiny") if end == "unload" else repository.close())
        await asyncio.gather(*clients)
        with pytest.raises(ModelUnavailableError):
            repository.get("tiny")

    serve(tmp_path / "bundle", ask)
    assert all(isinstance(error, ModelUnavailableError) for error in refused)
    assert refused
    for outputs in answered:
        assert np.allclose(outputs[0], expected[0], rtol=0, atol=1e-5)
        assert np.allclose(outputs[1], expected[1], rtol=0, atol=1e-6)


def test_a_load_that_nobody_waits_for_any_more_still_ends(tmp_path, monkeypatch, runner_threads):
    made_bundle(tmp_path / "bundle")
    held = Held(monkeypatch)

    async def ask(repository: ModelRepository) -> None:
        loading = asyncio.create_task(repository.load("tiny"))
        await held.until_begun()
        assert repository.index()[0].state == "LOADING"
        with pytest.raises(ModelUnavailableError):
            repository.get("tiny")
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert repository.index()[0].state == "LOADING"
        held.go.set()
        await repository.load("tiny")  # comes after the first
        assert repository.ready()
        outputs, _ = await repository.get("tiny").infer(IMAGES, soon())
        assert len(outputs[1]) == 2

    before = threading.active_count()
    serve(tmp_path / "bundle", ask)
    assert runner_threads() == []
    assert threading.active_count() <= before + 2  # idle threads of pools may end later


def test_a_server_that_stops_loads_nothing_more_and_unloads_what_was_loading(tmp_path, monkeypatch, runner_threads):
    made_bundle(tmp_path / "bundle")
    held = Held(monkeypatch)

    async def ask(repository: ModelRepository) -> None:
        first = asyncio.create_task(repository.load("tiny"))
        await held.until_begun()
        second = asyncio.create_task(repository.load("tiny"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(repository.close())
        await asyncio.sleep(0)
        held.go.set()
        await first
        with pytest.raises(ModelUnavailableError, match="stopping"):
            await second
        await closing
        assert [one.state for one in repository.index()] == ["UNAVAILABLE"]
        with pytest.raises(ModelUnavailableError):
            repository.get("tiny")

    serve(tmp_path / "bundle", ask)
    assert runner_threads() == []


def test_a_replacement_of_another_size_answers_requests_of_that_size(tmp_path):
    made_bundle(tmp_path / "bundle")
    larger = np.random.default_rng(1).random((1, 3, 64, 40), dtype=np.float32)
    picture = np.full((50, 70, 3), 255, np.uint8)

    async def ask(repository: ModelRepository) -> Any:
        await repository.load("tiny")
        kept = repository.get("tiny")
        pending = asyncio.create_task(detected(kept, picture))
        made_bundle(tmp_path / "bundle", 64, 40)
        await repository.load("tiny")
        await pending
        found = await detected(kept, picture)
        return (await repository.get("tiny").infer(larger, soon()))[0], found

    outputs, found = serve(tmp_path / "bundle", ask)
    bundle = load_bundle(tmp_path / "bundle")
    with bundle.runner(threads=1) as runner:
        boxes, scores = runner.infer(larger)
        expected = bundle.detect(picture, runner=runner)
    assert np.array_equal(outputs[0], boxes)
    assert np.allclose(outputs[1], scores, rtol=0, atol=1e-6)
    assert np.allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=1e-4)
    assert len(found) == len(expected) > 3


def test_what_was_replaced_or_unloaded_is_released(tmp_path, runner_threads):
    made_bundle(tmp_path / "bundle")

    async def ask(repository: ModelRepository) -> None:
        gone = []
        for _ in range(3):
            await repository.load("tiny")
            model = repository.get("tiny")
            await model.infer(IMAGES, soon())
            gone.append(weakref.ref(model))
            del model
        gc.collect()
        assert [one() is None for one in gone] == [True, True, False]
        assert len(runner_threads()) == 1
        await repository.unload("tiny")
        gc.collect()
        assert gone[-1]() is None

    serve(tmp_path / "bundle", ask)


def test_unloading_on_request_leaves_the_server_ready_for_the_others_and_failures_do_not(tmp_path):
    made_bundle(tmp_path / "a")
    made_bundle(tmp_path / "b")

    async def ask() -> None:
        repository = ModelRepository({"a": tmp_path / "a", "b": tmp_path / "b"}, THREADS, Metrics())
        await repository.load("a")
        assert not repository.ready()
        await repository.load("b")
        await repository.unload("a")
        assert repository.ready()
        (tmp_path / "a" / "model.onnx").write_bytes(b"other")
        with pytest.raises(BundleError):
            await repository.load("a")
        assert not repository.ready()
        await repository.unload("b")
        assert not repository.ready()
        await repository.close()

    asyncio.run(ask())
