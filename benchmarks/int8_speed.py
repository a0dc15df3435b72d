"""YOLOv3 at 416, fp32 against int8, dense against pruned, ONNX Runtime against OpenVINO; engine time on a CPU.

    python benchmarks/int8_speed.py [--seconds 10] [--threads 2] [--ratios 0,0.75] [--json F]

A process per row, interleaved in rounds. Random weights: speed does not depend on them, so mAP means nothing here.
Every row says what its convolutions were really computed in; "auto" lets OpenVINO choose, which takes bf16 where the
CPU has it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from _common import say_machine, scenes
from _yolov3_cuts import Cuts

from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.machine.environment import machine_info
from prunedeploy_engines.runtimes.opening import unavailable_reason

MULTIPLES = (8, 16)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratios", default="0,0.75")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    say_machine()
    runtimes: dict[str, dict[str, object]] = {"ONNX Runtime": {"runtime": "onnxruntime"}}
    if (reason := unavailable_reason("openvino")) is None:
        runtimes["OpenVINO"] = {"runtime": "openvino", "inference_precision": "f32"}
        runtimes["OpenVINO, auto"] = {"runtime": "openvino", "inference_precision": None}
    else:
        print(f"without OpenVINO: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        cuts = Cuts(Path(folder))
        images = Path(folder) / "images.npy"
        np.save(images, to_uint8_input(scenes(4, 416)[0].numpy()))
        specs: dict[str, dict[str, object]] = {}
        for ratio in map(float, arguments.ratios.split(",")):
            for multiple in MULTIPLES if ratio else MULTIPLES[:1]:
                network = "dense" if not ratio else f"{100 * ratio:g} %, multiples of {multiple}"
                for precision, cut in (("fp32", cuts.fp32(ratio, multiple)), ("int8", cuts.int8(ratio, multiple))):
                    for runtime, options in runtimes.items():
                        specs[f"{network} | {precision} | {runtime}"] = {
                            **options,
                            "path": str(cut.path),
                            "threads": arguments.threads,
                            "images": str(images),
                        }
        measured = bench_models(specs, seconds=arguments.seconds, min_calls=30)
    base = measured["dense | fp32 | ONNX Runtime"].summary()["p50"]
    heading = f"{'p50 ms':>8} {'p90':>8} {'p99':>8} {'n':>5} {'CV':>5} {'faster':>7}  computed in"
    print(f"{'network | file | runtime':48} {heading}")
    rows = {}
    for name, result in measured.items():
        row = rows[name] = result.summary()
        shares = (result.describe.get("computes_in") or {}).items()
        figures = f"{row['p50']:8.2f} {row['p90']:8.2f} {row['p99']:8.2f} {row['n']:5d} {row['cv']:5.2f}"
        computed = ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in shares)
        print(f"{name:48} {figures} {base / row['p50']:7.2f}  {computed}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": rows, "machine": machine_info()}, indent=1))


if __name__ == "__main__":
    main()
