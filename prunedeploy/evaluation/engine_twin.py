"""An exported file as a network that can be attacked: what an adaptive attack on an engine uses.

Images made with the fp32 network do to its int8 file what they happen to do (*transfer*). An attacker who has the file
can follow its own gradients (Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018,
section 4.1: where a part of a network has no gradient, let the backward pass go through a function near to it). The
twin has the file's roundings in the forward pass and looks through them in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.decode import decode
from prunedeploy.models.detector import Detector
from prunedeploy_engines.errors import ConfigError, GateError
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_export import check_detection_parity
from prunedeploy_export.gates.parity import DetectionParity
from prunedeploy_export.gates.suppression import suppressed_on_the_host
from prunedeploy_export.gates.twin import TwinParity, check_twin
from prunedeploy_export.twin.network import OnnxTwin

MATCH_IOU, MATCH_SCORE, MATCH_SHARE = 0.95, 0.02, 0.95
"""Of the gate of detections. On ONNX Runtime they are the same to the last digits where the whole network is int8; one
value on the edge between two steps, and everything behind it differs a little."""


class EngineTwin(Detector):
    """A file's layers with their roundings, and straight-through gradients; see `prunedeploy_export.twin`.

    Args:
        path: An ONNX file of ours, in any precision.
        cfg: Cfg of the network that it was exported from; says what its heads mean.

    Attributes:
        path: The same.
        file: What computes.

    Raises:
        EngineError: The file is not one of ours.
        ConfigError: It is not of that network.
    """

    def __init__(self, path: Path, cfg: DarknetCfg) -> None:
        super().__init__()
        self.cfg, self.path, self.file = cfg, path, OnnxTwin(path)
        shapes = None
        if cfg.input_shape == self.file.input_shape:
            with torch.no_grad():
                shapes = [tuple(head.shape[1:]) for head in self.file(torch.zeros((1, *cfg.input_shape)))]
        if shapes != [head.out_shape for head in cfg.heads]:
            raise ConfigError("is not of the network that is its parent here", path, "give its own parent")

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Detector`."""
        heads: list[Tensor] = self.file(images)
        return heads


@dataclass(frozen=True)
class GatedTwin:
    """A twin that has passed its gates.

    Attributes:
        twin: The twin.
        tensors: What the gate of tensors measured, on ONNX Runtime.
        detections: What the gate of detections measured, with the runner that is attacked.
    """

    twin: EngineTwin
    tensors: TwinParity
    detections: DetectionParity


def gated_twin(
    path: Path,
    cfg: DarknetCfg,
    runner: Runner,
    images: NDArray[np.float32],
    *,
    device: torch.device | None = None,
    score_threshold: float,
    iou_threshold: float,
    threads: int | None = None,
) -> GatedTwin:
    """Make a file's twin and require that it gives what the engine gives.

    Args:
        path: The ONNX file that the engine runs, or was built from.
        cfg: See `EngineTwin`.
        runner: The engine.
        images: ``(N, C, H, W)`` in [0, 1] to compare on.
        device: Where the twin computes.
        score_threshold: Of detections, in [0, 1].
        iou_threshold: Of suppression.
        threads: Threads of ONNX Runtime.

    Raises:
        EngineError: See `EngineTwin`.
        ConfigError: See there; or the file is fp32.
        GateError: The twin computes something else.
    """
    twin, header = EngineTwin(path, cfg), read_onnx_header(path)
    if header.precision == "fp32":
        what = "is fp32: an attack on its twin is the attack on its parent, which --runtime torch measures"
        raise ConfigError(what, path, "choose another precision, or leave --adaptive out")
    twin = twin.to(device)
    tensors = check_twin(twin.file, path, images, threads)
    with torch.no_grad():
        boxes, scores = decode(twin(torch.from_numpy(images).to(device)), twin)
    found = boxes.cpu().numpy(), scores.cpu().numpy()
    reference = runner.infer(images)
    if header.nms is not None:
        found = suppressed_on_the_host(found, header.nms, reference[0].shape[1])
        score_threshold = max(score_threshold, header.nms.score_threshold)
        iou_threshold = header.nms.iou_threshold
    try:
        detections = check_detection_parity(
            reference,
            found,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            min_iou=MATCH_IOU,
            score_tolerance=MATCH_SCORE,
            share=MATCH_SHARE,
        )
    except GateError as error:
        what = f"{runner.runtime} computes something else than the twin that would be attacked: {error.what}"
        raise GateError(what, path, "leave --adaptive out for this runtime") from None
    return GatedTwin(twin, tensors, detections)
