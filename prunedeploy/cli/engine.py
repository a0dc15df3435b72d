"""``prunedeploy engine``: needs the base install and TensorRT only; meant to run on the device."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import Command, examples
from prunedeploy.cli.output import (
    comma_list,
    json_option,
    print_json,
    print_table,
    quiet_stdout,
    size,
    whole_numbers,
)

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle
    from prunedeploy_engines.engine_from_onnx import EngineFile


@click.command(
    "engine",
    cls=Command,
    epilog=examples(
        "prunedeploy engine bundle/ --target sm86,sm89",
        "prunedeploy engine bundle/                        on the device",
        "prunedeploy engine model.onnx --target sm86 --out engines",
    ),
)
@click.argument("model", metavar="BUNDLE|MODEL.onnx", type=click.Path(path_type=Path))
@click.option(
    "--target",
    default="device",
    show_default=True,
    metavar="T,...",
    help="Compute capabilities, e.g. sm75, sm80, sm86, sm89, sm120; device: the GPU that is here.",
)
@click.option(
    "--library",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="Default: full TensorRT where it is installed and the target is the GPU here, else RTX.",
)
@click.option("--precision", default="fp32", show_default=True, help="Which of the bundle's ONNX files.")
@click.option(
    "--batch",
    default="1,1,8",
    show_default=True,
    metavar="MIN,BEST,MAX",
    help="Batch sizes that the engine accepts, and the one it is made for.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of a plain .onnx file: where to write; default: engines/ beside it.",
)
@json_option
def command(
    model: Path, target: str, library: str | None, precision: str, batch: str, out: Path | None, as_json: bool
) -> None:
    """Build TensorRT engines.

    From a bundle (or a build's output folder): they are put into it, under engines/<target>/, each with a
    JSON file that says what it is. From a plain .onnx file: they are written to engines/<target>/ beside
    it. An engine that is there already is not built again.

    TensorRT-RTX builds ahead of time, without a GPU, for chosen targets. Full TensorRT builds for the GPU
    that is here: run this on the device itself.
    """
    from prunedeploy.cli.model_source import find_model
    from prunedeploy_engines.errors import ConfigError

    targets = comma_list(target, "--target")
    sizes = whole_numbers_in_order(batch)
    source = find_model(model)
    built: list[EngineFile] = []
    with quiet_stdout():
        if source.bundle is not None:
            if out is not None:
                raise ConfigError("is for a plain .onnx file; engines of a bundle go into it", "--out", "leave it out")
            bundle = source.load_bundle()
            path = bundle.model_path(precision) if source.onnx is None else source.onnx
            for one in targets:
                built.append(_into_bundle(bundle, path, precision, one, library, sizes))
                bundle = source.load_bundle()
        elif source.onnx is not None:
            folder = source.onnx.parent / "engines" if out is None else out
            built = [_build(source.onnx, folder, one, library, sizes) for one in targets]
        else:
            raise ConfigError("engines are built from ONNX", model, "give a bundle or a .onnx file")
    if as_json:
        print_json([asdict(engine) for engine in built])
        return
    rows = [
        [
            str(engine.path),
            engine.target,
            f"{engine.library} {engine.version}",
            engine.precision,
            size(engine.bytes),
            "was there" if engine.cached else "built",
        ]
        for engine in built
    ]
    print_table(["engine", "target", "library", "precision", "size", ""], rows, left=3)


def whole_numbers_in_order(text: str) -> tuple[int, int, int]:
    """Read ``MIN,BEST,MAX``.

    Raises:
        click.UsageError: It is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    numbers = [number for part in parts for number in whole_numbers(part, "--batch")]
    if len(numbers) != 3 or sorted(numbers) != numbers:
        raise click.UsageError(f"--batch {text!r} is not of the form MIN,BEST,MAX, such as 1,1,8")
    return numbers[0], numbers[1], numbers[2]


def _into_bundle(
    bundle: Bundle, onnx: Path, precision: str, target: str, library: str | None, sizes: tuple[int, int, int]
) -> EngineFile:
    """Build beside the bundle, then put plan and sidecar into it: it never holds a file it does not list."""
    from dataclasses import replace

    from prunedeploy_engines.bundle_files import BundleFile
    from prunedeploy_engines.engine_from_onnx import sidecar_path

    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=f".{bundle.path.name}.", suffix=".tmp") as scratch:
        for name, entry in bundle.manifest.files.items():
            if name.startswith("engines/") and entry.role != "onnx":  # so that none is built again
                copy = Path(scratch) / Path(name).relative_to("engines")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((bundle.path / name).read_bytes())
        engine = _build(onnx, Path(scratch), target, library, sizes)
        name = f"engines/{engine.path.relative_to(scratch).as_posix()}"
        if not engine.cached:
            # The bundle's word for the precision, by which it is asked for, not TensorRT's.
            bundle.add_files(
                {
                    name: BundleFile(engine.path, "engine", precision, engine.target),
                    f"{name}.json": BundleFile(sidecar_path(engine.path), "metadata", None, engine.target),
                }
            )
    return replace(engine, path=bundle.path / name)


def _build(onnx: Path, folder: Path, target: str, library: Any, sizes: tuple[int, int, int]) -> EngineFile:
    """Build into ``folder/<target>``."""
    from prunedeploy_engines.engine_from_onnx import engine_from_onnx
    from prunedeploy_engines.errors import RuntimeUnavailableError
    from prunedeploy_engines.tensorrt_library import cuda_device

    if target == "device":
        device = cuda_device()
        if device is None:
            raise RuntimeUnavailableError("there is no GPU to build for", fix="name one, e.g. --target sm86")
        target = device.target
    with _progress(target) as advance:
        return engine_from_onnx(onnx, folder / target, target=target, library=library, batch=sizes, progress=advance)


@contextmanager
def _progress(target: str) -> Iterator[Any]:
    """Show the phases of a build on a terminal; elsewhere, one line."""
    stream = sys.stderr
    click.echo(f"building for {target}", file=stream)
    if not stream.isatty():
        yield None
        return

    def advance(phase: str, done: int, total: int) -> None:
        click.echo(f"\r\033[K{phase}: {done}/{total}", nl=False, file=stream)

    try:
        yield advance
    finally:
        click.echo("\r\033[K", nl=False, file=stream)
