"""An exported file as a network that can be attacked: what an adaptive attack on an engine uses.

Images made with the fp32 network do to its int8 file what they happen to do (*transfer*). An attacker who has the file
can follow its own gradients (Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018,
section 4.1: where a part of a network has no gradient, let the backward pass go through a function near to it). The
twin has the file's roundings in the forward pass and looks through them in the backward pass.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

SAME = {"min_iou": 0.99, "score_tolerance": 1e-3}
"""Of detections from the engine's own quantised tensors."""
SAME_HALF = {"min_iou": 0.95, "score_tolerance": 1e-2}
"""Of detections of a file with half precision."""
NEAR = {"min_iou": 0.9, "score_tolerance": 0.05, "share": 0.95}
"""Of detections from the images on. Where the whole network is int8 on ONNX Runtime they are the same to the last
digits; elsewhere one value on the edge between two steps moves everything behind it a little."""


class EngineTwin(Detector):
    """A file's layers with their roundings, and straight-through gradients; see `prunedeploy_export.twin`.

    Args:
        path: An ONNX file of ours, in any precision.
        cfg: Cfg of the network that it was exported from; says what its heads mean.
        file: What computes, if it is read already.

    Attributes:
        path: The same.
        file: What computes.

    Raises:
        EngineError: The file is not one of ours.
        ConfigError: It is not of that network.
    """

    def __init__(self, path: Path, cfg: DarknetCfg, file: OnnxTwin | None = None) -> None:
        super().__init__()
        self.cfg, self.path, self.file = cfg, path, OnnxTwin(path) if file is None else file
        shapes = [cfg.input_shape, *(head.out_shape for head in cfg.heads)]
        if shapes != [self.file.input_shape, *self.file.head_shapes]:
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
        same: What the gate of detections measured, from ONNX Runtime's quantised tensors; None on another runtime.
        near: What it measured from the images on.
    """

    twin: EngineTwin
    tensors: TwinParity
    same: DetectionParity | None
    near: DetectionParity

    def as_dict(self) -> dict[str, Any]:
        """What was measured, as JSON values."""
        same = None if self.same is None else asdict(self.same)
        return {"tensors": asdict(self.tensors), "same_inputs": same, "same_images": asdict(self.near)}


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
    tensors, heads = check_twin(twin.file, path, images, threads)
    reference = runner.infer(images)
    score_threshold = max(score_threshold, 0.0 if header.nms is None else header.nms.score_threshold)
    iou_threshold = iou_threshold if header.nms is None else header.nms.iou_threshold

    def checked(heads: list[Tensor], limits: dict[str, float]) -> DetectionParity:
        boxes, scores = decode(heads, twin)
        found = boxes.cpu().numpy(), scores.cpu().numpy()
        if header.nms is not None:
            bound = int(header.metadata["nms_candidates"])
            found = suppressed_on_the_host(found, header.nms, reference[0].shape[1], bound)
        thresholds = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
        try:
            return check_detection_parity(reference, found, **thresholds, **limits)
        except GateError as error:
            what = f"{runner.runtime} computes something else than the twin that would be attacked: {error.what}"
            raise GateError(what, path, "leave --adaptive out for this runtime") from None

    with torch.no_grad():
        strict = SAME_HALF if header.precision == "fp16" else SAME
        same = checked(heads, strict) if runner.runtime == "onnxruntime" else None
        near = checked(twin(torch.from_numpy(images).to(device)), NEAR)
    return GatedTwin(twin, tensors, same, near)
