"""From an exported ONNX detector to a network of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunedeploy.importing.class_names import names_in
from prunedeploy.importing.decoding import Decoding, HeadPlan, differs_by, find_decoding, plan_heads
from prunedeploy.importing.onnx_graph import OnnxGraph, read_graph
from prunedeploy.importing.trunk import Floats, Trunk
from prunedeploy.models.cfg_rewriting import with_input_size
from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import parse_cfg
from prunedeploy.models.sections import Head
from prunedeploy_engines.errors import DarknetFormatError, OnnxImportError

_DECODING_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class ImportedDetector:
    """A network that was read from an ONNX file.

    Attributes:
        model: The network, in evaluation mode.
        class_names: What the file calls its classes, in order; None if it does not say.
        said: What a user has to know about it, a line each.
    """

    model: Darknet
    class_names: list[str] | None
    said: tuple[str, ...]


def import_onnx(path: Path, input_size: tuple[int, int] | None = None) -> ImportedDetector:
    """Read an exported detector.

    The network computes what the file computes. Its input is RGB in [0, 1] whatever the file takes.

    Args:
        path: The file.
        input_size: ``(height, width)`` of the network; None: what the file says, which has to say it then.

    Raises:
        OnnxImportError: It cannot be read; the message names what stands in the way.
        DarknetFormatError: The network cannot have that size.
    """
    graph = read_graph(path, input_size)
    decoding = find_decoding(graph)
    plan = plan_heads(decoding)
    pixels, said = _pixels(graph, plan)
    trunk = Trunk(graph, decoding, plan, pixels)
    channels, height, width = graph.input_shape
    header = f"# imported from {path.name}\n[net]\nwidth={width}\nheight={height}\nchannels={channels}\n"
    try:
        cfg = parse_cfg("\n".join([header, *trunk.cfg.lines]), path.name)
    except DarknetFormatError as error:
        raise OnnxImportError(f"cannot be written as a cfg ({error.what})", path, "give another network") from error
    heads = [cfg.layers[index] for index in trunk.head_layers]
    _check_decoding(decoding, plan, [head for head in heads if isinstance(head, Head)], graph)
    if input_size is not None and input_size != cfg.input_size:
        cfg = with_input_size(cfg, input_size)
    model = Darknet(cfg).eval()
    model.load_parameters(trunk.cfg.weights)
    if cfg.not_for_darknet is not None:
        said = (*said, cfg.not_for_darknet)
    if not plan.decoded:
        said = (*said, "the file leaves decoding to the program that runs it; here it is part of the network")
    return ImportedDetector(model, names_in(graph.metadata, cfg.classes), said)


def _pixels(graph: OnnxGraph, plan: HeadPlan) -> tuple[tuple[Floats, list[int]] | None, tuple[str, ...]]:
    """What the first convolution makes of pixels; YOLOX alone is trained on BGR from 0 to 255."""
    channels = graph.input_shape[0]
    if plan.kind != "yolox":
        return None, ()
    said = "YOLOX takes BGR from 0 to 255; the first convolution was changed to RGB in [0, 1], as everything here"
    return (np.full(channels, 255.0, np.float32), list(range(channels))[::-1]), (said,)


def _check_decoding(decoding: Decoding, plan: HeadPlan, heads: list[Head], graph: OnnxGraph) -> None:
    off = differs_by(decoding, plan, heads)
    if not off <= _DECODING_TOLERANCE:
        what = f"ends like a [{plan.kind}] head, but its output is {off:.1g} from what such a head gives"
        raise OnnxImportError(what, graph.path, "export it with plain decoding: centre and size in pixels")
