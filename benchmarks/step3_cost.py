"""What a step of score optimisation costs beside a training step of the same batch: seconds and memory.

    python benchmarks/step3_cost.py [--cfg yolov3] [--batch 4] [--rounds 3] [--ratio 0.75]

Both are whole steps as `train` takes them, inner attack (2 steps, as the demo trains) and optimiser included. Times are
medians of steps that take turns in one process, memory is the peak of a process that took two steps of one kind.
YOLOv3 has random weights whose normalisation fits its activations; what is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402
from _common import in_turns, median, random_yolov3, say_machine, scenes  # noqa: E402

from prunedeploy.attacks import ThreatModel  # noqa: E402
from prunedeploy.config import TrainingConfig  # noqa: E402
from prunedeploy.data.loader import Batch  # noqa: E402
from prunedeploy.models import Darknet  # noqa: E402
from prunedeploy.pruning.granularity import Filters, Granularity, Weights  # noqa: E402
from prunedeploy.scores import scaled_scores  # noqa: E402
from prunedeploy.training.adversarial import robust_objective  # noqa: E402
from prunedeploy.training.hydra import ScoredDarknet, score_objective  # noqa: E402
from prunedeploy.training.loop import Objective  # noqa: E402
from prunedeploy.training.optimisation import ParameterSet, make_optimizer  # noqa: E402

ATTACK = ThreatModel(eps=0.05, step_size=0.04, steps=2, random_start=True)
SETTINGS = TrainingConfig(steps=10**6, lr=1e-3, clip_norm=10.0)
CPU = torch.device("cpu")
KINDS = ("training step", "step 3, weights", "step 3, filters")


def stepper(kind: str, model: Darknet, ratio: float, batch: Batch) -> Callable[[], object]:
    """A function that takes one whole step."""
    objective: Objective
    if kind == KINDS[0]:
        sets = [ParameterSet(tuple(model.parameters()))]
        objective = robust_objective(model, SETTINGS, ATTACK, 0, CPU)
    else:
        granularity: Granularity = Weights(ratio) if kind == KINDS[1] else Filters(ratio, "uniform", 8, 8)
        select = granularity.selection(model.cfg, granularity.allocate(model.cfg))
        scored = ScoredDarknet(model, scaled_scores(model), select)
        sets, objective = scored.parameter_sets(1e-2), score_objective(scored, SETTINGS, ATTACK, 0, CPU)
    optimizer, steps = make_optimizer(sets, SETTINGS), itertools.count()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(batch, next(steps))["loss"].backward()
        for part in sets:
            torch.nn.utils.clip_grad_norm_(part.tensors, SETTINGS.clip_norm)
        optimizer.step()

    return step


def steppers(arguments: argparse.Namespace, kinds: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], object]]]:
    """One function per kind, each on a network of its own."""
    images, targets = scenes(arguments.batch, random_yolov3(arguments.cfg).cfg.input_size[0])
    batch = Batch(images, targets, list(range(arguments.batch)))
    for kind in kinds:
        model = random_yolov3(arguments.cfg).to(memory_format=torch.channels_last)
        yield kind, stepper(kind, model, arguments.ratio, batch)


def peak_mb(arguments: argparse.Namespace, kind: str) -> float:
    """Peak resident memory of a process that takes two steps of one kind."""
    command = [sys.executable, __file__, "--cfg", arguments.cfg, "--batch", str(arguments.batch), "--memory-of", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Print one row per kind of step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="yolov3", help="a network cfg that ships")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        for _, step in steppers(arguments, (arguments.memory_of,)):
            step()
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    say_machine()
    print(f"{arguments.cfg}, batch {arguments.batch}, ratio {arguments.ratio:g}, {arguments.rounds} rounds")
    memory = {kind: peak_mb(arguments, kind) for kind in KINDS}
    times = in_turns(dict(steppers(arguments, KINDS)), arguments.rounds)
    print("\n| | seconds | training steps | peak memory |\n|---|---|---|---|")
    whole = median(times[KINDS[0]])
    for kind in KINDS:
        seconds = median(times[kind])
        print(f"| {kind} | {seconds:.2f} | {seconds / whole:.2f} | {memory[kind]:,.0f} MB |")


if __name__ == "__main__":
    main()
