"""``prunedeploy weights``."""

from __future__ import annotations

from pathlib import Path

import click

from prunedeploy.cli.group import Session, command_with_examples
from prunedeploy.cli.options import PATH
from prunedeploy.cli.output import print_json, quiet_stdout, size


@command_with_examples("weights", "prunedeploy weights yolov3-tiny weights")
@click.argument("name", metavar="yolov3|yolov3-tiny|yolov3-spp")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--mirror", metavar="URL", help="Fetch URL/NAME.weights instead of the author's file.")
@click.pass_obj
def command(session: Session, /, name: str, folder: Path, mirror: str | None, as_json: bool) -> None:
    """Download the public Darknet weights of a network into DIR.

    After an interruption, the same command resumes. The file gets its name only when its SHA-256 is
    right; one that is there and right is not fetched again. Sizes: yolov3 248 MB, yolov3-tiny 35 MB,
    yolov3-spp 252 MB.
    """
    from prunedeploy.pipeline.progress import Progress
    from prunedeploy.public_weights import fetch_file, weights_of

    known = weights_of(name)
    session.resumes_from(folder, f"{known.name}.part")
    with quiet_stdout(), Progress().task(f"{name}.weights, bytes", known.size) as advance:
        path = fetch_file(known, folder, base_url=mirror, progress=advance)
    if as_json:
        print_json({"path": path, "bytes": known.size, "sha256": known.sha256})
    else:
        click.echo(f"{path}: {size(known.size)}, SHA-256 {known.sha256}")
