"""Our Square attack beside that of its authors and ART's.

    python benchmarks/square_reference.py [--authors attack.py] [--queries 300] [--seeds 8]

``--authors`` is the file of that name in github.com/max-andr/square-attack. It runs as it is, image by image, with the
draws of our generators, on a function of many minima: what is compared are pixels. Two things of it are ours: windows
are drawn from all places, and in L2 its schedule is that of as many queries as ours.

ART's moves the same square of all images, never draws one again that changes nothing, and keeps the clean image where
stripes are worse. So its images are others, and what is compared is the detection loss that both reach on a small
detector, a mean over seeds.
"""

from __future__ import annotations

import argparse
import sys
import types
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import say_machine
from attack_references import EPS, IMAGES, TARGETS, AsClassifier, generated, in_art, small_detector
from numpy.typing import NDArray

from prunedeploy.attacks import Square
from prunedeploy.attacks.norms import Norm
from prunedeploy.models import FoldedDarknet, yolo_losses

try:
    from art.attacks.evasion import SquareAttack
except ImportError as error:
    sys.exit(f"{error}: pip install torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1 six scikit-learn")


def main() -> None:
    """Print differences and losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    say_machine()
    if arguments.authors is not None:
        print("greatest difference of a pixel from the images of the authors' code, of 5 images of 20 x 20 pixels")
        for norm, area, queries, difference in beside_the_authors(arguments.authors):
            print(f"{norm}, p = {area:g}, {queries} queries: {difference:.1e}", flush=True)
    print(f"detection loss after {arguments.queries} queries, L-inf, eps {EPS:g}, {arguments.seeds} seeds, by image")
    for name, values in searched(arguments.queries, arguments.seeds):
        print(f"{name:<40}{'  '.join(f'{value:.4f}' for value in values)}", flush=True)


class OurDraws:
    """Stands for ``numpy.random`` in the authors' code."""

    def __init__(self, image: NDArray[np.float32], seed: int) -> None:
        self.generator = np.random.default_rng((seed, zlib.crc32(image.tobytes())))

    def seed(self, _: int) -> None:
        """They seed at the start."""

    def randint(self, low: int, high: int) -> int:
        """With the last place, which they leave out."""
        return int(self.generator.integers(low, high + 1))

    def choice(self, values: list[float], size: list[int]) -> NDArray[np.float64]:
        """One of two values of opposite signs, for one image if ``size`` has images."""
        drawn = self.generator.choice([-1, 1], tuple(size[-3:])) * abs(values[0])
        return drawn.reshape(size)

    def rand(self, _: int) -> NDArray[np.float64]:
        """One number."""
        return np.array([self.generator.random()])


def beside_the_authors(file: Path) -> Iterator[tuple[str, float, int, float]]:
    """Norm, p, queries, and the greatest difference of a pixel."""
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # means over no images
    generator = np.random.default_rng(0)
    images = generator.random((5, 3, 20, 20), dtype=np.float32)
    weights = generator.normal(size=images.shape[1:])

    def value(x: NDArray[Any]) -> NDArray[np.float64]:
        along = np.asarray((np.asarray(x, np.float64) * weights).sum((1, 2, 3)))
        return 100 + along + 3 * np.sin(along)

    def theirs(image: NDArray[np.float32], norm: str, eps: float, area: float, queries: int) -> NDArray[np.float64]:
        numpy = types.SimpleNamespace(**{**vars(np), "random": OurDraws(image, 7), "save": lambda *_: None})
        names: dict[str, Any] = {"__name__": "theirs", "log": types.SimpleNamespace(print=lambda *_: None)}
        for unused in ("data", "models", "utils"):
            sys.modules.setdefault(unused, types.ModuleType(unused))
        exec(compile(file.read_text(), str(file), "exec"), names)
        names |= {"np": numpy, "print": lambda *_: None}
        model = types.SimpleNamespace(predict=lambda x: x, loss=lambda _, x, *__, **___: value(x))
        windows, schedule = queries, names["p_selection"]
        if norm == "l2":  # which spends one query more than it is told
            windows, names["p_selection"] = queries - 1, lambda p, step, count: schedule(p, step, count + 1)
        attack, one = names[f"square_attack_{norm}"], np.array([True])
        _, found = attack(model, image[None].astype(np.float64), one, one, eps, windows, area, "", False, "margin_loss")
        return np.asarray(found[0])

    def loss(x: NDArray[np.float32], _: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return value(x), np.zeros(len(x), np.bool_)

    settings: tuple[tuple[Norm, float, float], ...] = (("linf", 0.05, 0.05), ("linf", 0.05, 0.8), ("l2", 1.5, 0.1))
    for norm, eps, area in settings:
        for queries in (2, 30, 300, 1000):
            ours = Square(eps, queries, norm, area, seed=7)(images, loss).images
            other = np.stack([theirs(image, norm, eps, area, queries) for image in images])
            yield norm, area, queries, float(np.abs(ours - other).max())


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
