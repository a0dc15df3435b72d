"""``prunedeploy engine``: needs the base install and TensorRT only; meant to run on the device."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import AT_LEAST_ONE, FILE, PATH, PRECISIONS
from prunedeploy.cli.output import comma_list, print_json, print_table, quiet_stdout, size, whole_numbers
from prunedeploy_engines.errors import BundleError, ConfigError, RuntimeUnavailableError

if TYPE_CHECKING:
    from prunedeploy_engines.builder.from_onnx import EngineFile
    from prunedeploy_engines.bundle import Bundle
    from prunedeploy_engines.bundle.source import ModelSource

MIB = 1 << 20


@command_with_examples(
    "engine",
    "prunedeploy engine bundle/ --target sm86,sm89",
    "prunedeploy engine bundle/                        on the device",
    "prunedeploy engine bundle/ --precision fp16,int8 --batch 1,1,1",
    "prunedeploy engine model.onnx --target sm86 --out engines",
)
@click.argument("model", metavar="BUNDLE|MODEL.onnx", type=PATH)
@click.option(
    "--target",
    default="device",
    metavar="T,...",
    help="Compute capabilities, e.g. sm75, sm80, sm86, sm89, sm120; device: this machine's GPU.",
)
@click.option(
    "--library",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="Default: full TensorRT if it is installed and the target is this machine's GPU, else RTX.",
)
@click.option(
    "--precision",
    metavar="P,...",
    help="fp32, fp16, int8: which of a bundle's ONNX files, default fp32; what a plain file must be.",
)
@click.option(
    "--batch",
    default="1,1,8",
    metavar="MIN,BEST,MAX",
    help="Batch sizes that the engine accepts, and the one it is made for.",
)
@click.option(
    "--workspace", type=AT_LEAST_ONE, metavar="MIB", help="Scratch memory that a layer may use; default: the library's."
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="How long the builder searches for fast kernels; default: the library's.",
)
@click.option(
    "--timing-cache",
    type=FILE,
    metavar="FILE",
    help="Take measured times from this file and add to it: the next build is faster. Full TensorRT only.",
)
@click.option(
    "--sparse/--no-sparse",
    default=None,
    help="Ask for 2:4 sparse kernels; TensorRT does not say if it used any. Default: if the bundle was pruned so.",
)
@click.option("--tf32", is_flag=True, help="Let fp32 layers round factors to 10 bits, as TensorRT does by default.")
@click.option(
    "--out", type=PATH, metavar="DIR", help="For a plain .onnx file: where to write; default: engines/ beside it."
)
def command(
    model: Path,
    target: str,
    precision: str | None,
    batch: str,
    workspace: int | None,
    sparse: bool | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build TensorRT engines.

    From a bundle (or a build's output folder): they are put into it, under engines/<target>/, each with a
    JSON file that says what it is. From a plain .onnx file: they are written to engines/<target>/ beside
    it. An engine that is there already is not built again. One that does not compute in the precision that
    was asked for is an error.

    TensorRT-RTX builds ahead of time, without a GPU, for chosen targets. Full TensorRT builds for
    this machine's GPU: run this on the device itself.
    """
    from prunedeploy_engines.bundle.source import find_model

    targets = comma_list(target, "--target")
    wanted = [] if precision is None else comma_list(precision, "--precision", PRECISIONS)
    options["workspace_bytes"] = None if workspace is None else workspace * MIB
    options["batch"] = whole_numbers_in_order(batch)
    source = find_model(model)
    options["sparse"] = _is_sparse(source, sparse)
    if source.onnx is not None and len(wanted) > 1:
        raise ConfigError("is several, and a file has one precision", "--precision", "name one")
    if source.bundle is None and source.onnx is None:
        raise ConfigError("engines are built from ONNX", model, "give a bundle or a .onnx file")
    if source.bundle is not None and out is not None:
        raise ConfigError("is for a plain .onnx file; engines of a bundle go into it", "--out", "leave it out")
    built: list[EngineFile] = []
    with quiet_stdout():
        # What a file of a bundle is, the file says; of the bundle itself it is asked for by precision.
        ordered: list[str | None] = [*wanted] or ["fp32" if source.onnx is None else None]
        for name, one in itertools.product(ordered, targets):
            if source.bundle is not None:
                bundle = source.load_bundle()  # as the engine before has left it
                path = source.onnx or _model_of(bundle, str(name))
                built.append(_into_bundle(bundle, path, name, one, options))
            elif source.onnx is not None:
                folder = source.onnx.parent / "engines" if out is None else out
                built.append(_build(source.onnx, folder, name, one, options))
    if as_json:
        print_json([asdict(engine) for engine in built])
        return
    rows = [
        [
            str(engine.path),
            engine.target,
            f"{engine.library} {engine.version}",
            engine.precision,
            ", ".join(f"{count} {name}" for name, count in engine.layers.items()),
            size(engine.bytes),
            "was there" if engine.cached else "built",
        ]
        for engine in built
    ]
    print_table(["engine", "target", "library", "precision", "convolutions", "size", ""], rows, left=3)


