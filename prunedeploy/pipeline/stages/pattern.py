"""The stage that looks for the n:m pattern in every ONNX file that is deployed."""

from __future__ import annotations

from collections.abc import Sequence

from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.left_out import LeftOut
from prunedeploy.pipeline.stages.export import Artefact
from prunedeploy_engines.errors import GateError
from prunedeploy_export.gates.sparsity import check_onnx_pattern


def pattern_stage(context: BuildContext, prune: StageResult, artefacts: Sequence[Artefact]) -> StageResult | None:
    """The gate of the pattern: ``pattern.json``, one entry per ONNX file, with ``passed`` false where it fails.

    Args:
        context: The build's context.
        prune: The cut; says which layers stayed dense.
        artefacts: The ONNX files of the bundle.

    Returns:
        None for other methods than n:m.
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
                row = {"gate": "pattern", "pattern": record["pattern"], "artefact": artefact.name}
                try:
                    counts = check_onnx_pattern(artefact.file, config.nm.n, config.nm.m, dense=dense)
                except GateError as error:
                    gates.append({**row, "passed": False, "reason": error.what})
                    continue
                patterned = [count for name, count in counts.items() if name not in dense]
                gates.append({
                    **row,
                    "convolutions": len(patterned),
                    "dense_convolutions": len(counts) - len(patterned),
                    "blocks": sum(count.blocks for count in patterned),
                    "broken": sum(count.broken for count in patterned),
                })  # fmt: skip
            result.write("pattern.json", gates)
    return result


def with_the_pattern(
    pattern: StageResult | None, artefacts: Sequence[Artefact]
) -> tuple[list[Artefact], list[LeftOut]]:
    """The files that have the pattern that they are to have, and those that do not."""
    rows = [] if pattern is None else pattern.read("pattern.json")
    failed = {row["artefact"]: row["reason"] for row in rows if row.get("passed") is False}
    left_out = [
        LeftOut(one.name, one.precision, one.target, failed[one.name], "pattern")
        for one in artefacts
        if one.name in failed
    ]
    return [one for one in artefacts if one.name not in failed], left_out
