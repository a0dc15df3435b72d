"""What ``prunedeploy evaluate`` does: find the data and the parent, open the runners, measure.

Imports torch; the command loads it when it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.norms import Norm, on_lattice
from prunedeploy.attacks.suite import Suite, check_references
from prunedeploy.config import BUNDLED, Budget, EvaluationConfig, Feedback, RobustnessConfig, Start
from prunedeploy.data.class_names import COCO_NAMES, read_names
from prunedeploy.data.coco import Allowed, load_test_split, measured_subset
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.left_out import problem_rows
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.data.names_beside import names_beside
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import Evaluation, TorchRunner, evaluate, figure_name, write_detections
from prunedeploy.evaluation.black_box import SQUARE, BlackBox
from prunedeploy.evaluation.corruption import UnderCorruption, evaluate_corrupted
from prunedeploy.evaluation.robustness import RADII, looked_into
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.pipeline.adaptive import AdaptiveAttack, adaptive_figures, engine_file
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy.pipeline.black_box import black_box, black_box_checks, queries_row
from prunedeploy.pipeline.context import composed_demo
from prunedeploy.pipeline.engine_figures import lowest_of, named_figures
from prunedeploy.pipeline.progress import Progress
from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.bundle.source import ModelSource, find_model
from prunedeploy_engines.detection.letterbox import GREY
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph, read_onnx_header
from prunedeploy_engines.runtimes.opening import open_runner
from prunedeploy_engines.runtimes.runner import Runner


@dataclass(frozen=True)
class Request:
    """The command line, checked; None means: not given."""

    source: ModelSource
    runtimes: tuple[str, ...]
    data: str | None
    names: Path | None
    attacks: tuple[str, ...]
    adaptive: bool
    budget: Budget | None
    norm: Norm
    queries: int | None
    start: Start | None
    feedback: Feedback | None
    curve: bool
    error_kinds: bool
    checks: bool
    eps: float | None
    steps: int | None
    step_size: float | None
    random_start: bool | None
    restarts: int | None
    iterate: str | None
    parent_cfg: Path | None
    parent_weights: Path | None
    precision: str
    threads: int | None
    batch: int | None
    limit: int | None
    seed: int | None
    bootstrap: int
    allow_bad_images: bool
    allow_bad_boxes: bool
    only_known_classes: bool
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    csv_folder: Path | None
    store: Path


def run(request: Request) -> dict[str, Any]:
    """Measure; the document of ``--json``.

    Raises:
        PrunedeployError: Anything that the user can fix.
    """
    source, progress = request.source, Progress()
    configuration = source.configuration()
    seed = int(configuration.get("seed", 0)) if request.seed is None else request.seed
    bundle = None if source.bundle is None else source.load_bundle()
    settings = EvaluationConfig.model_validate(configuration.get("evaluation") or {})
    # Batch size and threads change the order of sums: with the build's, its figures are repeated to the last digit.
    batch = request.batch or settings.batch_size
    threads = request.threads or configuration.get("threads")
    check_references(request.attacks, "--attack", of_runners=True)
    threat_model = _threat_model(request, configuration) if request.attacks else None
    with_gradients = tuple(attack for attack in request.attacks if attack != SQUARE)
    needs_parent = "torch" in request.runtimes or bool(with_gradients)
    parent = _parent(request, configuration) if needs_parent else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_pytorch_threads(threads))
        runners = {
            name: stack.enter_context(_runner(name, request, bundle, parent, threads)) for name in request.runtimes
        }
        first = next(iter(runners.values()))
        for runner in runners.values():
            shape = (runner.channels, *runner.input_size)
            if shape != (first.channels, *first.input_size) or (parent and parent.cfg.input_shape != shape):
                raise ConfigError(
                    "parent and engine have inputs of different sizes", source.given, "give its own parent"
                )
        class_names = _class_names(request, bundle, parent)
        dataset, path = _dataset(request, configuration, class_names, progress)
        limits = {name: _limit(name, request, bundle, settings.map_score_threshold) for name in request.runtimes}
        warnings = [] if class_names is not None else _guess(request, dataset, parent)
        warnings += sorted({limit for limit in limits.values() if limit is not None})
        own = None if bundle is None else bundle.manifest.input
        loader_of = partial(
            EvaluationLoader,
            input_size=first.input_size,
            batch_size=batch,
            greyscale=(configuration.get("data") or {}).get("greyscale", False) if own is None else own.greyscale,
            allow_bad_images=request.allow_bad_images,
            letterbox_colour=GREY if own is None else own.letterbox_colour,
            channels=first.channels,
            stretch=not _letterboxed(request, bundle, parent),
        )
        loader = loader_of(dataset)
        attacked, suite, lattice = None, Suite({}, {}, {}), None
        adaptive: dict[str, AdaptiveAttack] = {}
        if threat_model is not None and parent is not None and with_gradients:
            wanted, used = _wanted(request, configuration), settings.model_copy(update={"bootstrap": request.bootstrap})
            attacked = Attacked(
                parent, dataset, loader_of, threat_model, wanted, used, seed, progress, norm=request.norm
            )
            suite, lattice = attacked.suite, partial(on_lattice, eps=threat_model.eps, norm=request.norm)
            for name, runner in runners.items() if request.adaptive else ():
                if name != "torch":
                    file = engine_file(source, bundle, name, request.precision)
                    adaptive[name] = AdaptiveAttack.on(file, runner, attacked, threads)
        references = [] if attacked is None else attacked.references
        asked: dict[str, BlackBox] = {}
        with contextlib.ExitStack() as shown:
            if threat_model is not None and SQUARE in request.attacks:
                box = _black_box(request, bundle, threat_model, settings, seed, list(runners.values()))
                count = box.square.queries * len(dataset.images) * len(runners)
                asked[SQUARE] = replace(box, progress=shown.enter_context(progress.task("square, queries", count)))
            advance = shown.enter_context(progress.task("evaluate", len(dataset.images)))
            results = evaluate(
                runners,
                loader,
                dataset,
                attack=suite.attacks,
                ensembles=suite.ensembles,
                attacked_model=None if attacked is None else parent,
                own_attacks=asked,
                lattice=lattice,
                iou_threshold=settings.iou_threshold,
                score_threshold=settings.map_score_threshold,
                resamples=request.bootstrap,
                seed=seed,
                progress=advance,
            )
        corrupted = _corrupted(request, runners, loader, dataset, settings, seed, progress)
        rows = [
            {
                **result_row(name, result),
                **_looked_into(request, result, dataset, [*references, *asked], settings, seed),
                **({"corruptions": corrupted[name].as_dict()} if name in corrupted else {}),
            }
            for name, result in results.items()
        ]
        of_twins: dict[str, Evaluation] = {}
        for row in rows:
            if row["runtime"] in adaptive:
                found, row["adaptive"] = adaptive[row["runtime"]].measure(row["runtime"])
                of_twins[row["runtime"]] = found
                figures, intervals = adaptive_figures(found)
                row.update(figures)
                row["intervals"].update(intervals)
            if (lowest := lowest_of(row)) is not None:
                row["lowest"] = lowest
        attacks = [] if attacked is None else attacked.described
        beyond = {} if attacked is None else attacked.beyond(source.given.name)
    if request.csv_folder is not None:
        _write_csvs(request.csv_folder, results, of_twins, dataset)
    attacks = [{**attack, "parent": str(request.parent_cfg or source.cfg)} for attack in attacks]
    attacks += [box.described() for box in asked.values()]
    if checks := [check for box in asked.values() for check in black_box_checks(results, references, box)]:
        beyond["checks"] = [*beyond.get("checks", []), *checks]
        warnings += [f"{check['name']}: {check['says']}" for check in checks if not check["passed"]]
    return {
        "model": str(source.given),
        "kind": source.kind,
        "data": {
            "path": path,
            "images": next(iter(results.values())).n_images,
            "skipped": {str(file): reason for file, reason in loader.skipped.items()},
            "left_out": [asdict(row) for row in problem_rows("test", dataset.problems)],
            "class_names": list(dataset.class_names),
        },
        "warnings": warnings,
        # The first one, as it stood here before there could be several.
        "attack": attacks[0] if attacks else None,
        "attacks": attacks,
        "thresholds": {"map_score": settings.map_score_threshold, "iou": settings.iou_threshold},
        "results": rows,
        **beyond,
    }


def _corrupted(
    request: Request,
    runners: dict[str, Runner],
    loader: EvaluationLoader,
    dataset: CocoDataset,
    settings: EvaluationConfig,
    seed: int,
    progress: Progress,
) -> dict[str, UnderCorruption]:
    """Under the corruptions that are asked for, by runner."""
    if not request.corruptions:
        return {}
    passes = 1 + len(request.corruptions) * len(request.severities)
    with progress.task("evaluate corrupted images", passes * len(dataset.images)) as advance:
        return evaluate_corrupted(
            runners,
            loader,
            dataset,
            request.corruptions,
            request.severities,
            greyscale=loader.greyscale,
            iou_threshold=settings.iou_threshold,
            score_threshold=settings.map_score_threshold,
            resamples=request.bootstrap,
            seed=seed,
            progress=advance,
        )


def result_row(name: str, result: Evaluation) -> dict[str, Any]:
    """One runtime's figures; those of attacked images made with another model end in ``_transfer``."""
    figures, intervals = named_figures(result)
    return {
        "runtime": name,
        "transfer": result.transfer,
        **figures,
        "intervals": intervals,
        **queries_row(result),
        "candidates": {figure_name(kind): counts.summary() for kind, counts in result.candidates.items()},
        "n_images": result.n_images,
        "engine": result.runner,
    }


