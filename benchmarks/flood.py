"""Time under attack: what suppression costs at worst, what an attack reaches, and what the bound on candidates costs.

    python benchmarks/flood.py ceiling [--shape 2535x80 ...] [--rounds 50] [--unbounded]
    python benchmarks/flood.py attack CFG WEIGHTS DATA [--images 32] [--eps 0.05] [--budget quick] [--score 0.25]
    python benchmarks/flood.py bound CFG WEIGHTS DATA [--images 128]

``ceiling``: heads made up for the worst case (`prunedeploy_engines.bench.flood`) and, for comparison, those of a quiet
image, through every post-processor: suppression in NumPy, as `Bundle.detections`, in the graph (on ONNX Runtime), as
Triton's model, and a whole server asked over HTTP. With ``--unbounded`` NumPy without a bound as well, which takes
minutes.

``attack``: APGD on ``flood`` and on ``flood-low``, image by image, and one universal perturbation, sought on half of
the images and put on the other half. Candidates and mAP, and the time from tensor to detections, with and without the
bound, at ``--score`` and at 0.001.

``bound``: mAP of the clean images by the number of candidates that enter suppression.

Times are of one thread, in turns.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from _common import say_machine
from _serving import served
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from prunedeploy.attacks import perturbed, universal_perturbation
from prunedeploy.attacks.suite import attack_suite
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.data.class_names import COCO_NAMES
from prunedeploy.data.coco import Allowed, load_test_split, measured_subset
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import Batch, EvaluationLoader
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import TorchRunner, evaluate
from prunedeploy.evaluation.coco_map import MAX_DETECTIONS, coco_map
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.darknet import FoldedDarknet
from prunedeploy_engines.bench.flood import CASES, flooded_heads
from prunedeploy_engines.bench.latency import percentile
from prunedeploy_engines.bundle import Bundle, BundleFile, write_bundle
from prunedeploy_engines.detection.letterbox import letterbox_geometry, unletterbox_boxes
from prunedeploy_engines.detection.nms import MAX_CANDIDATES, PRE_NMS_TOP_K, detections_from
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import onnx_from_torch, with_nms
from prunedeploy_export.cluster import triton_postprocess
from prunedeploy_export.graph.edit import read_model, write_model

SIZE = (416, 416)
THRESHOLD, IOU, ROWS = 0.25, 0.45, 100
MAP_SCORE = 0.001
QUIET = 20  # candidates of a quiet image
Heads = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("ceiling")
    one.add_argument("--shape", nargs="+", default=["1575x10", "2535x80", "10647x80"], help="predictions x classes")
    one.add_argument("--rounds", type=int, default=50)
    one.add_argument("--unbounded", action="store_true")
    one.set_defaults(run=ceiling)
    for name, run, images in (("attack", attack, 32), ("bound", bound, 128)):
        two = commands.add_parser(name)
        for argument in ("cfg", "weights", "data"):
            two.add_argument(argument, type=Path)
        two.add_argument("--images", type=int, default=images)
        two.set_defaults(run=run)
        if run is attack:
            two.add_argument("--eps", type=float, default=0.05)
            two.add_argument("--budget", default="quick")
            two.add_argument("--score", type=float, default=THRESHOLD)
            two.add_argument("--passes", type=int, default=10, help="of the universal perturbation")
            two.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    say_machine()
    arguments.run(arguments)


def ceiling(arguments: argparse.Namespace) -> None:
    """Print p50 and p99 of every post-processor and case."""
    for shape in arguments.shape:
        predictions, classes = map(int, shape.split("x"))
        cases = {"quiet": quiet_heads(predictions, classes)}
        cases |= {case: flooded_heads(case, predictions, classes, SIZE) for case in CASES}
        with tempfile.TemporaryDirectory() as folder:
            for name, calls in post_processors(cases, Path(folder), arguments.unbounded).items():
                rounds = min(3, arguments.rounds) if "unbounded" in name else arguments.rounds
                show(f"{shape} {name}", timed(calls, rounds), {case: candidates(cases[case]) for case in calls})
            for case, heads in cases.items():
                samples, refused = asked_over_http(heads, Path(folder) / case, arguments.rounds)
                show(f"{shape} server over HTTP", {case: samples}, {case: candidates(heads)})
                if refused:
                    raise SystemExit(f"the server refused {refused} of {arguments.rounds} requests")


def quiet_heads(predictions: int, classes: int) -> Heads:
    """Heads with `QUIET` candidates."""
    boxes, scores = flooded_heads("apart", predictions, classes, SIZE)
    scores[QUIET:] = 0
    return boxes, scores


def candidates(heads: Heads, threshold: float = THRESHOLD) -> int:
    """Pairs of box and class above the threshold."""
    return int(np.count_nonzero(heads[1] > threshold))


def post_processors(
    cases: Mapping[str, Heads], folder: Path, unbounded: bool
) -> dict[str, dict[str, Callable[[], object]]]:
    """Calls by post-processor and case."""
    predictions, classes = next(iter(cases.values()))[1].shape
    usual: dict[str, Any] = {"score_threshold": THRESHOLD, "iou_threshold": IOU}
    bundle = constant_bundle(next(iter(cases.values())), folder / "bundle")
    geometry = letterbox_geometry((480, 640), SIZE)
    graph = OnnxRuntimeGraph(predictions, classes)
    triton = TritonModel(bundle)
    found: dict[str, dict[str, Callable[[], object]]] = {
        "NumPy": {
            case: partial(detections_from, *h, **usual, pre_nms_top_k=MAX_CANDIDATES) for case, h in cases.items()
        },
        "Bundle.detections": {case: partial(bundle.detections, *h, geometry, **usual) for case, h in cases.items()},
        "in the graph": {case: partial(graph, *h) for case, h in cases.items()},
        "Triton's model": {case: partial(triton, *h) for case, h in cases.items()},
    }
    if unbounded:
        whole = {case: partial(detections_from, *h, **usual, pre_nms_top_k=PRE_NMS_TOP_K) for case, h in cases.items()}
        found["NumPy, unbounded (10,000)"] = whole
    return found


class OnnxRuntimeGraph:
    """Suppression in the graph, alone."""

    def __init__(self, predictions: int, classes: int) -> None:
        import onnxruntime

        shapes = {"boxes": ["batch", predictions, 4], "scores": ["batch", predictions, classes]}
        values = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for part, shape in shapes.items()
            for name in (part, f"{part}_in")
        }
        nodes = [helper.make_node("Identity", [f"{part}_in"], [part]) for part in shapes]
        graph = helper.make_graph(
            nodes, "heads", [values[f"{part}_in"] for part in shapes], [values[part] for part in shapes]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        whole = with_nms(model, NmsInGraph(THRESHOLD, IOU, ROWS)).SerializeToString()
        self._session = onnxruntime.InferenceSession(whole, options)

    def __call__(self, boxes: np.ndarray, scores: np.ndarray) -> object:
        """Detections of one image's heads."""
        return self._session.run(None, {"boxes_in": boxes[None], "scores_in": scores[None]})


