"""``prunedeploy serve``: needs the base install, a runtime and the extra ``serve``."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import AT_LEAST_ONE, PATH, POSITIVE, PRECISIONS, RUNTIMES, count_option
from prunedeploy.cli.output import print_json
from prunedeploy_engines.errors import ConfigError

if TYPE_CHECKING:
    from prunedeploy_engines.serving.server import Addresses

DETECT = "-detect"
MIB = 1 << 20


@command_with_examples(
    "serve",
    "prunedeploy serve runs/demo-structured-bn-scale-0.75-s0",
    "prunedeploy serve dense=runs/a/bundle pruned=runs/b/bundle --port 9000",
    "prunedeploy serve bundle/ --host 0.0.0.0 --token-file token --tls-certificate cert.pem --tls-key key.pem",
)
@click.argument("bundles", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port of HTTP; 0: a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, help="Port of gRPC; 0: a free one.")
@click.option("--no-grpc", is_flag=True, help="Serve HTTP only.")
@count_option("--max-batch", "Images computed together.", default=8)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0),
    default=2.0,
    metavar="MS",
    help="How long images wait for others to fill a batch.",
)
@count_option("--max-queue", "Images of a model that may wait; beyond it the answer is 503.", default=64)
@click.option(
    "--timeout",
    "timeout_s",
    type=POSITIVE,
    default=10.0,
    metavar="S",
    help="Deadline of a request that does not set one.",
)
@count_option("--workers", "Runners per model.", default=1)
@count_option("--threads", "Threads of a runner on the CPU; default: one per core.")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Default: the first that is installed and fits a bundle.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Of the models.")
@click.option("--max-body-mb", type=AT_LEAST_ONE, default=32, metavar="MB", help="Of a request.")
@click.option("--max-megapixels", type=POSITIVE, default=50.0, metavar="N", help="Of an image, by its header.")
@count_option("--max-images", "Per request.", default=32)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Holds the bearer token that clients must show; also: environment PRUNEDEPLOY_TOKEN.",
)
@click.option("--tls-certificate", type=PATH, metavar="FILE", help="PEM, for HTTPS and gRPC.")
@click.option("--tls-key", type=PATH, metavar="FILE", help="PEM, its private key.")
@click.option(
    "--shared-memory",
    is_flag=True,
    help="Let clients on this machine pass tensors in POSIX shared memory (Triton's extension).",
)
@click.option("--otlp-endpoint", metavar="URL", help="Where OpenTelemetry traces go; default: nowhere.")
def command(
    bundles: tuple[str, ...],
    grpc_port: int,
    no_grpc: bool,
    max_body_mb: int,
    max_megapixels: float,
    token_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer detection requests over HTTP and gRPC, and show a page to try it.

    BUNDLE is a bundle or a build's output folder; its name is the folder's (of a folder called bundle, the one around
    it) unless NAME= is given. Protocols: Open Inference Protocol (KServe V2) over REST and gRPC, and POST /v1/detect
    for images. SIGTERM or Ctrl-C stops it; what was accepted is answered.
    """
    from prunedeploy_engines.serving.core.settings import ServingSettings
    from prunedeploy_engines.serving.server import run

    settings = ServingSettings(
        grpc_port=None if no_grpc else grpc_port,
        max_body_bytes=max_body_mb * MIB,
        max_pixels=round(max_megapixels * 1e6),
        token=_token(token_file),
        **options,
    )
    if settings.token is None and not _is_loopback(settings.host):
        if settings.shared_memory:
            raise ConfigError(
                f"anybody who reaches {settings.host} could let the server read and write shared memory here",
                "--shared-memory",
                "give --token-file, or listen on 127.0.0.1",
            )
        line = f"anybody who reaches {settings.host} can use this server; give --token-file"
        click.echo(f"prunedeploy: warning: {line}", err=True)
    named = _named(bundles)
    _warn_of_thresholds(named, settings.precision)

    def announce(addresses: Addresses) -> None:
        if as_json:
            print_json({"http": addresses.http, "grpc": addresses.grpc, "models": list(named)})
        else:
            grpc = "" if addresses.grpc is None else f", gRPC at {addresses.grpc}"
            click.echo(f"serving {', '.join(named)} at {addresses.http}{grpc}")

    run(named, settings, announce)


def _warn_of_thresholds(named: Mapping[str, Path], precision: str) -> None:
    """Say which models have suppression in their graph, whose threshold no request can lower."""
    from prunedeploy_engines.bundle import load_bundle

    for name, folder in named.items():
        nms = load_bundle(folder, verify=False).nms_in_graph(precision)
        if nms is not None and nms.score_threshold > 0:
            click.echo(f"prunedeploy: warning: {name}: {nms.limit}; no request can lower that", err=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: Path | None) -> str | None:
    """From the file, else from the environment; never from the command line, where every user of a machine sees it."""
    if file is None:
        return os.environ.get("PRUNEDEPLOY_TOKEN")
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("is not a readable file of plain ASCII", file, "write the token into it") from None


def _named(bundles: tuple[str, ...]) -> dict[str, Path]:
    """Bundle folders by name.

    Raises:
        ConfigError: A name is unusable or given twice, or there is no such bundle.
    """
    from prunedeploy_engines.bundle.source import find_model

    named: dict[str, Path] = {}
    for given in bundles:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = "", given
        source = find_model(Path(path))
        if source.bundle is None or source.kind == "onnx":
            raise ConfigError("is not a bundle and contains none", path, "give a bundle or a build's output folder")
        folder = source.bundle.resolve()
        name = name or (folder.parent.name if folder.name == "bundle" else folder.name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ConfigError(f"{name!r} cannot be a model's name", given, "give NAME=BUNDLE of letters, digits, . _ -")
        for taken in (name, f"{name}{DETECT}", name.removesuffix(DETECT)):
            if taken in named:
                raise ConfigError(f"the names {name!r} and {taken!r} clash", given, "choose another NAME")
        named[name] = folder
    return named
