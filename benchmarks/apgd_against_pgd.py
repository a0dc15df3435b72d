"""Whether APGD finds no less than PGD in as many steps: the total loss of every image under both.

    python benchmarks/apgd_against_pgd.py MODEL.cfg MODEL.weights [--data DIR --names F] [--images 100] [--steps 40]

PGD takes its best iterate, of the best of three step sizes by image: a tenth, a twentieth and two fifths (the paper's)
of the radius. APGD chooses its own steps and runs once, so it has a third of the passes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from _common import say_machine

from prunedeploy.attacks import Apgd, Pgd, ThreatModel
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.models import FoldedDarknet, load_darknet, yolo_losses
from prunedeploy.pipeline.context import composed_demo
from prunedeploy.pipeline.progress import Progress


def main() -> None:
    """Print how the losses compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, help="default: the demo's")
    parser.add_argument("--names", type=Path, help="class names of the network, one per line")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    arguments = parser.parse_args()
    say_machine()
    model = load_darknet(arguments.cfg, arguments.weights).eval()
    folder = arguments.data or composed_demo(arguments.store, Progress())
    names = arguments.names.read_text().splitlines() if arguments.names else list(CLASS_NAMES)
    dataset = load_test_split(folder, names)
    dataset = replace(dataset, images=dataset.images[: arguments.images])
    network, eps, steps = FoldedDarknet(model), arguments.eps, arguments.steps
    found: dict[str, list[torch.Tensor]] = {"clean": [], "PGD": [], "APGD": []}
    for batch in EvaluationLoader(dataset, model.cfg.input_size, arguments.batch):

        def losses(images: torch.Tensor, targets: torch.Tensor = batch.targets) -> torch.Tensor:
            with torch.no_grad():
                return yolo_losses(network(images), targets, model.cfg)

        found["clean"].append(losses(batch.images))
        by_step_size = []
        for part in (0.05, 0.1, 0.4):
            threat = ThreatModel(eps=eps, steps=steps, step_size=part * eps, iterate="best")
            by_step_size.append(losses(Pgd.against(model, threat)(batch.images, batch.targets)))
        found["PGD"].append(torch.stack(by_step_size).amax(0))
        found["APGD"].append(losses(Apgd(model, network, eps, steps)(batch.images, batch.targets)))
    clean, pgd, apgd = (torch.cat(each).double() for each in found.values())
    rise = (apgd - clean) / (pgd - clean)
    print(f"{arguments.weights}: {len(clean)} images, {steps} steps within {eps}")
    print(f"mean loss: clean {clean.mean():.3f}, PGD {pgd.mean():.3f}, APGD {apgd.mean():.3f}")
    print(f"images on which APGD's loss is not below PGD's: {int((apgd >= pgd).sum())} of {len(clean)}")
    parts = ", ".join(f"{one:.4f}" for one in torch.quantile(rise, torch.tensor([0, 0.05, 0.5, 0.95, 1]).double()))
    print(f"APGD's rise as a part of PGD's; least, 5 %, median, 95 %, most: {parts}")


if __name__ == "__main__":
    main()
