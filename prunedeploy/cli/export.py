"""``prunedeploy export``: what a cluster needs to run a bundle; the base install and ONNX Runtime will do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.export_kserve import folder_name, kserve
from prunedeploy.cli.group import Group, examples
from prunedeploy.cli.options import AT_LEAST_ONE, PATH, PRECISIONS, count_option
from prunedeploy.cli.output import print_json, print_table, quiet_stdout, whole_numbers


@click.group("export", cls=Group)
def command() -> None:
    """Write a bundle as a Triton model repository, or as a KServe manifest."""


command.add_command(kserve)


@command.command(
    "triton",
    epilog=examples(
        "prunedeploy export triton bundle/ models/",
        "prunedeploy export triton bundle/ models/ --target gpu --precision fp16 --max-batch 16",
        "prunedeploy export triton bundle/ models/ --target sm86 --precision int8",
        "tritonserver --model-repository=models/",
    ),
)
@click.argument("bundle", type=PATH)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--name", metavar="NAME", help="Name of the model in Triton; default: that of the bundle's folder.")
@click.option(
    "--target",
    default="cpu",
    metavar="T",
    help="cpu or gpu: ONNX Runtime there. Otherwise what a TensorRT plan of the bundle was built for, e.g. sm86.",
)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", help="Which of the bundle's models or plans."
)
@count_option("--max-batch", "Most images that run together; also the most in one request.", default=8, most=1024)
@click.option(
    "--preferred-batch",
    metavar="N,...",
    help="Batch sizes that are run at once, without waiting for more; default: half the largest, and the largest.",
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0, 10_000),
    default=2.0,
    metavar="MS",
    help="How long the first image of a batch waits for others.",
)
@count_option("--max-queue", "Requests that may wait; more are refused at once.", default=64, most=1_000_000)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0.001, 86_400),
    default=10.0,
    metavar="S",
    help="A request that has waited this long is refused; a request may bring its own limit.",
)
@count_option("--instances", "Copies of the detector; per GPU where it runs on GPUs.", default=1, most=1024)
@count_option("--threads", "Threads of one operator, on CPUs; default: ONNX Runtime's choice.")
@count_option(
    "--python-instances",
    "Processes that decode images, and the same number that make detections.",
    default=2,
    most=1024,
)
@click.option("--model-version", type=AT_LEAST_ONE, default=1, help="Number of the version.")
@click.option("--overwrite", is_flag=True, help="Replace the model repository in DIR.")
def triton(
    bundle: Path,
    folder: Path,
    name: str | None,
    target: str,
    precision: str,
    preferred_batch: str | None,
    model_version: int,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server into DIR.

    BUNDLE is a bundle or a build's output folder; it is verified first. DIR appears whole or not at all. It gets
    four models: NAME, the detector, with dynamic batching; NAME-detect, which takes JPEG, PNG or WebP images and
    gives detections in their pixels, as prunedeploy's own server does; and the two in between that letterbox and
    suppress. Those two are in Python: Triton's image needs Pillow for them (`pip install --no-deps pillow`).
    """
    from prunedeploy_engines.bundle.source import find_model
    from prunedeploy_export.cluster.triton_config import TritonSettings
    from prunedeploy_export.cluster.triton_repository import write_triton_repository

    preferred = () if preferred_batch is None else tuple(whole_numbers(preferred_batch, "--preferred-batch"))
    with quiet_stdout():
        source = find_model(bundle)
        written = write_triton_repository(
            source.load_bundle(),
            folder,
            name=folder_name(source) if name is None else name,
            target=target,
            precision=precision,
            version=model_version,
            settings=TritonSettings(preferred_batch=preferred, **settings),
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
