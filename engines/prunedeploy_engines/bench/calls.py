"""From a specification (`bench.spec`) to a function that runs one batch; inside the measuring process."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.bench.flood import flooded_heads
from prunedeploy_engines.bench.images import ImageList, images_record, load_images, random_images
from prunedeploy_engines.detection.images import to_greyscale
from prunedeploy_engines.detection.letterbox import LetterboxGeometry, batch_to_input, letterbox
from prunedeploy_engines.errors import ConfigError, EngineError
from prunedeploy_engines.runtimes.runner import Float32Array, Images, Runner

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle

Call = Callable[[], object]


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to be measured.

    Attributes:
        call_of: For a number of images, a function that runs them; each call takes the next ones in turn.
        describe: What runs.
        images: What it is fed; None for the MatMul.
    """

    call_of: Callable[[int], Call]
    describe: dict[str, Any]
    images: dict[str, Any] | None = None


def open_model(spec: dict[str, Any]) -> OpenedModel:
    """Open the model of a complete specification.

    Raises:
        PrunedeployError: It does not open.
    """
    if spec["runtime"] == "matmul":
        return _matmul(spec)
    bundle = open_spec_bundle(spec)
    path = spec["path"]
    if bundle is not None and path == str(bundle.path):
        path = bundle.model_path(spec["precision"])
    runner = open_spec_runner({**spec, "path": path})
    images = load_spec_images(spec, runner.input_size)
    record = images_record(None if spec["images"] is None else Path(spec["images"]), images, spec["seed"])
    if spec["kind"] == "end_to_end":
        if bundle is None:
            raise ConfigError("end to end needs a bundle, which says what surrounds the network", spec["path"])
        heads = None if spec["flood"] is None else _flooded(runner, prepare(images[:1], runner, bundle), spec["flood"])
        return OpenedModel(lambda count: _end_to_end(bundle, runner, images, count, heads), runner.describe(), record)
    prepared = prepare(images, runner, bundle)
    take = runner.compute_call if spec["kind"] == "compute" else lambda batch: lambda: runner.infer(batch)

    def call_of(count: int) -> Call:
        calls = itertools.cycle([take(batch) for batch in batches(prepared, count)])
        return lambda: next(calls)()

    return OpenedModel(call_of, runner.describe(), record)


def open_spec_runner(spec: dict[str, Any]) -> Runner:
    """Open the runner that a specification asks for."""
    if spec["factory"] is not None:
        module, _, function = spec["factory"].partition(":")
        runner: Runner = getattr(importlib.import_module(module), function)(**spec["arguments"])
        return runner
    from prunedeploy_engines.runtimes.opening import open_runner

    options = {} if spec["providers"] is None else {"providers": spec["providers"]}
    return open_runner(
        spec["path"],
        spec["runtime"],
        threads=spec["threads"],
        inference_precision=spec["inference_precision"],  # None is a choice: OpenVINO's own
        in_process=True,  # a measuring process holds one model, and nothing may come between it and the clock
        **options,
    )


def prepare(images: ImageList, runner: Runner, bundle: Bundle | None) -> Images:
    """Letterbox images into the kind of input that the model takes: ``(K, 3, H, W)`` float32 or NHWC uint8.

    Args:
        images: ``(H, W, 3)`` uint8 RGB each.
        runner: Its input size and kind count.
        bundle: Says colour of the letterbox and greyscale; None takes the usual.
    """
    return _as_input([_letterboxed(image, runner, bundle)[0] for image in images], runner)


def _letterboxed(
    image: npt.NDArray[np.uint8], runner: Runner, bundle: Bundle | None
) -> tuple[npt.NDArray[np.uint8], LetterboxGeometry]:
    if bundle is None:
        return letterbox(to_greyscale(image) if runner.channels == 1 else image, runner.input_size)
    spec = bundle.manifest.input
    pixels = to_greyscale(image) if spec.greyscale or spec.channels == 1 else image
    return letterbox(pixels, runner.input_size, spec.letterbox_colour, not spec.letterbox)


