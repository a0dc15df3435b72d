"""``prunedeploy import``: the reading is `prunedeploy.importing`."""

from __future__ import annotations

from pathlib import Path

import click

from prunedeploy.cli.group import command_with_examples
from prunedeploy.cli.options import PATH, count_option
from prunedeploy.cli.output import amount, print_json, quiet_stdout
from prunedeploy_engines.errors import ConfigError


@command_with_examples(
    "import",
    "prunedeploy import best.onnx mine",
    "prunedeploy import best.onnx mine --names names.txt --input-size 640",
    "prunedeploy import best.onnx mine --data photos/",
    "prunedeploy evaluate mine/model.cfg --data DIR",
)
@click.argument("path", metavar="ONNX", type=PATH)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--names", type=PATH, metavar="F", help="Class names, one per line; default: those in the file.")
@click.option(
    "--input-size",
    metavar="W[xH]",
    help="Size of the network's input in pixels, one side or both; default: the file's, which may leave it open.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="DIR",
    help="Put batch normalisation back, with statistics of this data set's training images.",
)
@count_option("--images", "So many of them.", default=64)
@click.option("--overwrite", is_flag=True, help="Replace what is in DIR.")
def command(
    path: Path,
    folder: Path,
    names: Path | None,
    input_size: str | None,
    data: Path | None,
    images: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make cfg, weights and class names of a detector that another program exported to ONNX.

    Read are YOLOv5, v5u, v7, v8, 11 and YOLOX, in fp32, with their decoding and without suppression. DIR gets
    model.cfg, model.weights and model.names, which every other command takes. The network computes what the file
    computes; what no section stands for is refused, by the name of the node.

    Exported files have batch normalisation folded away. With --data it is put back, which changes nothing of what the
    network computes: give it if you are going to train or prune the network.
    """
    from prunedeploy.config.blocks import as_input_size
    from prunedeploy.importing import import_onnx, named, write_imported

    size = None
    if input_size is not None:
        try:
            width, height = map(int, str(as_input_size(input_size)).split("x"))
        except ValueError:
            raise ConfigError(f"{input_size!r} is no size", "--input-size", "give e.g. 640 or 640x480") from None
        size = height, width
    with quiet_stdout():
        found = named(import_onnx(path, size), names)
        if data is not None:
            from prunedeploy.pipeline.imported import with_normalisation_of

            found = with_normalisation_of(found, data, images)
        write_imported(found, folder, overwrite=overwrite)
    cfg = found.model.cfg
    document = {
        "folder": folder,
        "input": {"width": cfg.input_size[1], "height": cfg.input_size[0]},
        "heads": [head.kind for head in cfg.heads],
        "classes": cfg.classes,
        "class_names": found.class_names,
        "layers": len(cfg.layers),
        "parameters": found.model.parameter_count(),
        "macs": cfg.macs,
        "said": list(found.said),
    }
    if as_json:
        print_json(document)
        return
    height, width = cfg.input_size
    kinds = ", ".join(dict.fromkeys(head.kind for head in cfg.heads))
    click.echo(
        f"{folder}: input {width}x{height}, {len(cfg.heads)} heads ({kinds}), {cfg.classes} classes, "
        f"{amount(found.model.parameter_count())} parameters, {amount(cfg.macs)} MACs"
    )
    for line in found.said:
        click.echo(f"note: {line}")
