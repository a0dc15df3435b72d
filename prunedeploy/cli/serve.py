"""``prunedeploy serve``: needs the base install, a runtime and the extra ``serve``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import Command, examples
from prunedeploy.cli.output import json_option

if TYPE_CHECKING:
    from prunedeploy_engines.serving.core.settings import ServingSettings
    from prunedeploy_engines.serving.server import Addresses

RUNTIMES = ("onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")
DETECT = "-detect"
MIB = 1 << 20


@click.command(
    "serve",
    cls=Command,
    epilog=examples(
        "prunedeploy serve runs/demo-structured-bn-scale-0.75-s0",
        "prunedeploy serve dense=runs/a/bundle pruned=runs/b/bundle --port 9000",
        "prunedeploy serve bundle/ --host 0.0.0.0 --token-file token --tls-certificate cert.pem --tls-key key.pem",
    ),
)
@click.argument("bundles", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Of HTTP; 0: a free one.")
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Of gRPC; 0: a free one."
)
@click.option("--no-grpc", is_flag=True, help="Serve HTTP only.")
@click.option(
    "--max-batch", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Images computed together."
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    metavar="MS",
    help="How long images wait for others to fill a batch.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Images of a model that may wait; beyond it the answer is 503.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Deadline of a request that names none.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Runners per model.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of a runner on the CPU; default: one per core.")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Default: the first that is installed and fits a bundle.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of the models.")
@click.option(
    "--max-body-mb", type=click.IntRange(1), default=32, show_default=True, metavar="MB", help="Of a request."
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(0, min_open=True),
    default=50.0,
    show_default=True,
    metavar="N",
    help="Of an image, by its header.",
)
@click.option("--max-images", type=click.IntRange(1), default=32, show_default=True, metavar="N", help="Per request.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Holds the bearer token that clients must show; also: environment PRUNEDEPLOY_TOKEN.",
)
@click.option("--tls-certificate", type=click.Path(path_type=Path), metavar="FILE", help="PEM, for HTTPS and gRPC.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="PEM, its private key.")
@click.option("--otlp-endpoint", metavar="URL", help="Where OpenTelemetry traces go; default: nowhere.")
@json_option
def command(bundles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Answer detection requests over HTTP and gRPC, and show a page to try it.

    BUNDLE is a bundle or a build's output folder; its name is the folder's (of a folder called bundle, the one around
    it) unless NAME= is given. Protocols: Open Inference Protocol (KServe V2) over REST and gRPC, and POST /v1/detect
    for images. SIGTERM or Ctrl-C stops it; what was accepted is answered.
    """
    from prunedeploy_engines.serving.server import run

    settings = _settings(options)
    if settings.token is None and not _is_loopback(settings.host):
        line = f"anybody who reaches {settings.host} can use this server; give --token-file"
        click.echo(f"prunedeploy: warning: {line}", err=True)
    named = _named(bundles)

    def announce(addresses: Addresses) -> None:
        if as_json:
            from prunedeploy.cli.output import print_json

            print_json({"http": addresses.http, "grpc": addresses.grpc, "models": list(named)})
        else:
            grpc = "" if addresses.grpc is None else f", gRPC at {addresses.grpc}"
            click.echo(f"serving {', '.join(named)} at {addresses.http}{grpc}")

    run(named, settings, announce)


def _settings(options: dict[str, Any]) -> ServingSettings:
    from prunedeploy_engines.serving.core.settings import ServingSettings

    return ServingSettings(
        host=options["host"],
        port=options["port"],
        grpc_port=None if options["no_grpc"] else options["grpc_port"],
        max_batch=options["max_batch"],
        max_delay_ms=options["max_delay_ms"],
        max_queue=options["max_queue"],
        timeout_s=options["timeout"],
        workers=options["workers"],
        threads=options["threads"],
        runtime=options["runtime"],
        precision=options["precision"],
        max_body_bytes=options["max_body_mb"] * MIB,
        max_pixels=round(options["max_megapixels"] * 1e6),
        max_images=options["max_images"],
        token=_token(options["token_file"]),
        tls_certificate=options["tls_certificate"],
        tls_key=options["tls_key"],
        otlp_endpoint=options["otlp_endpoint"],
    )


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: Path | None) -> str | None:
    """From the file, else from the environment; never from the command line, where every user of a machine sees it."""
    import os

    from prunedeploy_engines.errors import ConfigError

    if file is None:
        return os.environ.get("PRUNEDEPLOY_TOKEN")
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("is no file of plain ASCII that can be read", file, "write the token into it") from None


def _named(bundles: tuple[str, ...]) -> dict[str, Path]:
    """Bundle folders by name.

    Raises:
        ConfigError: A name is unusable or given twice, or there is no such bundle.
    """
    from prunedeploy_engines.bundle.source import find_model
    from prunedeploy_engines.errors import ConfigError

    named: dict[str, Path] = {}
    for given in bundles:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = "", given
        source = find_model(Path(path))
        if source.bundle is None or source.kind == "onnx":
            raise ConfigError("is not a bundle and has none", path, "give a bundle or a build's output folder")
        folder = source.bundle.resolve()
        name = name or (folder.parent.name if folder.name == "bundle" else folder.name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ConfigError(f"{name!r} cannot be a model's name", given, "give NAME=BUNDLE of letters, digits, . _ -")
        for taken in (name, f"{name}{DETECT}", name.removesuffix(DETECT)):
            if taken in named:
                raise ConfigError(f"the names {name!r} and {taken!r} clash", given, "choose another NAME")
        named[name] = folder
    return named
