"""The stage that looks for the n:m pattern in every ONNX file of the pruned network."""

from __future__ import annotations

import json
from pathlib import Path

from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy_export.sparsity import check_onnx_pattern


def pattern_stage(context: BuildContext, prune: StageResult, *exports: StageResult) -> StageResult | None:
    """Pass the gate of the pattern: ``pattern.json``, one entry per ONNX file.

    Args:
        context: Of the build.
        prune: The cut; says which layers stayed dense.
        exports: ONNX files of the pruned network.

    Returns:
        None for other methods than n:m.

    Raises:
        GateError: A file does not have the pattern.
    """
    config = context.config
    if config.method != "nm":
        return None

    def compute(work: Path, _: Path) -> None:
        record = json.loads((prune.folder / "pruning.json").read_text())
        dense = {f"layer{row['layer']}" for row in record["dense_layers"]}
        gates = []
        for path in sorted(path for export in exports for path in export.folder.glob("*.onnx")):
            counts = check_onnx_pattern(path, config.nm.n, config.nm.m, dense=dense)
            patterned = [count for name, count in counts.items() if name not in dense]
            gates.append(
                {
                    "gate": "pattern",
                    "pattern": record["pattern"],
                    "artefact": path.name,
                    "convolutions": len(patterned),
                    "dense_convolutions": len(counts) - len(patterned),
                    "blocks": sum(count.blocks for count in patterned),
                    "broken": sum(count.broken for count in patterned),
                }
            )
        (work / "pattern.json").write_text(json.dumps(gates, indent=2))

    inputs = {f"onnx-{number}": export.digest for number, export in enumerate(exports)}
    return context.run("pattern", 1, config.nm.model_dump(), {**inputs, "prune": prune.digest}, compute)
