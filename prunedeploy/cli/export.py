"""``prunedeploy export``: what a cluster needs to run a bundle; the base install and ONNX Runtime will do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import Group, examples
from prunedeploy.cli.output import json_option, print_json, print_table, quiet_stdout, whole_numbers

if TYPE_CHECKING:
    from prunedeploy.cli.model_source import ModelSource
    from prunedeploy_engines.bundle import Bundle

PRECISIONS = ("fp32", "fp16", "int8")
SERVERS = ("prunedeploy", "triton")
METRICS = ("concurrency", "rps", "cpu")
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.group("export", cls=Group)
def command() -> None:
    """Write a bundle as a Triton model repository, or as a KServe manifest."""


@command.command(
    "triton",
    epilog=examples(
        "prunedeploy export triton bundle/ models/",
        "prunedeploy export triton bundle/ models/ --target gpu --precision fp16 --max-batch 16",
        "prunedeploy export triton bundle/ models/ --target sm86 --precision int8",
        "tritonserver --model-repository=models/",
    ),
)
@bundle_argument
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Of the model in Triton; default: the name of the bundle's folder.")
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    metavar="T",
    help="cpu or gpu: ONNX Runtime there. Otherwise what a TensorRT plan of the bundle was built for, e.g. sm86.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Which of the bundle's models or plans.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    metavar="N",
    help="Most images that run together; also of one request.",
)
@click.option(
    "--preferred-batch",
    metavar="N,...",
    help="Batch sizes that are run at once, without waiting for more; default: half the largest, and the largest.",
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0, 10_000),
    default=2.0,
    show_default=True,
    metavar="MS",
    help="How long the first image of a batch waits for others.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1, 1_000_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that may wait; more are refused at once.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0.001, 86_400),
    default=10.0,
    show_default=True,
    metavar="S",
    help="A request that has waited so long is refused; a request may bring its own.",
)
@click.option(
    "--instances",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    metavar="N",
    help="Copies of the detector; per GPU where it runs on GPUs.",
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Of one operator, on CPUs; default: ONNX Runtime's choice."
)
@click.option(
    "--python-instances",
    type=click.IntRange(1, 1024),
    default=2,
    show_default=True,
    metavar="N",
    help="Processes that decode images, and as many that make detections.",
)
@click.option("--model-version", type=click.IntRange(1), default=1, show_default=True, help="Number of the version.")
@click.option("--overwrite", is_flag=True, help="Replace the model repository that DIR is.")
@json_option
def triton(
    bundle: Path,
    folder: Path,
    name: str | None,
    target: str,
    precision: str,
    max_batch: int,
    preferred_batch: str | None,
    max_delay_ms: float,
    max_queue: int,
    timeout_s: float,
    instances: int,
    threads: int | None,
    python_instances: int,
    model_version: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server into DIR.

    BUNDLE is a bundle or a build's output folder; it is verified first. DIR appears whole or not at all. It gets
    four models: NAME, the detector, with dynamic batching; NAME-detect, which takes JPEG, PNG or WebP images and
    gives detections in their pixels, as prunedeploy's own server does; and the two in between that letterbox and
    suppress. Those two are in Python: Triton's image needs Pillow for them (`pip install --no-deps pillow`).
    """
    from prunedeploy.cli.model_source import find_model
    from prunedeploy_export.triton_config import TritonSettings
    from prunedeploy_export.triton_repository import write_triton_repository

    settings = TritonSettings(
        max_batch=max_batch,
        preferred_batch=() if preferred_batch is None else tuple(whole_numbers(preferred_batch, "--preferred-batch")),
        max_delay_ms=max_delay_ms,
        max_queue=max_queue,
        timeout_s=timeout_s,
        instances=instances,
        threads=threads,
        python_instances=python_instances,
    )
    with quiet_stdout():
        source = find_model(bundle)
        written = write_triton_repository(
            source.load_bundle(),
            folder,
            name=_folder_name(source) if name is None else name,
            target=target,
            precision=precision,
            version=model_version,
            settings=settings,
            overwrite=overwrite,
        )
    detector = written.detector
    if as_json:
        print_json(
            {
                "path": written.path,
                "models": written.models,
                "version": written.version,
                "file": detector.path,
                "backend": "onnxruntime" if detector.plan is None else "tensorrt",
                "device": "gpu" if detector.on_gpu else "cpu",
                "precision": precision,
                "uint8_input": detector.uint8_input,
                "nms": detector.nms_classes is not None,
            }
        )
        return
    model, before, after, ensemble = written.models
    click.echo(f"{written.path}: from {detector.path.name}, version {written.version}")
    rows = [
        [model, "network input to boxes and scores" if detector.nms_classes is None else "network input to detections"],
        [before, "encoded images to network input"],
        [after, "the network's output to detections in the images"],
        [ensemble, "the three in a row: ask this one"],
    ]
    print_table(["model", ""], rows, left=2)