class TritonModel:
    """Triton's post-processing, with a stand-in for what its Python backend gives."""

    def __init__(self, bundle: Bundle) -> None:
        backend = ModuleType("triton_python_backend_utils")
        backend.Tensor = lambda name, value: (name, value)  # type: ignore[attr-defined]
        backend.InferenceResponse = lambda outputs=(), error=None: outputs  # type: ignore[attr-defined]
        backend.get_input_tensor_by_name = lambda request, name: request.tensors[name]  # type: ignore[attr-defined]
        sys.modules["triton_python_backend_utils"] = backend
        settings = {
            "height": SIZE[0], "width": SIZE[1], "letterbox": True, "nms_classes": None, "score_threshold": THRESHOLD,
            "iou_threshold": IOU, "max_candidates": bundle.manifest.nms.max_candidates,
        }  # fmt: skip
        self._model = triton_postprocess.TritonPythonModel()
        parameters = {"detector": {"string_value": json.dumps(settings)}}
        self._model.initialize({"model_config": json.dumps({"parameters": parameters})})

    def __call__(self, boxes: np.ndarray, scores: np.ndarray) -> object:
        """The response to one image's heads."""
        given = {"boxes": boxes[None], "scores": scores[None], "image_size": np.array([[480, 640]], np.int32)}
        tensors = {name: SimpleNamespace(as_numpy=lambda value=value: value) for name, value in given.items()}
        return self._model.execute([SimpleNamespace(tensors=tensors, parameters=lambda: "{}")])


