"""Section ``upsample``: Resize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Upsample


def add_upsample(graph: GraphBuilder, layer: Upsample, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    factor = layer.stride
    scales = graph.constant(f"scales_{factor}", np.array([1, 1, factor, factor], dtype=np.float32))
    # Asymmetric and floor: output cell i reads input cell floor(i / factor), as Darknet and PyTorch do.
    return graph.node(
        "Resize",
        [inputs[0].name, "", scales],
        f"layer{layer.index}",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