@command.command(
    "kserve",
    epilog=examples(
        "prunedeploy export kserve bundle/ --image registry.example/detector:1 --dockerfile Dockerfile --out isvc.yaml",
        "prunedeploy export kserve bundle/ --server triton --storage-uri s3://models/detector --gpus 1 --out isvc.yaml",
        "kubectl apply -f isvc.yaml",
    ),
)
@bundle_argument
@click.option("--name", metavar="NAME", help="Of the service; default: made from the name of the bundle's folder.")
@click.option("--namespace", metavar="NAME", help="Default: kubectl's.")
@click.option(
    "--server",
    type=click.Choice(SERVERS),
    default="prunedeploy",
    show_default=True,
    help="What answers: `prunedeploy serve` in an image of yours, or Triton with the repository of `export triton`.",
)
@click.option("--image", metavar="IMAGE", help="The container's; Triton's own needs Pillow added, see --dockerfile.")
@click.option(
    "--storage-uri",
    metavar="URI",
    help="Where the bundle (or Triton's repository) was copied to: gs://, s3://, pvc://... Default: in the image.",
)
@click.option("--min-replicas", type=int, default=1, show_default=True, metavar="N", help="0 lets the service sleep.")
@click.option("--max-replicas", type=int, default=3, show_default=True, metavar="N", help="At most so many.")
@click.option(
    "--scale-metric",
    type=click.Choice(METRICS),
    default="concurrency",
    show_default=True,
    help="What decides their number. concurrency and rps need Knative in the cluster, cpu does without.",
)
@click.option(
    "--scale-target",
    type=int,
    metavar="N",
    help="Per replica: requests at once (default 8), requests per second, or % of its CPUs (default 80).",
)
@click.option("--concurrency", type=int, metavar="N", help="Never give a replica more requests at once.")
@click.option("--timeout-s", type=int, default=30, show_default=True, metavar="S", help="Of a request in the cluster.")
@click.option(
    "--startup-s",
    type=int,
    default=60,
    show_default=True,
    metavar="S",
    help="How long a replica may take to load before it counts as dead.",
)
@click.option("--cpu", default="1", show_default=True, metavar="Q", help="CPUs of a replica, e.g. 500m or 2.")
@click.option("--memory", default="2Gi", show_default=True, metavar="Q", help="Memory of a replica.")
@click.option("--gpus", type=int, default=0, show_default=True, metavar="N", help="NVIDIA GPUs of a replica.")
@click.option("--service-account", metavar="NAME", help="Whose credentials fetch the model.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Which of the bundle's models prunedeploy serves.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Default: print it.")
@click.option(
    "--dockerfile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a Dockerfile for the image, which runs without root.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@json_option
def kserve(
    bundle: Path,
    name: str | None,
    precision: str | None,
    out: Path | None,
    dockerfile: Path | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write the manifest of a KServe InferenceService, with autoscaling.

    BUNDLE is a bundle or a build's output folder; it is verified first, and its hash stands in the manifest. The
    container runs without root and capabilities, on a read-only root file system. Nothing is sent anywhere:
    `kubectl apply -f FILE` is yours to type.
    """
    from prunedeploy.cli.model_source import find_model
    from prunedeploy_export.kserve_manifest import KServeSettings, inference_service, to_yaml
    from prunedeploy_export.serving_image import dockerfile as dockerfile_text

    server = settings["server"]
    with quiet_stdout():
        source = find_model(bundle)
        opened = source.load_bundle()
        arguments = () if precision is None else _precision_of(opened, precision, settings)
        asked = KServeSettings(name=_service_name(source) if name is None else name, arguments=arguments, **settings)
        manifest = inference_service(opened, asked)
        files: dict[Path, str] = {}
        if out is not None:
            files[out] = to_yaml(manifest)
        if dockerfile is not None:
            files[dockerfile] = dockerfile_text(
                server, with_bundle=asked.storage_uri is None, gpu=asked.gpus > 0, name=dockerfile.name
            )
        _write(files, overwrite)
    if as_json:
        print_json(manifest)
    elif out is None:
        click.echo(to_yaml(manifest), nl=False)
    else:
        click.echo(f"{out}: {server} behind {asked.name}, {asked.min_replicas} to {asked.max_replicas} replicas")


def _precision_of(bundle: Bundle, precision: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """Arguments of the server for a precision that the bundle has."""
    from prunedeploy_engines.errors import ConfigError

    if settings["server"] != "prunedeploy":
        raise ConfigError("is chosen when Triton's repository is written", "--precision", "leave it out here")
    bundle.model_path(precision, "gpu" if settings["gpus"] > 0 else "cpu")
    return ("--precision", precision)


def _write(files: dict[Path, str], overwrite: bool) -> None:
    """Write all files or, if one is there already, none."""
    from prunedeploy_engines.errors import StoreError
    from prunedeploy_engines.files import write_atomically

    for path in files:
        if path.exists() and not overwrite:
            raise StoreError("exists already", path, "choose another name, or --overwrite it")
    for path, text in files.items():
        write_atomically(path, text.encode())


def _folder_name(source: ModelSource) -> str:
    """The name of the bundle's folder, or of the build's that it lies in."""
    folder = source.given.absolute()
    if folder.name == "bundle.json":
        folder = folder.parent
    return folder.parent.name if folder.name == "bundle" else folder.name


def _service_name(source: ModelSource) -> str:
    """The same as Kubernetes takes it; what is left of a name in another script may be nothing."""
    plain = re.sub("[^a-z0-9]+", "-", _folder_name(source).lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"detector-{plain}".strip("-"))[:53].rstrip("-")
