"""``prunedeploy export kserve``: needs the base install only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import FILE, PATH, PRECISIONS
from prunedeploy.cli.output import print_json, quiet_stdout
from prunedeploy_engines.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from prunedeploy_engines.bundle.source import ModelSource

SERVERS = ("prunedeploy", "triton")
METRICS = ("concurrency", "rps", "cpu")


@command_with_examples(
    "kserve",
    "prunedeploy export kserve bundle/ --image registry.example/detector:1 --dockerfile Dockerfile --out isvc.yaml",
    "prunedeploy export kserve bundle/ --server triton --storage-uri s3://models/detector --gpus 1 --out isvc.yaml",
    "kubectl apply -f isvc.yaml",
)
@click.argument("bundle", type=PATH)
@click.option("--name", metavar="NAME", help="Name of the service; default: made from that of the bundle's folder.")
@click.option("--namespace", metavar="NAME", help="Default: kubectl's.")
@click.option(
    "--server",
    type=click.Choice(SERVERS),
    default="prunedeploy",
    help="What answers: `prunedeploy serve` in your own image, or Triton with the repository of `export triton`.",
)
@click.option(
    "--image", metavar="IMAGE", help="Image of the container; Triton's own needs Pillow added, see --dockerfile."
)
@click.option(
    "--storage-uri",
    metavar="URI",
    help="Where the bundle (or Triton's repository) was copied to: gs://, s3://, pvc://... Default: in the image.",
)
@click.option("--min-replicas", type=int, default=1, metavar="N", help="0 lets the service sleep.")
@click.option("--max-replicas", type=int, default=3, metavar="N", help="At most this many.")
@click.option(
    "--scale-metric",
    type=click.Choice(METRICS),
    default="concurrency",
    help="What decides their number. concurrency and rps need Knative in the cluster, cpu works without it.",
)
@click.option(
    "--scale-target",
    type=int,
    metavar="N",
    help="Per replica: requests at once (default 8), requests per second, or % of its CPUs (default 80).",
)
@click.option("--concurrency", type=int, metavar="N", help="Never give a replica more requests at once.")
@click.option("--timeout-s", type=int, default=30, metavar="S", help="Time limit of a request in the cluster.")
@click.option(
    "--startup-s",
    type=int,
    default=60,
    metavar="S",
    help="How long a replica may take to load before it counts as dead.",
)
@click.option("--cpu", default="1", metavar="Q", help="CPUs of a replica, e.g. 500m or 2.")
@click.option("--memory", default="2Gi", metavar="Q", help="Memory of a replica.")
@click.option("--gpus", type=int, default=0, metavar="N", help="NVIDIA GPUs of a replica.")
@click.option("--service-account", metavar="NAME", help="Whose credentials fetch the model.")
@click.option("--token-secret", metavar="NAME", help="Secret whose key `token` holds what clients must show.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="What prunedeploy serves; default: fp32.")
@click.option("--out", type=FILE, metavar="FILE", help="Default: print it.")
@click.option(
    "--dockerfile", type=FILE, metavar="FILE", help="Also write a Dockerfile for the image, which runs without root."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
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

    BUNDLE is a bundle or a build's output folder; it is verified first, and its hash is in the manifest. The
    container runs without root and without capabilities, on a read-only root file system. Nothing is sent anywhere:
    `kubectl apply -f FILE` is yours to type.
    """
    from prunedeploy_engines.bundle.source import find_model
    from prunedeploy_export.cluster.kserve_manifest import gpu_library, inference_service, to_yaml
    from prunedeploy_export.cluster.kserve_settings import KServeSettings
    from prunedeploy_export.cluster.serving_image import dockerfile as dockerfile_text

    server = settings["server"]
    if precision is not None and server == "triton":
        raise ConfigError("is chosen when Triton's repository is written", "--precision", "leave it out here")
    with quiet_stdout():
        source = find_model(bundle)
        opened = source.load_bundle()
        precision = precision or "fp32"
        asked = KServeSettings(name=_service_name(source) if name is None else name, precision=precision, **settings)
        manifest = inference_service(opened, asked)
        files: dict[Path, str] = {}
        if out is not None:
            files[out] = to_yaml(manifest)
        if dockerfile is not None:
            library = gpu_library(opened, precision) if asked.gpus else None
            files[dockerfile] = dockerfile_text(
                server,
                with_bundle=asked.storage_uri is None,
                runtime={"tensorrt": "gpu", "tensorrt_rtx": "rtx"}.get(library or "", "cpu"),
                name=dockerfile.name,
            )
        _write(files, overwrite)
    if as_json:
        print_json(manifest)
    elif out is None:
        click.echo(to_yaml(manifest), nl=False)
    else:
        click.echo(f"{out}: {server} behind {asked.name}, {asked.min_replicas} to {asked.max_replicas} replicas")


def _write(files: dict[Path, str], overwrite: bool) -> None:
    """Write all files or, if one is there already, none."""
    from prunedeploy_engines.files import write_atomically

    for path in files:
        if path.exists() and not overwrite:
            raise StoreError("exists already", path, "choose another name, or --overwrite it")
    for path, text in files.items():
        write_atomically(path, text.encode())


def folder_name(source: ModelSource) -> str:
    """The name of the bundle's folder, or of the build's that it lies in."""
    folder = source.given.absolute()
    if folder.name == "bundle.json":
        folder = folder.parent
    return folder.parent.name if folder.name == "bundle" else folder.name


def _service_name(source: ModelSource) -> str:
    """The same as Kubernetes takes it; what is left of a name in another script may be nothing."""
    plain = re.sub("[^a-z0-9]+", "-", folder_name(source).lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"detector-{plain}".strip("-"))[:53].rstrip("-")
