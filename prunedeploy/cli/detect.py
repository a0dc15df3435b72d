"""``prunedeploy detect``: needs the base install and a runtime only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.failures import USER
from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import FRACTION, PATH, PRECISIONS, RUNTIMES, count_option
from prunedeploy.cli.output import comma_list, print_json, print_table, quiet_stdout
from prunedeploy_engines.errors import DataError

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle
    from prunedeploy_engines.runtimes.runner import Runner

PROVIDERS = ("cpu", "cuda", "tensorrt")


@command_with_examples(
    "detect",
    "prunedeploy detect runs/demo-structured-bn-scale-0.75-s0 photo.jpg",
    "prunedeploy detect bundle/ *.jpg --out drawn --score-threshold 0.3",
    "prunedeploy detect bundle/ photo.jpg --runtime openvino --precision int8",
    "prunedeploy detect bundle/ photo.jpg --json",
)
@click.argument("bundle", type=PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, metavar="DIR", help="Write every image there as <name>.png with its boxes drawn.")
@click.option(
    "--score-threshold",
    type=FRACTION,
    metavar="T",
    help="Show detections with a score above it; default: the operating point that the build chose for the precision.",
)
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime", help="What runs the bundle.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    help="Which of the bundle's models, or of its engines for the GPU that is here.",
)
@click.option(
    "--providers",
    metavar="P,...",
    help=f"Of ONNX Runtime: {', '.join(PROVIDERS)}, in order of preference; default: cpu. None is ever replaced.",
)
@count_option("--threads", "Of a runtime on the CPU; default: one per physical core.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    images: tuple[Path, ...],
    out: Path | None,
    score_threshold: float | None,
    runtime: str,
    precision: str,
    providers: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find objects in images, and draw them.

    BUNDLE is a bundle or a build's output folder. Boxes are printed in pixels of the image. An image that
    cannot be read is named, the others are still done, and the exit code is 2.
    """
    from prunedeploy_engines.bundle.source import find_model

    if providers is not None and runtime != "onnxruntime":
        raise click.UsageError(f"--providers are ONNX Runtime's; --runtime {runtime} has none")
    wanted = ["cpu"] if providers is None else comma_list(providers, "--providers", PROVIDERS)
    rows: list[dict[str, Any]] = []
    with quiet_stdout(), find_model(bundle).load_bundle() as opened:
        names = _drawn_names(images)
        target = _gpu_target() if runtime == "tensorrt" else None
        options: dict[str, Any] = {"threads": threads, "providers": wanted, "target": target}
        threshold = opened.score_threshold(precision) if score_threshold is None else score_threshold
        nms = opened.nms_in_graph(precision)
        if nms is not None and (limit := nms.limit_on(threshold)) is not None:
            click.echo(f"prunedeploy: warning: {limit}", err=True)
        # In this process, which ends after a few images: there is no PyTorch in it, and no second process to wait for.
        with opened.runner(runtime, precision, **options, in_process=True) as runner:
            for image in images:
                drawn = None if out is None else out / names[image]
                rows.append(_detect(opened, runner, image, drawn, threshold))
    for row in rows:
        if "error" in row:
            click.echo(f"prunedeploy: error: {row['error']}", err=True)
    if as_json:
        print_json(rows)
    else:
        _print(rows)
    if any("error" in row for row in rows):
        ctx.exit(USER)


def _gpu_target() -> str | None:
    """What an engine must have been built for to run here; None without a GPU."""
    from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

    device = cuda_device()
    return None if device is None else device.target


def _detect(bundle: Bundle, runner: Runner, image: Path, drawn: Path | None, score_threshold: float) -> dict[str, Any]:
    """Detect in one image; an image that cannot be read gives a row with ``error``."""
    from prunedeploy_engines.detection.images import read_image

    try:
        pixels = read_image(image)
    except DataError as error:
        return {"image": str(image), "error": str(error)}
    found = bundle.detect(pixels, runner=runner, score_threshold=score_threshold)
    row: dict[str, Any] = {
        "image": str(image),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "detections": found.to_rows(),
    }
    if drawn is not None:
        import io

        from PIL import Image

        from prunedeploy_engines.detection.drawing import draw_detections
        from prunedeploy_engines.files import write_atomically

        png = io.BytesIO()
        Image.fromarray(draw_detections(pixels, found)).save(png, "PNG")
        write_atomically(drawn, png.getvalue())
        row["drawn"] = str(drawn)
    return row


def _drawn_names(images: tuple[Path, ...]) -> dict[Path, str]:
    """Name the drawn file of each image; images of the same name from several folders get numbers."""
    names: dict[Path, str] = {}
    for image in dict.fromkeys(images):
        name, number = f"{image.stem}.png", 1
        while name in names.values():
            number += 1
            name = f"{image.stem}-{number}.png"
        names[image] = name
    return names


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if "error" in row:
            continue
        count = len(row["detections"])
        where = f" -> {row['drawn']}" if "drawn" in row else ""
        click.echo(f"{row['image']} ({row['width']} x {row['height']}): {count} detection{'s' * (count != 1)}{where}")
        if count:
            places = ("x_min", "y_min", "width", "height")
            cells = [
                [f"  {found['class_name']}", f"{found['score']:.3f}", *(f"{found[key]:.0f}" for key in places)]
                for found in row["detections"]
            ]
            print_table(["  class", "score", "x", "y", "width", "height"], cells)
