"""What batch normalisation that is put back into an imported network is worth: the same training with and without it.

    python benchmarks/normalisation.py best.onnx [--data bccd] [--config yolov8n] [--steps 300] [--robust-steps 0]
        [--seeds 0,1] [--images 72] [--set KEY=VALUE] [--store runs/.store] [--lively]

The network is that of a build of the configuration: heads re-made for the data's classes, ``--steps`` steps on clean
images, then ``--robust-steps`` against the configuration's attack. Random weights as exported die out on their way to
the output, and neither network learns from there; ``--lively`` gives the file random ones that do not. Both networks
compute the same before the first step and see the same images. Printed is a Markdown table: loss of the last tenth of
the clean steps, and mAP on test images, clean and under the configuration's attack. Trainings and measurements are
stages of the store: a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

import onnx  # noqa: E402
from _common import ROOT, say_machine  # noqa: E402

from prunedeploy.config import load_config  # noqa: E402
from prunedeploy.pipeline.context import StageResult, open_context  # noqa: E402
from prunedeploy.pipeline.imported import with_imported_network  # noqa: E402
from prunedeploy.pipeline.progress import Progress  # noqa: E402
from prunedeploy.pipeline.stages.robustness import FILE, robustness_stage  # noqa: E402
from prunedeploy.pipeline.stages.train import original_stage, pretrain_stage  # noqa: E402
from prunedeploy.pipeline.store.store import Store  # noqa: E402

sys.path.append(str(ROOT / "tests"))
from importing.exported import lively  # noqa: E402

FIGURES = ("map50_clean", "map_clean", "map50_pgd", "map_pgd")


def main() -> None:
    """Print a row per seed and network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--data", type=Path, default=Path("bccd"))
    parser.add_argument("--config", default="yolov8n")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--robust-steps", type=int, default=0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, default=72, help="test images that are measured")
    parser.add_argument("--set", action="append", default=[], help="for both networks, e.g. pretrain.batch_size=16")
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--lively", action="store_true", help="random weights instead of the file's")
    arguments = parser.parse_args()
    say_machine()
    rows = []
    if arguments.lively:
        model = lively(onnx.load(arguments.onnx))
        arguments.onnx = arguments.store.parent / f"lively-{arguments.onnx.name}"
        arguments.onnx.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, arguments.onnx)
    for seed in map(int, arguments.seeds.split(",")):
        for normalised in (True, False):
            sets = [*arguments.set, "pretrain.from=given", f"pretrain.clean_steps={arguments.steps}", f"seed={seed}"]
            sets += [f"pretrain.steps={arguments.robust_steps}", f"model.normalisation={str(normalised).lower()}"]
            sets += ["robustness={attacks: [pgd], error_kinds: false}", f"robustness.images={arguments.images}"]
            sets += ["scores.name=scaled"]  # not read, and goes with either network
            options = {"cfg": str(arguments.onnx), "data": str(arguments.data)}
            config = with_imported_network(load_config(arguments.config, sets, options), arguments.store)
            with Store(arguments.store) as store:
                context = open_context(config, store, Progress())
                if not context.network.is_transferred:
                    parser.error("the data has the network's own classes, so nothing is trained on clean images")
                original = original_stage(context)
                trained = pretrain_stage(context, original)
                figures = robustness_stage(context, "robust", trained, None).read(FILE)["figures"]
            found = [figures[name] for name in FIGURES]
            values = [seed, "put back" if normalised else "none", final_loss(original), original.seconds, *found]
            rows.append(values)
    print(f"{arguments.steps} steps on clean images, then {arguments.robust_steps} against PGD:\n")
    print("| seed | normalisation | loss at the end | s, clean | mAP50 | mAP | mAP50 PGD | mAP PGD |")
    print("|---" * 8 + "|")
    for seed, name, loss, seconds, *found in rows:
        shown = " | ".join("-" if value is None else f"{value:.4f}" for value in found)
        print(f"| {seed} | {name} | {loss:.3f} | {seconds:.0f} | {shown} |")


def final_loss(original: StageResult) -> float:
    """Mean loss of the last tenth of the clean steps."""
    losses = [json.loads(line)["loss"] for line in (original.folder / "log.jsonl").read_text().splitlines()]
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


if __name__ == "__main__":
    main()