def constant_bundle(heads: Heads, folder: Path) -> Bundle:
    """A bundle whose network gives these heads, whatever it is shown."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    outputs = dict(zip(("boxes", "scores"), heads, strict=True))
    constants = {f"{name}_of_one": value[None] for name, value in outputs.items()}
    constants |= {"first": np.array([0]), "tail": np.array([1, 1])}
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "tail"], ["repeats"], axis=0),
        *(helper.make_node("Expand", [f"{name}_of_one", "repeats"], [name]) for name in outputs),
    ]
    value_info = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "constant",
        [value_info("images", shape=["N", 3, *SIZE])],
        [value_info(name, shape=["N", *value.shape]) for name, value in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder.parent / "constant.onnx")
    return write_bundle(
        folder,
        {"model.onnx": BundleFile(folder.parent / "constant.onnx", "onnx", "fp32")},
        class_names=[f"class {number}" for number in range(heads[1].shape[1])],
        input={"height": SIZE[0], "width": SIZE[1]},
        thresholds={"score": THRESHOLD, "iou": IOU},
        nms={"max_candidates": MAX_CANDIDATES},
    )


def asked_over_http(heads: Heads, folder: Path, rounds: int) -> tuple[list[float], int]:
    """Seconds of requests to a server whose network gives these heads, and how many it did not answer with 200."""
    bundle = constant_bundle(heads, folder / "bundle")
    picture = io.BytesIO()
    Image.new("RGB", (SIZE[1], SIZE[0]), (90, 120, 150)).save(picture, "JPEG")
    samples, refused = [], 0
    with served(bundle.path, "--threads", "1") as server:
        connection = http.client.HTTPConnection(*server.http, timeout=60)
        for number in range(rounds + 3):
            start = time.perf_counter()
            connection.request("POST", "/v1/detect", picture.getvalue(), {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            refused += answer.status != 200
            if number >= 3:
                samples.append(time.perf_counter() - start)
        connection.close()
    return samples, refused


def timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, the calls taking turns; one untimed round first."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                samples[name].append(time.perf_counter() - start)
    return samples


def show(title: str, samples: Mapping[str, list[float]], counts: Mapping[str, int]) -> None:
    """Print a row per case."""
    for case, seconds in samples.items():
        p50, p99 = (1e3 * percentile(seconds, q) for q in (50, 99))
        print(f"{title:40} {case:10} {counts[case]:7} candidates  p50 {p50:9.3f} ms  p99 {p99:9.3f} ms", flush=True)


def attack(arguments: argparse.Namespace) -> None:
    """Print candidates, mAP and times, clean and attacked."""
    network, dataset, loader = opened(arguments)
    batches = list(loader)
    half = max(1, len(batches) // 2)
    seen = [(batch.images, batch.targets) for batch in batches[:half]]
    passes = arguments.passes
    universal = universal_perturbation(network, seen, arguments.eps, objective="flood", passes=passes)
    model = ThreatModel(eps=arguments.eps)
    suite = attack_suite(network, ["apgd:flood", "apgd:flood-low"], model, arguments.budget)
    kept: dict[str, list[np.ndarray]] = {"clean": [batch.images.numpy() for batch in batches[half:]]}

    def keeping(name: str, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*given: Any) -> torch.Tensor:
            kept.setdefault(name, []).append((images := make(*given)).numpy())
            return images

        return made

    attacks = {name: keeping(name, make) for name, make in suite.attacks.items()}
    attacks["universal"] = keeping("universal", lambda _, images, __: perturbed(images, universal, arguments.eps))
    result = evaluate(
        TorchRunner(network), batches[half:], dataset, attack=attacks, attacked_model=network, resamples=0
    )["torch"]
    unseen = sum(len(batch.image_ids) for batch in batches[half:])
    print(f"eps {arguments.eps:g}, {arguments.budget} budget; universal: {passes} passes over {len(seen)} batches")
    print(f"measured on the {unseen} images that the universal perturbation was not sought on")
    measured = {"clean": result.clean, **result.attacked}
    for name, counts in result.candidates.items():
        said, one = counts.summary(), measured[name].usual.result
        print(
            f"{name:16} mAP {one.map_50_95 or 0:.4f}  candidates above 0.001: mean {said['mean']:8.1f} most "
            f"{said['largest']:6}  above 0.5: mean {said['mean_conf50']:7.1f} most {said['largest_conf50']:5}"
        )
    with tempfile.TemporaryDirectory() as folder:
        exported = onnx_from_torch(FoldedDarknet(network), Path(folder) / "model.onnx").path
        nms_file = Path(folder) / "nms.onnx"
        write_model(with_nms(read_model(exported), NmsInGraph(arguments.score, IOU, ROWS)), nms_file)
        with OnnxRuntimeRunner(exported, threads=1) as plain, OnnxRuntimeRunner(nms_file, threads=1) as in_graph:
            for score in (arguments.score, MAP_SCORE):
                for bound in (MAX_CANDIDATES, PRE_NMS_TOP_K):
                    times(
                        f"score {score:g}, {bound} candidates",
                        kept,
                        arguments.rounds,
                        partial(host, plain, score, bound),
                    )
            times(f"score {arguments.score:g}, in the graph", kept, arguments.rounds, in_graph.infer)


def host(runner: OnnxRuntimeRunner, score: float, bound: int, image: np.ndarray) -> None:
    """From a tensor to detections."""
    boxes, scores = runner.infer(image)
    detections_from(boxes[0], scores[0], score_threshold=score, iou_threshold=IOU, pre_nms_top_k=bound)


def times(title: str, kept: Mapping[str, list[np.ndarray]], rounds: int, call: Callable[[np.ndarray], object]) -> None:
    """Print p50 and p99 over images of every kind, and the latter's ratio to that of the clean ones."""
    images = {name: np.concatenate(parts) for name, parts in kept.items()}
    samples: dict[str, list[float]] = {name: [] for name in images}
    for number in range(rounds + 1):
        for index in range(len(images["clean"])):
            for name, of_kind in images.items():
                start = time.perf_counter()
                call(of_kind[index : index + 1])
                if number:
                    samples[name].append(1e3 * (time.perf_counter() - start))
    base = percentile(samples["clean"], 99)
    for name, ms in samples.items():
        p50, p99 = percentile(ms, 50), percentile(ms, 99)
        print(f"{title:32} {name:16} p50 {p50:8.2f} ms  p99 {p99:8.2f} ms  {p99 / base:5.2f} times clean", flush=True)


