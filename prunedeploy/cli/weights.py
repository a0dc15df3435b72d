"""``prunedeploy weights``."""

from __future__ import annotations

from pathlib import Path

import click

from prunedeploy.cli.group import Session, command_with_examples
from prunedeploy.cli.options import PATH
from prunedeploy.cli.output import print_json, quiet_stdout, size


@command_with_examples(
    "weights",
    "prunedeploy weights yolov3-tiny weights",
    "prunedeploy weights yolov4.conv.137 weights",
    "prunedeploy weights yolov7-tiny weights --sha256 HEX",
)
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--mirror", metavar="URL", help="Fetch URL/FILE instead of the author's file.")
@click.option("--sha256", metavar="HEX", help="What the content must have; instead of the checksum that is known.")
@click.pass_obj
def command(
    session: Session, /, name: str, folder: Path, mirror: str | None, sha256: str | None, as_json: bool
) -> None:
    """Download the public Darknet weights of a network into DIR.

    NAME is yolov2, yolov2-tiny, yolov2-voc, yolov2-tiny-voc, yolov3, yolov3-tiny, yolov3-spp, yolov4, yolov4-tiny,
    yolov4-csp, yolov4x-mish, yolov7, yolov7-tiny, yolov7x, or the first layers to train from:
    darknet19_448.conv.23, darknet53.conv.74, yolov3-tiny.conv.11, yolov3-tiny.conv.15, yolov4.conv.137,
    yolov4-tiny.conv.29, yolov4-csp.conv.142, yolov4x-mish.conv.166, yolov7.conv.132, yolov7-tiny.conv.87.

    After an interruption, the same command resumes. The file gets its name only when its size and checksum are
    right; one that is there and right is not fetched again. Where nobody has published a checksum, a line says that
    the file is unverified.
    """
    from prunedeploy.pipeline.progress import Progress
    from prunedeploy.public_weights import fetch_file, weights_of
    from prunedeploy_engines.files import file_sha256

    known = weights_of(name, sha256)
    session.resumes_from(folder, f"{known.fetched.name}.part")
    with quiet_stdout(), Progress().task(f"{known.fetched.name}, bytes", known.fetched.size) as advance:
        path = fetch_file(known, folder, base_url=mirror, progress=advance)
        found = known.sha256 or file_sha256(path)
    if as_json:
        print_json({"path": path, "bytes": known.size, "sha256": found, "checked_by": known.checked_by})
        return
    said = f"{path}: {size(known.size)}, SHA-256 {found}"
    if known.checked_by == "sha1":
        said += f"; checked by SHA-1 {known.sha1}, as {known.source.partition(':')[0]} states it"
    elif known.checked_by is None:
        said += "; unverified: nobody has published its checksum, only its size was checked"
    click.echo(said)