def _wanted(request: Request, configuration: dict[str, Any]) -> RobustnessConfig:
    """What was given of attacks with gradients; the budget, if it was not, is the build's."""
    own = RobustnessConfig.model_validate(configuration.get("robustness") or {})
    return RobustnessConfig(
        attacks=tuple(attack for attack in request.attacks if attack != SQUARE),
        budget=request.budget or own.budget,
        curve=RADII if request.curve else (),
        error_kinds=request.error_kinds,
        checks=request.checks,
    )


def _looked_into(
    request: Request, found: Evaluation, dataset: CocoDataset, names: list[str], settings: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """How ensembles came about, and what the attacks of these names broke; nothing without attacks."""
    if not names:
        return {}
    return looked_into(
        found,
        dataset,
        names,
        error_kinds=request.error_kinds,
        score_threshold=settings.score_threshold,
        resamples=request.bootstrap,
        seed=seed,
    )


def _black_box(
    request: Request,
    bundle: Bundle | None,
    threat_model: ThreatModel,
    settings: EvaluationConfig,
    seed: int,
    runners: list[Runner],
) -> BlackBox:
    return black_box(
        runners,
        threat_model,
        queries=request.queries,
        start=request.start,
        feedback=request.feedback,
        norm=request.norm,
        seed=seed,
        score_threshold=bundle.score_threshold(request.precision) if bundle else settings.score_threshold,
        iou_threshold=bundle.manifest.thresholds.iou if bundle else settings.iou_threshold,
        nms=_nms_in_graph(request, bundle),
    )


def _threat_model(request: Request, configuration: dict[str, Any]) -> ThreatModel:
    """The build's attack, or the paper's, changed by what was given."""
    given = {name: getattr(request, name) for name in ThreatModel.model_fields}
    given = {name: value for name, value in given.items() if value is not None}
    values = {**dict(ThreatModel()), **(configuration.get("attack") or {}), **given}
    if values["restarts"] > 1 and not values["random_start"]:
        raise ConfigError("are all the same without --random-start", "--restarts", "add it")
    if values["eps"] == 0:
        raise ConfigError("the build's attack has a ball of radius 0", request.source.given, "give one with --eps")
    if request.norm == "l2":
        if request.eps is None:
            raise ConfigError("needs a radius of its own", "--norm l2", "give it with --eps, e.g. 1 for small images")
        # A radius of L2 may be longer than any pixel's range.
        return ThreatModel(**{**values, "eps": 1.0}).model_copy(update={"eps": request.eps})
    if values["eps"] > 1:
        raise ConfigError(f"{values['eps']:g} is more than the range of a pixel, 1", "--eps", "write 8/255 as 0.0314")
    return ThreatModel(**values)


@contextlib.contextmanager
def _pytorch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch, and so the attack, use this many threads for a while; None leaves its setting alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parent(request: Request, configuration: dict[str, Any]) -> Darknet:
    source = request.source
    cfg, weights = source.cfg, source.weights
    if request.parent_cfg is not None:
        parent = find_model(request.parent_cfg, request.parent_weights)
        cfg, weights = parent.cfg, parent.weights
    if cfg is None or weights is None:
        needs = "has no PyTorch network to run"
        if request.attacks:
            needs = "is an engine, and an engine has no gradients to attack it with"
        fix = "give the build's output folder instead, or its parent with --parent-cfg and --parent-weights"
        raise ConfigError(needs, source.given, fix)
    device = "cuda" if torch.cuda.is_available() and configuration.get("device") != "cpu" else "cpu"
    network = load_darknet(cfg, weights)
    network.cfg.check_channels()
    return network.to(device).eval()


def _runner(name: str, request: Request, bundle: Bundle | None, parent: Darknet | None, threads: int | None) -> Runner:
    source = request.source
    if name == "torch":
        assert parent is not None
        return TorchRunner(parent, threads)
    if name in ("onnxruntime", "openvino") and source.onnx is not None:
        return open_runner(source.onnx, name, threads=threads)
    if bundle is None:
        raise ConfigError(
            f"cannot run on {name}", source.given, "give a bundle or a build's output folder, or use torch"
        )
    if name == "tensorrt":
        from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

        device = cuda_device()
        return bundle.runner(name, request.precision, target=None if device is None else device.target)
    return bundle.runner(name, request.precision, threads=threads)


def _limit(name: str, request: Request, bundle: Bundle | None, score_threshold: float) -> str | None:
    """What is to be said of a file with suppression in its graph: mAP is that of the few detections that it gives."""
    nms = None if name == "torch" else _nms_in_graph(request, bundle)
    return None if nms is None else nms.limit_on(score_threshold)


def _nms_in_graph(request: Request, bundle: Bundle | None) -> NmsInGraph | None:
    if request.source.onnx is not None:
        return read_onnx_header(request.source.onnx).nms
    return None if bundle is None else bundle.nms_in_graph(request.precision)


def _letterboxed(request: Request, bundle: Bundle | None, parent: Darknet | None) -> bool:
    """Whether the model's images are letterboxed, or stretched to its input."""
    if bundle is not None:
        return bundle.manifest.input.letterbox
    if request.source.onnx is not None:
        return read_onnx_header(request.source.onnx).letterbox
    return parent is None or parent.cfg.letterbox


def _class_names(request: Request, bundle: Bundle | None, parent: Darknet | None) -> list[str] | None:
    """The network's class names; None if nothing says them, so that the data's are taken."""
    if request.names is not None:
        return read_names(request.names)
    if bundle is not None:
        return list(bundle.class_names)
    if request.source.onnx is not None and (names := read_onnx_header(request.source.onnx).class_names):
        return list(names)
    classes = None if parent is None else parent.cfg.classes
    beside = names_beside(request.source.given, classes)
    if beside is not None:
        return beside[0]
    if classes == len(COCO_NAMES):
        return list(COCO_NAMES)
    return list(CLASS_NAMES) if classes == len(CLASS_NAMES) and (request.data or BUNDLED) == BUNDLED else None


def _guess(request: Request, dataset: CocoDataset, parent: Darknet | None) -> list[str]:
    """What is to be said if nothing names the network's classes: the data's are taken, in the order of their ids.

    Raises:
        ConfigError: They are not as many.
    """
    count, given = len(dataset.class_names), request.source.given
    if parent is not None and parent.cfg.classes != count:
        what = f"the network has {parent.cfg.classes} classes, the data {count}"
        raise ConfigError(what, given, "give the network's class names with --names")
    if count == 1:
        return []
    return [
        f"{given}: nothing names the network's classes, so their order is a guess, the data's by id: "
        f"{', '.join(dataset.class_names)}; give it with --names, or as a .names file beside the model"
    ]


def _dataset(
    request: Request, configuration: dict[str, Any], class_names: list[str] | None, progress: Progress
) -> tuple[CocoDataset, str]:
    """The test images, and what they are called."""
    own = configuration.get("data") or {}
    path = request.data or own.get("path") or BUNDLED
    # Another data set has nothing to do with how the build divided its own.
    divided = own if path == own.get("path") else {}
    folder = Path(path)
    if path == BUNDLED and not folder.is_dir():
        folder = composed_demo(request.store, progress)
    allowed = Allowed(
        request.allow_bad_boxes or divided.get("allow_bad_boxes", False),
        request.allow_bad_images,
        request.only_known_classes or divided.get("only_known_classes", False),
    )
    seed = int(configuration.get("seed", 0))
    dataset = load_test_split(folder, class_names, divided.get("train_images"), seed, allowed)
    limit = request.limit or divided.get("eval_images")
    if limit is not None and limit < len(dataset.images):
        dataset = measured_subset(dataset, limit)
    return dataset, str(path)


def _write_csvs(
    folder: Path, results: dict[str, Evaluation], adaptive: dict[str, Evaluation], dataset: CocoDataset
) -> None:
    for name, result in results.items():
        write_detections(folder / f"{name}-clean.csv", result.clean.detections, dataset)
        for attack, measured in result.attacked.items():
            write_detections(folder / f"{name}-{figure_name(attack)}.csv", measured.detections, dataset)
    for name, result in adaptive.items():
        for attack, measured in result.attacked.items():
            write_detections(folder / f"{name}-{figure_name(attack)}-adaptive.csv", measured.detections, dataset)