def _as_input(boxed: ImageList, runner: Runner) -> Images:
    images = np.stack(boxed)[..., : runner.channels]
    return np.ascontiguousarray(images) if runner.uint8_input else batch_to_input(images)


def batches(images: Images, count: int) -> list[Any]:
    """Batches of ``count``: every image once as the first of one, wrapping around; contiguous."""
    if count < 1:
        raise ConfigError(f"the batch must be at least 1, not {count}")
    there = len(images)
    return [images[[(first + i) % there for i in range(count)]] for first in range(0, there, min(count, there))]


def _flooded(runner: Runner, image: Images, case: str) -> tuple[Float32Array, Float32Array]:
    """The heads of a case in the shape of the network's own."""
    if runner.nms_classes is not None:
        what = "suppression is part of the graph, which takes images only"
        raise EngineError(what, fix="give flooded images with --flood-images, or a file without --nms")
    boxes, scores = runner.infer(image)
    return flooded_heads(case, boxes.shape[1], scores.shape[2], runner.input_size)


def _end_to_end(
    bundle: Bundle,
    runner: Runner,
    images: ImageList,
    count: int,
    heads: tuple[Float32Array, Float32Array] | None = None,
) -> Call:
    """From uint8 images in memory to their detections; with ``heads``, to those of these boxes and scores."""
    turns = itertools.cycle(images)
    if count == 1 and heads is None:
        return lambda: bundle.detect(next(turns), runner=runner)

    def call() -> Sequence[object]:
        boxed = [_letterboxed(next(turns), runner, bundle) for _ in range(count)]
        boxes, scores = runner.infer(_as_input([image for image, _ in boxed], runner))
        if heads is not None:
            boxes, scores = (np.broadcast_to(part, (count, *part.shape)) for part in heads)
        return [bundle.detections(boxes[i], scores[i], boxed[i][1]) for i in range(count)]

    return call


def open_spec_bundle(spec: dict[str, Any]) -> Bundle | None:
    """The bundle that the model belongs to; a ``path`` that is a folder is one."""
    folder = spec["bundle"]
    if folder is None and spec["path"] is not None and Path(spec["path"]).is_dir():
        folder = spec["path"]
    if folder is None:
        return None
    from prunedeploy_engines.bundle import load_bundle

    return load_bundle(folder)


def load_spec_images(spec: dict[str, Any], input_size: tuple[int, int]) -> ImageList:
    """The images of a specification, or random ones of the model's input size."""
    return random_images(input_size, spec["seed"]) if spec["images"] is None else load_images(Path(spec["images"]))


def _matmul(spec: dict[str, Any]) -> OpenedModel:
    """The peak of a runtime on this CPU: one large product, which every kernel library does best."""
    import importlib.metadata

    from prunedeploy_engines.bench.matmul import matmul_call

    options = {key: spec[key] for key in ("threads", "size", "precision")}
    call = matmul_call(spec["on"], **options)
    describe = {
        "runtime": spec["on"],
        "version": importlib.metadata.version(spec["on"]),
        "precision": spec["precision"],
        "device": "cpu",
        "threads": spec["threads"],
        "matmul_size": spec["size"],
        "macs": spec["size"] ** 3,
    }
    return OpenedModel(lambda _: call, describe)


def profile_spec(spec: dict[str, Any], top: int = 10) -> list[dict[str, Any]]:
    """The layers that cost most of the model of a complete specification, as `LayerTime` in JSON values.

    Raises:
        EngineError: Its runtime has no profiler, or the model does not run.
    """
    if spec["runtime"] == "matmul":
        raise EngineError("there is no profiler of single layers for matmul")
    bundle = open_spec_bundle(spec)
    with open_spec_runner(spec) as runner:
        prepared = prepare(load_spec_images(spec, runner.input_size), runner, bundle)
        return [asdict(layer) for layer in runner.profile(batches(prepared, spec["batch"])[0], top=top)]
