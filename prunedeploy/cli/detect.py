"""``prunedeploy detect``: needs the base install and a runtime only, for videos also the extra ``video``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from prunedeploy.cli.detect_images import detect_images, image_paths, print_rows
from prunedeploy.cli.detect_video import detect_and_print
from prunedeploy.cli.failures import USER
from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import FRACTION, PATH, PRECISIONS, RUNTIMES, count_option
from prunedeploy.cli.output import comma_list, print_json, quiet_stdout

PROVIDERS = ("cpu", "cuda", "tensorrt")


@command_with_examples(
    "detect",
    "prunedeploy detect runs/demo-structured-bn-scale-0.75-s0 photo.jpg",
    "prunedeploy detect blood-cells smear.jpg --precision int8",
    "prunedeploy detect bundle/ *.jpg --out drawn --score-threshold 0.3",
    "prunedeploy detect bundle/ photos/ --json > found.json",
    "prunedeploy detect bundle/ photo.jpg --runtime openvino --precision int8",
    "prunedeploy detect bundle/ street.mp4 --out street-boxes.mp4",
    "prunedeploy detect bundle/ street.mp4 --every 5 --json > found.jsonl",
    "prunedeploy detect bundle/ camera:0 --json     # until Ctrl-C",
)
@click.argument("bundle", type=PATH)
@click.argument("sources", metavar="IMAGE|FOLDER...|VIDEO|camera:N", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    metavar="DIR|FILE.mp4",
    help="Draw the boxes: every image into DIR as <name>.png, a video into FILE.mp4 or DIR/<name>.mp4.",
)
@click.option(
    "--score-threshold",
    type=FRACTION,
    metavar="T",
    help="Show detections with a score above it; default: the operating point that the build chose for the precision.",
)
@count_option("--every", "For a video or camera: look only at every Nth frame.", default=1)
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime", help="What runs the bundle.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    help="Which of the bundle's models, or of its engines for this machine's GPU.",
)
@click.option(
    "--providers",
    metavar="P,...",
    help=f"ONNX Runtime's providers: {', '.join(PROVIDERS)}, in this order; default: cpu. None is ever replaced.",
)
@count_option("--threads", "Threads of a runtime on the CPU; default: one per physical core.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    sources: tuple[Path, ...],
    out: Path | None,
    score_threshold: float | None,
    every: int,
    runtime: str,
    precision: str,
    providers: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find objects in images, in a video, or in what a camera sees.

    BUNDLE is a bundle, a build's output folder, or blood-cells, which comes with the package. Give it images, folders
    of images, a video, or a camera. Boxes are in pixels of the image. An image that cannot be read is named, the
    others are still done, and the exit code is 2.

    For images, --json prints one list when all are done; for a video or camera, one line per frame as soon as the frame
    is done. At the end the speed is printed, in frames per second, with decoding, drawing and encoding included.

    A camera runs until you press Ctrl-C; frames that arrive while the network is busy are skipped. Videos and cameras
    need PyAV: pip install 'prunedeploy[video]'.
    """
    from prunedeploy_engines.bundle.source import find_model
    from prunedeploy_engines.video.source import VideoSource, is_video

    if providers is not None and runtime != "onnxruntime":
        raise click.UsageError(f"--providers are ONNX Runtime's; --runtime {runtime} has none")
    wanted = ["cpu"] if providers is None else comma_list(providers, "--providers", PROVIDERS)
    videos = [source for source in sources if is_video(source) and not source.is_dir()]
    if videos and len(sources) > 1:
        raise click.UsageError(f"{videos[0]} is a video: give one video or camera at a time, and no images with it")
    if every > 1 and not videos:
        raise click.UsageError("--every is for videos and cameras")
    if out is not None and not videos and is_video(out):
        raise click.UsageError(f"--out {out} is the name of a video; images are written into a folder")
    images = [] if videos else image_paths(sources)
    with quiet_stdout() as stdout, find_model(bundle).load_bundle() as opened:
        target = _gpu_target() if runtime == "tensorrt" else None
        options: dict[str, Any] = {"threads": threads, "providers": wanted, "target": target}
        threshold = opened.score_threshold(precision) if score_threshold is None else score_threshold
        nms = opened.nms_in_graph(precision)
        if nms is not None and (limit := nms.limit_on(threshold)) is not None:
            click.echo(f"prunedeploy: warning: {limit}", err=True)
        # In this process, which ends after a few images: there is no PyTorch in it, and no second process to wait for.
        with opened.runner(runtime, precision, **options, in_process=True) as runner:
            detect = partial(opened.detect, runner=runner, score_threshold=threshold)
            if videos:
                with VideoSource(videos[0], every) as source:
                    detect_and_print(source, videos[0], detect, out, stdout, as_json=as_json)
                return
            rows = detect_images(images, detect, out, say_speed=any(source.is_dir() for source in sources))
    for row in rows:
        if "error" in row:
            click.echo(f"prunedeploy: error: {row['error']}", err=True)
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
    if any("error" in row for row in rows):
        ctx.exit(USER)


def _gpu_target() -> str | None:
    """What an engine must have been built for to run here; None without a GPU."""
    from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

    device = cuda_device()
    return None if device is None else device.target