def bound(arguments: argparse.Namespace) -> None:
    """Print mAP of the clean images by the number of candidates."""
    network, dataset, loader = opened(arguments)
    outputs: list[tuple[Batch, np.ndarray, np.ndarray]] = []
    with TorchRunner(network) as runner:
        outputs = [(batch, *runner.infer(batch.images.numpy())) for batch in loader]
    counts = np.concatenate([np.count_nonzero(scores > MAP_SCORE, (1, 2)) for _, _, scores in outputs])
    print(f"candidates above {MAP_SCORE}: median {np.median(counts):.0f}, p99 {np.percentile(counts, 99):.0f}")
    for most in (64, 128, 256, 512, 1024, 2048, PRE_NMS_TOP_K):
        tables = []
        for batch, boxes, scores in outputs:
            for index, (image_id, geometry) in enumerate(zip(batch.image_ids, batch.geometries, strict=True)):
                found, found_scores, classes = detections_from(
                    boxes[index],
                    scores[index],
                    score_threshold=MAP_SCORE,
                    iou_threshold=IOU,
                    max_detections=MAX_DETECTIONS,
                    pre_nms_top_k=most,
                )
                original = unletterbox_boxes(found.astype(np.float64), geometry)
                tables.append(DetectionTable.of_image(image_id, original, found_scores, classes))
        result = coco_map(dataset, DetectionTable.concatenate(tables), dataset_ids(outputs))
        hit = 100 * np.mean(counts > most)
        print(f"at most {most:6} candidates: mAP {result.map_50_95:.5f}  mAP50 {result.map_50:.5f}  hit {hit:5.1f} %")


def dataset_ids(outputs: list[tuple[Batch, np.ndarray, np.ndarray]]) -> list[int]:
    """Ids of the images that were measured."""
    return [image_id for batch, _, _ in outputs for image_id in batch.image_ids]


def opened(arguments: argparse.Namespace) -> tuple[Darknet, CocoDataset, EvaluationLoader]:
    """The network and its test images, drawn with seed 0."""
    network = load_darknet(arguments.cfg, arguments.weights).eval()
    names = list(COCO_NAMES if network.cfg.classes == len(COCO_NAMES) else CLASS_NAMES)
    dataset = load_test_split(arguments.data, names, None, 0, Allowed(True, True, True))
    if arguments.images < len(dataset.images):
        dataset = measured_subset(dataset, arguments.images)
    return network, dataset, EvaluationLoader(dataset, input_size=network.cfg.input_size, batch_size=4)


if __name__ == "__main__":
    main()
