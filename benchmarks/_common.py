"""What the benchmark programs share: a YOLOv3 with plausible activations, its cuts, and timing in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunedeploy.data.demo import SPRITES, DemoSettings, compose_scene, cut_out
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.pruning.granularity import Filters
from prunedeploy.pruning.ratio import Widths
from prunedeploy.pruning.shrink import shrink
from prunedeploy.resources import darknet_cfg_path
from prunedeploy.scores import scaled_scores
from prunedeploy.training.adversarial import recalibrate_normalisation
from prunedeploy_engines.detection.letterbox import to_input


def scenes(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Composed demo scenes at any size.

    Returns:
        Images ``(count, 3, size, size)`` float32 in [0, 1] and targets ``(T, 6)`` with the demo's class indices.
    """
    settings = DemoSettings(size=size, object_size=(size // 4, size // 2))
    with np.load(SPRITES) as sprites:
        cut_outs = [cut_out(sprite) for sprite in sprites["test_images"]]
        labels = sprites["test_labels"]
    images, targets = [], []
    for number in range(count):
        image, boxes, classes = compose_scene(np.random.default_rng((seed, number)), cut_outs, labels, settings)
        images.append(torch.from_numpy(to_input(image)))
        for (x0, y0, x1, y1), label in zip(boxes, classes, strict=True):
            box = ((x0 + x1) / 2 / size, (y0 + y1) / 2 / size, (x1 - x0) / size, (y1 - y0) / size)
            targets.append((number, label, *box))
    return torch.stack(images), torch.tensor(targets)


def random_yolov3(name: str = "yolov3", seed: int = 0) -> Darknet:
    """A network with random weights whose normalisation statistics fit its activations on composed scenes."""
    model = load_darknet(darknet_cfg_path(name), seed=seed)
    images, _ = scenes(2, model.cfg.input_size[0], seed)
    recalibrate_normalisation(model, [images])
    return model.eval()


def narrowed(model: Darknet, ratio: float, multiple: int = 8) -> tuple[Darknet, Widths]:
    """Without the filters of the lowest scaled weights, until so much of the weights is gone."""
    granularity = Filters(ratio, multiple=multiple)
    allocation = granularity.allocate(model.cfg)
    masks = granularity.selection(model.cfg, allocation)(scaled_scores(model)).as_bool()
    assert allocation.widths is not None
    return shrink(model, masks.filters), allocation.widths


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, the calls taking turns; one untimed round first."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def say_machine() -> None:
    """Print what this runs on."""
    from prunedeploy_engines.machine.environment import machine_info

    machine = machine_info()
    print(f"CPU {machine['cpu']['name']}; torch {torch.__version__}, {torch.get_num_threads()} threads")


ROOT = Path(__file__).parents[1]
