"""``prunedeploy inspect``: what is found is put together by `prunedeploy.pipeline.inspection`."""

from __future__ import annotations

from pathlib import Path

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.inspect_output import print_document
from prunedeploy.cli.options import PATH
from prunedeploy.cli.output import print_json, quiet_stdout


@command_with_examples(
    "inspect",
    "prunedeploy inspect yolov3-tiny.cfg",
    "prunedeploy inspect runs/demo-structured-bn-scale-0.75-s0",
    "prunedeploy inspect bundle/model.onnx --json",
)
@click.argument("path", metavar="CFG|BUNDLE|ONNX", type=PATH)
def command(path: Path, as_json: bool) -> None:
    """Show what a cfg, a bundle or an ONNX file holds.

    Of a Darknet cfg: its layers with shapes, weights and MACs, what can be pruned and what goes with it, what its
    options mean here and which are ignored. Of a bundle or a build's output folder: its files with the gates they
    passed, thresholds, classes, and widths before and after. Of an ONNX file: inputs, outputs, operators,
    parameters, MACs, precision and metadata.

    Nothing is run. A bundle needs the base install only, a cfg and an ONNX file the extra train.
    """
    from prunedeploy.pipeline.inspection.document import inspect

    with quiet_stdout():
        document = inspect(path)
    if as_json:
        print_json(document)
    else:
        print_document(document)
