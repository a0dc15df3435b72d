"""What attacks leave of a network's mAP: the paper's PGD, longer PGD, PGD on single objectives, and the ensemble.

    python benchmarks/attack_suite.py MODEL.cfg MODEL.weights [--images 100] [--budget standard] [--data demo] [--out F]

One row per attack: mAP on the first test images, network passes per image, seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from _common import say_machine

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.attacks.objectives import OBJECTIVES
from prunedeploy.attacks.suite import ENSEMBLE, STEPS, ensemble_attacks, passes
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import TorchRunner, evaluate
from prunedeploy.evaluation.ensemble import evaluate_ensemble
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.context import composed_demo
from prunedeploy.pipeline.progress import Progress


def main() -> None:
    """Print and append one row per attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budget", default="standard", choices=STEPS)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    say_machine()
    model = load_darknet(arguments.cfg, arguments.weights).eval()
    folder = composed_demo(arguments.store, Progress())
    dataset = load_test_split(folder, list(CLASS_NAMES))
    dataset = replace(dataset, images=dataset.images[: arguments.images])

    def batches() -> EvaluationLoader:
        return EvaluationLoader(dataset, model.cfg.input_size, 50)

    def report(name: str, value: float | None, steps: int, seconds: float) -> None:
        row = {
            "network": str(arguments.cfg),
            "attack": name,
            "map": value,
            "passes": steps,
            "seconds": round(seconds, 1),
        }
        row |= {"images": len(dataset.images), "eps": arguments.eps}
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        shown = "-" if value is None else f"{value:.4f}"
        print(f"{name:40} {shown}  {steps:5} passes  {seconds:6.1f} s", flush=True)

    paper = ThreatModel(eps=arguments.eps)
    longer = ThreatModel(eps=arguments.eps, steps=arguments.steps, step_size=max(arguments.eps / 10, 1e-4))
    variants = [("PGD, the paper's", paper, "total")]
    variants += [(f"PGD-{arguments.steps}, {name}", longer, name) for name in arguments.objectives.split(",") if name]
    for name, threat_model, objective in variants:
        started = time.monotonic()
        attack = Pgd.against(model, threat_model, objective=objective).of_model
        found = evaluate(
            TorchRunner(model), batches(), dataset, attack=attack, attacked_model=model, resamples=0
        )["torch"]  # fmt: skip
        report(name, found.metrics()["map_pgd"], threat_model.steps, time.monotonic() - started)
    started = time.monotonic()
    suite = evaluate_ensemble(
        model, batches(), dataset, ensemble_attacks(model, arguments.eps, arguments.budget), resamples=0
    )
    seconds = time.monotonic() - started
    for name, measured in suite.attacks.items():
        report(name, measured.usual.result.map_50_95, passes(arguments.budget) // len(ENSEMBLE), 0.0)
    report("ensemble, worst of each image", suite.worst.usual.result.map_50_95, passes(arguments.budget), seconds)
    report(f"ensemble ({suite.lowest})", suite.reported.usual.result.map_50_95, passes(arguments.budget), seconds)
    print(dict(suite.chosen))


if __name__ == "__main__":
    main()
