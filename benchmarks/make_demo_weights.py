"""Train the weights that the package ships for the demo network.

    python benchmarks/make_demo_weights.py clean  --out prunedeploy/assets
    python benchmarks/make_demo_weights.py robust --out prunedeploy/assets

The first trains on clean scenes from random weights, the second adversarially from the first's result. A killed
run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402

from prunedeploy.attacks import ThreatModel  # noqa: E402
from prunedeploy.config import AugmentConfig, TrainingConfig  # noqa: E402
from prunedeploy.data import load_splits  # noqa: E402
from prunedeploy.data.demo import write_demo  # noqa: E402
from prunedeploy.data.loader import TrainingLoader  # noqa: E402
from prunedeploy.models import load_darknet  # noqa: E402
from prunedeploy.training.adversarial import robust_objective  # noqa: E402
from prunedeploy.training.loop import train  # noqa: E402

CFG = Path(__file__).parents[1] / "configs" / "darknet" / "yolov3-slim.cfg"
AUGMENT = AugmentConfig(hue=0.02, saturation=1.3, exposure=1.2)
BATCH_SIZE = 32
CLEAN = TrainingConfig(
    steps=1400,
    lr=2e-3,
    optimizer="adamw",
    weight_decay=0.02,
    warmup_steps=100,
    clip_norm=50.0,
    ema=0.998,
)
ROBUST = TrainingConfig(
    steps=1800,
    lr=1.5e-3,
    optimizer="adamw",
    weight_decay=0.02,
    warmup_steps=100,
    clip_norm=50.0,
    ema=0.998,
)
# Two long random-start steps cost half of the five short ones that the evaluation uses and find nearly the same loss.
TRAINING_ATTACK = ThreatModel(eps=0.05, step_size=0.04, steps=2, random_start=True)


def main() -> None:
    """Train one of the two weight files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("clean", "robust"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = arguments.out / f".{arguments.which}"
    work.mkdir(parents=True, exist_ok=True)
    training, _ = load_splits(write_demo(arguments.data))
    robust = arguments.which == "robust"
    settings = ROBUST if robust else CLEAN
    start = arguments.out / "demo-clean.weights" if robust else None
    model = load_darknet(CFG, start).to(memory_format=torch.channels_last)
    began = time.monotonic()
    count = 0

    def advance(steps: int, loss: float) -> None:
        nonlocal count
        count += steps
        if count % 50 == 0:
            rate = count * BATCH_SIZE / (time.monotonic() - began)
            print(f"step {count}/{settings.steps}  loss {loss:.2f}  {rate:.0f} images/s", flush=True)

    train(
        model,
        model.parameters(),
        lambda step: TrainingLoader(training, (160, 160), BATCH_SIZE, 0, AUGMENT, start_step=step),
        robust_objective(model, settings, TRAINING_ATTACK if robust else None, 0, torch.device("cpu")),
        settings,
        stage=arguments.which,
        work=work,
        log=work / "log.jsonl",
        advance=advance,
    )
    model.save(work / "demo.cfg", arguments.out / f"demo-{arguments.which}.weights")


if __name__ == "__main__":
    main()
