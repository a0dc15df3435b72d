"""What each section of a cfg becomes, one file per kind; `WRITERS` names them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.sections.attention import add_attention
from prunedeploy_export.graph.sections.avgpool import add_avgpool
from prunedeploy_export.graph.sections.convolutional import add_convolutional
from prunedeploy_export.graph.sections.local_avgpool import add_local_avgpool
from prunedeploy_export.graph.sections.maxpool import add_maxpool
from prunedeploy_export.graph.sections.passing_on import add_nothing
from prunedeploy_export.graph.sections.product import add_product
from prunedeploy_export.graph.sections.rearranging import add_rearranging
from prunedeploy_export.graph.sections.route import add_route
from prunedeploy_export.graph.sections.shortcut import add_shortcut
from prunedeploy_export.graph.sections.upsample import add_upsample

Writer = Callable[[GraphBuilder, Any, Sequence[Value], Mapping[str, Tensor]], str]
"""``add_kind(graph, layer, inputs, weights) -> name``: appends a layer's nodes, the last of them named
``layer{index}``, and returns its output's name; ``weights`` are the layer's own by name, normalisation folded in."""

WRITERS: Mapping[str, Writer] = {
    "convolutional": add_convolutional,
    "maxpool": add_maxpool,
    "avgpool": add_avgpool,
    "local_avgpool": add_local_avgpool,
    "upsample": add_upsample,
    "route": add_route,
    "shortcut": add_shortcut,
    "sam": add_product,
    "scale_channels": add_product,
    "reorg": add_rearranging,
    "reorg3d": add_rearranging,
    "dropout": add_nothing,
    "cost": add_nothing,
    "contrastive": add_nothing,
    "attention": add_attention,
}
"""By the section's name in a cfg; heads are in `prunedeploy_export.graph.heads`."""

__all__ = ["WRITERS", "Writer"]
