"""What a sweep trains against what a build of its own for every model would train.

    python benchmarks/sweep_sharing.py --config study-demo --store runs/.store

Run it after the sweep: the seconds are those that its stages took and that the store keeps. A separate build of a model
executes every stage of its chain once; the sweep executed each of those stages once for all models that share it.
Evaluations and exports are listed and not counted: the figure is about training.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.sweep.grid import load_sweep
from prunedeploy.study.sweep.plan import plan_sweep

TRAINING = ("pretrain", "score", "optimise-scores", "finetune")


def main() -> None:
    """Print seconds by stage, shared and separate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--store", type=Path, required=True)
    arguments = parser.parse_args()

    sweep = load_sweep(arguments.config)
    cells = [cell for cell in sweep.cells if not cell.is_reference]
    shared: dict[str, dict[str, float]] = defaultdict(dict)
    separate: dict[str, float] = defaultdict(float)
    with Store(arguments.store) as store:
        plan = plan_sweep(cells, store, Progress())
        for planned in plan.cells:
            for stage in planned.training:
                seconds = stage.seconds
                if seconds is None:
                    raise SystemExit(f"{stage.name} of {planned.cell.label} is not stored: finish the sweep first")
                shared[stage.name][stage.digest] = seconds
                separate[stage.name] += seconds

    print(f"{sweep.config.name}: {len(cells)} models")
    print(f"{'stage':<24}{'executed':>10}{'of builds':>11}{'s executed':>12}{'s of builds':>13}")
    counts = {name: sum(stage.name == name for one in plan.cells for stage in one.training) for name in shared}
    for name in sorted(shared, key=lambda name: (name not in TRAINING, name)):
        together = sum(shared[name].values())
        print(f"{name:<24}{len(shared[name]):>10}{counts[name]:>11}{together:>12.0f}{separate[name]:>13.0f}")
    executed = sum(sum(shared[name].values()) for name in TRAINING)
    of_builds = sum(separate[name] for name in TRAINING)
    print(
        f"training ({', '.join(TRAINING)}): {executed:.0f} s executed, {of_builds:.0f} s of separate builds: "
        f"{100 * executed / of_builds:.1f} %"
    )


if __name__ == "__main__":
    main()
