"""The stage that looks for the n:m pattern in every ONNX file that is deployed."""

from __future__ import annotations

from collections.abc import Sequence

from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.stages.export import Artefact
from prunedeploy_export.gates.sparsity import check_onnx_pattern


def pattern_stage(context: BuildContext, prune: StageResult, artefacts: Sequence[Artefact]) -> StageResult | None:
    """Pass the gate of the pattern: ``pattern.json``, one entry per ONNX file.

    Args:
        context: The build's context.
        prune: The cut; says which layers stayed dense.
        artefacts: The ONNX files of the bundle.

    Returns:
        None for other methods than n:m.

    Raises:
        GateError: A file does not have the pattern.
    """
    config = context.config
    if config.method != "nm":
        return None
    inputs = {artefact.name: artefact.stage.digest for artefact in artefacts}
    with context.stage("pattern", 1, config.nm.model_dump(), {**inputs, "prune": prune.digest}) as result:
        if result.work:
            record = prune.read("pruning.json")
            dense = {f"layer{row['layer']}" for row in record["dense_layers"]}
            gates = []
            for artefact in artefacts:
                counts = check_onnx_pattern(artefact.file, config.nm.n, config.nm.m, dense=dense)
                patterned = [count for name, count in counts.items() if name not in dense]
                gates.append({
                    "gate": "pattern",
                    "pattern": record["pattern"],
                    "artefact": artefact.name,
                    "convolutions": len(patterned),
                    "dense_convolutions": len(counts) - len(patterned),
                    "blocks": sum(count.blocks for count in patterned),
                    "broken": sum(count.broken for count in patterned),
                })  # fmt: skip
            result.write("pattern.json", gates)
    return result
