"""Our Square attack beside ART's: the detection loss that each reaches on a small detector, with as many queries.

    python benchmarks/square_reference.py [--queries 500] [--seeds 20]

ART's moves the same square of all images, never draws one again that changes nothing, and keeps the clean image where
stripes are worse. So its images are others, and what is compared is the loss, a mean over seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import torch
from _common import say_machine
from attack_references import EPS, IMAGES, TARGETS, AsClassifier, generated, in_art, small_detector
from numpy.typing import NDArray

from prunedeploy.attacks import Square
from prunedeploy.models import FoldedDarknet, yolo_losses

try:
    from art.attacks.evasion import SquareAttack
except ImportError as error:
    sys.exit(f"{error}: pip install torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1 six scikit-learn")


def main() -> None:
    """Print the loss of each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    say_machine()
    print(f"detection loss after {arguments.queries} queries, L-inf, eps {EPS:g}, {arguments.seeds} seeds, by image")
    for name, values in searched(arguments.queries, arguments.seeds):
        print(f"{name:<40}{'  '.join(f'{value:.4f}' for value in values)}", flush=True)


@torch.no_grad()
def searched(queries: int, seeds: int) -> Iterator[tuple[str, list[float]]]:
    """Who, and the loss of each image."""
    network = FoldedDarknet(small_detector())
    pixels, never = IMAGES.numpy(), np.zeros(len(IMAGES), np.bool_)

    def falling(images: NDArray[np.float32]) -> NDArray[np.float64]:
        """The detection loss with its sign changed, ``(B,)``: what both lower."""
        return -np.asarray(yolo_losses(network(torch.from_numpy(images)), TARGETS, network.cfg).numpy(), np.float64)

    yield "the clean images", (-falling(pixels)).tolist()
    for area in (0.05, 0.3):
        ours, theirs = [], []
        for seed in range(seeds):
            # No image is ever lost, so that every query is about all of them.
            square = Square(EPS, queries, area=area, seed=seed)
            ours.append(-square(pixels, lambda images, _: (falling(images), never)).losses)
            np.random.seed(seed)  # which ART draws from
            art = SquareAttack(
                in_art(AsClassifier(lambda images: images.flatten(1).sum(1))),
                adv_criterion=lambda answers, labels: never,
                loss=lambda images, labels: falling(images),
                max_iter=queries - 1,
                eps=EPS,
                p_init=area,
                verbose=False,
            )
            theirs.append(-falling(generated(art).numpy()))
        for name, losses in (("ours", ours), ("ART", theirs)):
            yield f"{name}, first square {area:g} of the area", np.mean(losses, axis=0).tolist()


if __name__ == "__main__":
    main()
