"""The stage after fine-tuning that removes the filters which zeros have made useless."""

from __future__ import annotations

from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy_engines.errors import GateError

NAME = "remove-dead-channels"
TOLERANCE = 1e-5
# Of the other methods, structured leaves no zeros, and to n:m every channel's place in its block matters.
METHODS = ("unstructured", "kernel", "hybrid")
# ONNX Runtime computes a convolution in its fast blocked layout only if its input channels are a multiple of 4: with
# all dead channels gone a network can be slower than before (benchmarks/dead_channels.py).
MULTIPLE = 4


def dead_channel_stage(context: BuildContext, finetuned: StageResult) -> StageResult:
    """Remove what nothing reads and what computes a constant; ``finetuned`` itself where that is not to be done.

    Its ``dead_channels.json`` is the record of `remove_dead_channels`. With nothing dead the network is the same.

    Raises:
        GateError: The smaller network does not compute what the given one computes.
    """
    config = context.config
    if not config.remove_dead_channels or config.method not in METHODS or config.ratio == 0:
        return finetuned

    with context.stage(NAME, 2, {"multiple": MULTIPLE}, {"finetuned": finetuned.digest}) as result:
        if result.work:
            small, record = remove_dead_channels(load_stage_model(finetuned.folder), MULTIPLE)
            if not record.deviation <= TOLERANCE:
                raise GateError(
                    f"the network without dead channels deviates from the one with them by {record.deviation:.2e}",
                    NAME,
                    "build with --set remove_dead_channels=false, and please report it",
                )
            result.write("dead_channels.json", record.as_dict())
            small.save(result.work / "model.cfg", result.work / "model.weights")
    return result
