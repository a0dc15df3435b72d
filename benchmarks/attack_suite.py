"""What attacks leave of a network's mAP, and what they cost: the paper's PGD, longer PGD, objectives, the ensemble.

    python benchmarks/attack_suite.py MODEL.cfg MODEL.weights [--images 100] [--budget standard] [--out ROWS.jsonl]

A row per attack: mAP (COCO's, IoU .50 to .95, score threshold 0.001) on the first test images of the demo, passes
through the network and back of each image, seconds. Rows that ``--out`` holds already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from _common import say_machine

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.objectives import OBJECTIVES
from prunedeploy.attacks.suite import STEPS, Suite, attack_suite
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import TorchRunner, evaluate, figure_name
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.pipeline.context import composed_demo
from prunedeploy.pipeline.progress import Progress


def suites(model: Darknet, eps: float, budget: str) -> Iterator[tuple[str, str, Suite]]:
    """What a row is called, the attack it is about, and the suite that it is of."""
    paper = ThreatModel(eps=eps)
    for name in ("noise", "fgsm", "pgd"):
        yield name if name != "pgd" else "pgd, 5 steps", name, attack_suite(model, [name], paper)
    for steps, objectives in ((20, tuple(OBJECTIVES)), (100, ("total",))):
        longer = ThreatModel(eps=eps, steps=steps, step_size=eps / 10)
        for objective in objectives:
            name = f"pgd:{objective}"
            yield f"{name}, {steps} steps", name, attack_suite(model, [name], longer)
    yield f"ensemble, {budget}", "ensemble", attack_suite(model, ["ensemble"], paper, budget)


def main() -> None:
    """Print and append one row per attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--budget", default="standard", choices=STEPS)
    parser.add_argument("--only", help="attacks by the names of their rows, separated by semicolons")
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    say_machine()
    model = load_darknet(arguments.cfg, arguments.weights).eval()
    dataset = load_test_split(composed_demo(arguments.store, Progress()), list(CLASS_NAMES))
    dataset = replace(dataset, images=dataset.images[: arguments.images])
    about = {"network": str(arguments.weights), "images": len(dataset.images), "eps": arguments.eps}
    known = []
    if arguments.out and arguments.out.exists():
        known = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    done = {row["attack"] for row in known if about.items() <= row.items()}
    wanted = arguments.only.split(";") if arguments.only else None
    for label, name, suite in suites(model, arguments.eps, arguments.budget):
        if label in done or (wanted is not None and label not in wanted):
            continue
        started = time.monotonic()
        found = evaluate(
            TorchRunner(model),
            EvaluationLoader(dataset, model.cfg.input_size, 50),
            dataset,
            attack=suite.attacks,
            ensembles=suite.ensembles,
            attacked_model=model,
            resamples=0,
        )["torch"]
        metrics = found.metrics()
        row = {**about, "attack": label, "map": metrics[f"map_{figure_name(name)}"], "passes": suite.passes[name]}
        row |= {"map_clean": metrics["map_clean"], "seconds": round(time.monotonic() - started, 1)}
        for one in found.ensembles.values():
            row |= {"lowest": one.lowest, "chosen": dict(one.chosen), "map_worst": one.worst.usual.result.map_50_95}
            row |= {"maps": {attack: each.usual.result.map_50_95 for attack, each in one.attacks.items()}}
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{label:30} {row['map']:.4f}  {row['passes']:4} passes  {row['seconds']:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
