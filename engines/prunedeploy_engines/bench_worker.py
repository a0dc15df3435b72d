"""The process that holds one model while it is measured; see `process_bench`.

Commands come as JSON lines on stdin, answers go as JSON lines on stdout. What libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.errors import ConfigError, DataError, PrunedeployError
from prunedeploy_engines.latency import timed_block, warm_up
from prunedeploy_engines.letterbox import batch_to_input, letterbox
from prunedeploy_engines.runner import Float32Array, Runner

_IDLE_SHARE = 0.1  # of one CPU; below this no thread spins
_IDLE_PAUSES = 3
_IDLE_TIMEOUT_S = 5.0
_PAUSE_S = 0.01
_RANDOM_IMAGES = 8


def serve(commands: TextIO, answers: TextIO) -> None:
    """Answer commands until stdin ends."""
    call: Callable[[], object] | None = None
    for line in commands:
        command = json.loads(line)
        try:
            if command["do"] == "open":
                call, answer = open_call(command["spec"])
            elif call is None:
                raise ValueError("open a model first")
            elif command["do"] == "warm_up":
                warm_up(call, seconds=command["seconds"], calls=command["calls"])
                answer = {}
            else:
                samples_ms = timed_block(
                    call, seconds=command["seconds"], calls=command["calls"], warm_calls=command["warm_calls"]
                )
                answer = {"samples_ms": samples_ms}
            wait_until_idle()
        except PrunedeployError as error:
            answer = {"error": {"what": error.what, "where": error.where, "fix": error.fix}}
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
            answer = {"error": {"what": f"{type(error).__name__}: {error}", "where": None, "fix": None}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def open_call(spec: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open the model of a specification.

    Returns:
        A function that runs one batch, and what `process_bench` records of it.
    """
    if spec["runtime"] == "matmul":
        return _matmul_call(spec)
    if spec["kind"] == "end_to_end":
        return _end_to_end_call(spec)
    runner = _open_runner(spec)
    images = _images(spec["images"], runner.input_size, spec["seed"])
    prepared = batch_to_input([letterbox(image, runner.input_size)[0] for image in images])
    batches = itertools.cycle(_batches(prepared, spec["batch"]))
    return lambda: runner.infer(next(batches)), {"describe": runner.describe()}


def wait_until_idle() -> None:
    """Return when this process has stopped using the CPU.

    ONNX Runtime's threads spin for a while after a call, from milliseconds to more than a second depending
    on the CPU; the next model must not start while they do.
    """
    end = time.monotonic() + _IDLE_TIMEOUT_S
    quiet = 0
    # Several pauses in a row: on a busy machine a thread that spins may just not have had its turn.
    while quiet < _IDLE_PAUSES and time.monotonic() < end:
        used = time.process_time()
        time.sleep(_PAUSE_S)
        quiet = quiet + 1 if time.process_time() - used < _IDLE_SHARE * _PAUSE_S else 0


def _open_runner(spec: dict[str, Any]) -> Runner:
    if spec["factory"] is not None:
        module, _, function = spec["factory"].partition(":")
        runner: Runner = getattr(importlib.import_module(module), function)(**spec["arguments"])
        return runner
    if spec["runtime"] == "onnxruntime":
        from prunedeploy_engines.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(spec["path"], threads=spec["threads"], providers=spec["providers"])
    if spec["runtime"] == "tensorrt":
        from prunedeploy_engines.tensorrt_runner import TensorRTRunner

        return TensorRTRunner(spec["path"])
    raise ConfigError(
        f"there is no runtime {spec['runtime']!r} to measure", fix="use onnxruntime or tensorrt"
    )


def _end_to_end_call(spec: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """From a uint8 image in memory to its detections, one image per call; ``path`` is a bundle."""
    from prunedeploy_engines.bundle import load_bundle

    if spec["batch"] != 1:
        raise ConfigError(f"end to end runs one image at a time, not {spec['batch']}")
    bundle = load_bundle(spec["path"])
    options: dict[str, Any] = {}
    if spec["runtime"] == "onnxruntime":
        options = {"threads": spec["threads"], "providers": spec["providers"]}
    runner = bundle.runner(spec["runtime"], spec["precision"], **options)
    images = itertools.cycle(_images(spec["images"], bundle.input_size, spec["seed"]))
    return lambda: bundle.detect(next(images), runner=runner), {"describe": runner.describe()}


def _matmul_call(spec: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    from prunedeploy_engines.matmul_probe import matmul_flops, matmul_model
    from prunedeploy_engines.onnxruntime_runner import import_onnxruntime, open_session

    size = spec["size"]
    session = open_session(
        matmul_model(size), threads=spec["threads"], providers=spec["providers"], allow_spinning=True
    )
    x = np.random.default_rng(spec["seed"]).standard_normal((size, size), dtype=np.float32)
    describe = {
        "runtime": "onnxruntime",
        "version": import_onnxruntime().__version__,
        "precision": "fp32",
        "device": "cpu",
        "threads": spec["threads"],
        "matmul_size": size,
        "macs": matmul_flops(size) // 2,
    }
    return lambda: session.run(None, {"x": x}), {"describe": describe}


def _images(path: str | None, input_size: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    """``(K, H, W, 3)`` uint8 images of a .npy file; without one, random pixels, never zeros."""
    if path is None:
        return np.random.default_rng(seed).integers(0, 256, (_RANDOM_IMAGES, *input_size, 3), dtype=np.uint8)
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"is not a .npy file of images ({error})", where=path) from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise DataError(f"must hold (K, H, W, 3) uint8 images, not {images.shape} {images.dtype}", where=path)
    return images


def _batches(images: Float32Array, batch: int) -> list[Float32Array]:
    """Every image once as the first of a batch, wrapping around; contiguous."""
    if batch < 1:
        raise ConfigError(f"the batch must be at least 1, not {batch}")
    count = len(images)
    return [
        images[[(first + i) % count for i in range(batch)]] for first in range(0, count, min(batch, count))
    ]


def main() -> None:
    """Serve on stdin and stdout; run by `process_bench`."""
    # Libraries that print must not come between the answers: they keep descriptor 1, which now is stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