def _is_sparse(source: ModelSource, given: bool | None) -> bool:
    """What was asked for, or else what the bundle's pruning record says."""
    if given is not None or source.bundle is None:
        return bool(given)
    record = source.load_bundle().manifest.pruning
    return bool(record is not None and (record.model_extra or {}).get("sparse_weights"))


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


def _model_of(bundle: Bundle, precision: str) -> Path:
    """The bundle's ONNX file of a precision, for a GPU where there are two."""
    try:
        return bundle.model_path(precision, "gpu")
    except BundleError as error:
        entries = [entry for entry in bundle.manifest.files.values() if entry.role == "onnx"]
        there = [f"{entry.precision}" + (f" for {entry.target}s" if entry.target else "") for entry in entries]
        raise BundleError(
            f"has no ONNX file in {precision} for a GPU; it has {', '.join(there) or 'none'}",
            where=bundle.path,
            fix=f"build it with `prunedeploy build --precision {','.join(dict.fromkeys(['fp32', precision]))}`",
        ) from error


def _into_bundle(
    bundle: Bundle, onnx: Path, precision: str | None, target: str, options: Mapping[str, Any]
) -> EngineFile:
    """Build beside the bundle, then put plan and sidecar into it: it never holds a file it does not list."""
    from prunedeploy_engines.builder.from_onnx import sidecar_path
    from prunedeploy_engines.bundle.files import BundleFile

    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=f".{bundle.path.name}.", suffix=".tmp") as scratch:
        for name, entry in bundle.manifest.files.items():
            if name.startswith("engines/") and entry.role != "onnx":  # so that none is built again
                copy = Path(scratch) / Path(name).relative_to("engines")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((bundle.path / name).read_bytes())
        engine = _build(onnx, Path(scratch), precision, target, options)
        name = f"engines/{engine.path.relative_to(scratch).as_posix()}"
        if not engine.cached:
            bundle.add_files(
                {
                    name: BundleFile(engine.path, "engine", engine.precision, engine.target),
                    f"{name}.json": BundleFile(sidecar_path(engine.path), "metadata", None, engine.target),
                }
            )
    return replace(engine, path=bundle.path / name)


def _build(onnx: Path, folder: Path, precision: str | None, target: str, options: Mapping[str, Any]) -> EngineFile:
    """Build into ``folder/<target>``; the options are those of `builder.from_onnx`."""
    from prunedeploy_engines.builder.from_onnx import engine_from_onnx
    from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

    if target == "device":
        device = cuda_device()
        if device is None:
            raise RuntimeUnavailableError("there is no GPU to build for", fix="name one, e.g. --target sm86")
        target = device.target
    with _progress(target) as advance:
        return engine_from_onnx(onnx, folder / target, target=target, precision=precision, progress=advance, **options)


@contextmanager
def _progress(target: str) -> Iterator[Any]:
    """Show the phases of a build on a terminal; elsewhere, one line."""
    click.echo(f"building for {target}", err=True)
    if not sys.stderr.isatty():
        yield None
        return

    def advance(phase: str, done: int, total: int) -> None:
        click.echo(f"\r\033[K{phase}: {done}/{total}", nl=False, err=True)

    try:
        yield advance
    finally:
        click.echo("\r\033[K", nl=False, err=True)
