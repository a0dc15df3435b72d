"""DeepLIFT scores of all layers of YOLOv3 against one training step, and against Captum layer by layer.

    python benchmarks/deeplift_speed.py [--size 416] [--batch 4] [--rounds 3] [--threads 2] [--check-size 96]

A training step is what `prunedeploy.training` does with a clean batch: forward and backward pass in training mode,
channels last, and an SGD update. `deeplift` scores the same batch, all layers from one forward and one backward pass.
Captum's time is that of multipliers alone, one `LayerDeepLift` call per convolution. Calls take turns; seconds are
medians.

Captum runs on five convolutions from first to last; the rest is interpolated by layer number. How good that is shows
at the smaller ``--check-size``, where all convolutions run.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from functools import partial

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _common import in_turns, median, say_machine, scenes  # noqa: E402
from torch import nn  # noqa: E402

from prunedeploy.config import TrainingConfig  # noqa: E402
from prunedeploy.data.batches import Batch  # noqa: E402
from prunedeploy.models import Darknet, load_darknet  # noqa: E402
from prunedeploy.models.darknet_cfg import parse_cfg  # noqa: E402
from prunedeploy.resources import darknet_cfg_path  # noqa: E402
from prunedeploy.scores import choose_target, deeplift  # noqa: E402
from prunedeploy.scores.captum_deeplift import captum_multipliers  # noqa: E402
from prunedeploy.scores.reference import blurred_reference, zeros_reference  # noqa: E402
from prunedeploy.training.adversarial import recalibrate_normalisation, robust_objective  # noqa: E402
from prunedeploy.training.optimisation import make_optimizer  # noqa: E402

BLUR_SIGMA = 8.0
PREDICTIONS = 10
SAMPLES = 5

Call = Callable[[], object]


def network_and_batch(name: str, size: int, batch: int) -> tuple[Darknet, Batch]:
    """A network with random weights and live normalisation at an input size, and composed scenes for it."""
    lines = darknet_cfg_path(name).read_text(encoding="utf-8").splitlines()
    resized = [f"{line.split('=')[0]}={size}" if line.startswith(("width=", "height=")) else line for line in lines]
    model = load_darknet(parse_cfg("\n".join(resized)))
    images, targets = scenes(batch, size)
    recalibrate_normalisation(model, [scenes(2, size, seed=1)[0]])
    return model.eval(), Batch(images, targets, list(range(batch)))


def training_step(model: Darknet, batch: Batch) -> Call:
    """One step of `prunedeploy.training.loop.train` on a clean batch, on a copy of the network."""
    trained = copy.deepcopy(model)
    trained.to(memory_format=torch.channels_last)
    # A rate so small that the network stays what it is, however often the step is taken.
    settings = TrainingConfig(steps=1, lr=1e-9, clip_norm=None)
    objective = robust_objective(trained, settings, None, 0, torch.device("cpu"))
    parameters = list(trained.parameters())
    optimizer = make_optimizer(parameters, settings)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(batch, 0)["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, math.inf)
        optimizer.step()

    return step


def deeplift_calls(model: Darknet, batch: Batch) -> dict[str, Call]:
    """DeepLIFT of all layers, by what it is called in the table."""
    blurred = partial(blurred_reference, sigma=BLUR_SIGMA)
    score = partial(deeplift, model, [batch], predictions=PREDICTIONS)
    return {
        "deeplift, rescale, zeros": partial(score, reference=zeros_reference),
        "deeplift, rescale, blur": partial(score, reference=blurred),
        "deeplift, reveal-cancel, zeros": partial(score, reference=zeros_reference, rule="reveal-cancel"),
    }


def captum_call(model: Darknet, batch: Batch) -> Callable[[int], object]:
    """Captum's multipliers at one convolution, by its layer index."""
    with torch.no_grad():
        target = choose_target(model, model(batch.images), PREDICTIONS)
    reference = zeros_reference(batch.images)
    return lambda layer: captum_multipliers(model, batch.images, reference, target, layer)


def sampled(count: int) -> list[int]:
    """Positions of the sampled convolutions among ``count``, first and last included."""
    return [round(position) for position in np.linspace(0, count - 1, SAMPLES)]


def interpolated_sum(count: int, positions: list[int], seconds: list[float]) -> float:
    """Seconds of all ``count`` convolutions, those between the sampled ones by straight lines."""
    return float(np.interp(np.arange(count), positions, seconds).sum())


def check_interpolation(name: str, size: int, batch: int) -> None:
    """Print what the interpolation says at a small size, and what all convolutions really take there."""
    model, scene = network_and_batch(name, size, batch)
    layers = [layer.index for layer in model.cfg.convolutions]
    captum = captum_call(model, scene)
    captum(layers[0])
    seconds = []
    for layer in layers:
        start = time.perf_counter()
        captum(layer)
        seconds.append(time.perf_counter() - start)
    positions = sampled(len(layers))
    predicted = interpolated_sum(len(layers), positions, [seconds[position] for position in positions])
    ours = median(in_turns({"ours": deeplift_calls(model, scene)["deeplift, rescale, zeros"]}, 3)["ours"])
    spent = sum(seconds)
    print(f"\nCheck of the interpolation at {size} x {size}, batch {batch}: all {len(layers)} convolutions by Captum")
    print(f"  measured {spent:.1f} s, interpolated from {SAMPLES} of them {predicted:.1f} s", end="")
    print(f" ({predicted / spent - 1:+.1%}); DeepLIFT in one pass {ours:.2f} s, {spent / ours:.0f} times faster")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="yolov3")
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check-size", type=int, default=96, help="0 leaves the check out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    model, batch = network_and_batch(arguments.network, arguments.size, arguments.batch)
    layers = [layer.index for layer in model.cfg.convolutions]
    positions = sampled(len(layers))
    captum = captum_call(model, batch)
    captum_names = {position: f"captum, layer {layers[position]} alone" for position in positions}
    calls: dict[str, Call] = {"training step": training_step(model, batch)}
    calls |= deeplift_calls(model, batch)
    calls |= {name: partial(captum, layers[position]) for position, name in captum_names.items()}
    times = in_turns(calls, arguments.rounds)
    seconds = {name: median(values) for name, values in times.items()}

    size = f"{arguments.size} x {arguments.size}"
    print(f"{arguments.network} {size}, batch {arguments.batch}, {len(layers)} convolutions, {arguments.rounds} rounds")
    print(f"{'':32} {'seconds':>8} {'least':>8} {'most':>8} {'/ step':>7}")
    for name, values in times.items():
        relative = seconds[name] / seconds["training step"]
        print(f"{name:32} {seconds[name]:8.2f} {min(values):8.2f} {max(values):8.2f} {relative:7.2f}")
    total = interpolated_sum(len(layers), positions, [seconds[captum_names[position]] for position in positions])
    ours = seconds["deeplift, rescale, zeros"]
    print(f"{'captum, all layers, interpolated':32} {total:8.0f} {'':8} {'':8} {total / seconds['training step']:7.1f}")
    print(f"DeepLIFT in one pass (rescale, zeros) is {total / ours:.0f} times faster than Captum layer by layer")
    summation = deeplift(model, [batch], predictions=PREDICTIONS).summation
    print(
        f"Summation to delta in float32: worst layer {summation.worst_layer:.1e}, over the image {summation.target:.1e}"
    )
    if arguments.check_size:
        check_interpolation(arguments.network, arguments.check_size, arguments.batch)


if __name__ == "__main__":
    main()
