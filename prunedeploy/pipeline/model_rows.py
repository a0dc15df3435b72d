"""The rows ``models`` of ``results.json``: the three networks, and how much faster the pruned one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunedeploy.evaluation import figure_name
from prunedeploy.pipeline.context import StageResult, load_stage_model
from prunedeploy.pipeline.stages.corruptions import mean_figures
from prunedeploy.pipeline.stages.export import ENGINE
from prunedeploy.pipeline.stages.robustness import FILE as ROBUSTNESS
from prunedeploy.pruning.subnet import count_parameters

MEANS = (("map", ""), ("map50", ""), ("map", "_conf50"))
"""Before and after an attack's name in the names of figures."""


def model_row(
    row: str,
    network: StageResult,
    export: StageResult,
    evaluation: StageResult,
    latency: Mapping[str, Any],
    robustness: StageResult | None = None,
    corruptions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe one network.

    Args:
        row: ``original``, ``robust`` or ``pruned``.
        network: Stage that made it.
        export: Its ONNX file in fp32.
        evaluation: Its mAP.
        latency: ``latency.json`` of the build.
        robustness: What other attacks do to it; its figures are added if they were measured on the same images.
        corruptions: ``corruptions.json`` of the network; its means are added on the same condition.
    """
    model = load_stage_model(network.folder)
    figures = evaluation.read("evaluation.json")
    own = {key: value for key, value in figures["torch"].items() if key != "transfer"}
    if robustness is not None:
        more = robustness.read(ROBUSTNESS)
        if more["images"] == own["n_images"]:
            names = {figure_name(attack["name"]) for attack in more["attacks"]}
            keys = [f"{mean}_{name}{ending}" for mean, ending in MEANS for name in names]
            own |= {key: more["figures"][key] for key in keys}
            own["intervals"] = {**{key: more["intervals"][key] for key in keys}, **own["intervals"]}
    times: dict[str, Any] = dict.fromkeys(("onnxruntime", "openvino", "torch", "tensorrt"))
    for name, summary in latency["rows"].items():
        of, *engine_name, batch = name.split("|")
        runtime = engine_name[0]
        # An engine of more than the runtime's name is another file than the plain fp32 one.
        if of == row and len(engine_name) == 1 and (times[runtime] is None or batch == "1"):
            times[runtime] = summary
    weights = [model.conv(layer.index).weight for layer in model.cfg.convolutions]
    return {
        "name": row,
        "params": count_parameters(model),
        "filters": sum(layer.out_channels for layer in model.cfg.convolutions),
        "zero_weights": sum(int((weight == 0).sum()) for weight in weights),
        "weights": sum(weight.numel() for weight in weights),
        "macs": model.cfg.macs,
        "onnx_bytes": (export.folder / "model.onnx").stat().st_size,
        **own,
        **mean_figures(corruptions, "torch", own["n_images"]),
        "map_clean_onnxruntime": figures[ENGINE]["map_clean"],
        "map_pgd_transfer_onnxruntime": figures[ENGINE]["map_pgd"],
        "latency_ms": times,
    }


def speedup(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Median of the original over the median of the pruned network, by runtime."""
    dense, pruned = rows["original"]["latency_ms"], rows["pruned"]["latency_ms"]
    return {name: dense[name]["p50"] / pruned[name]["p50"] for name in dense if dense[name] and pruned[name]}
