"""What each lever of pruning and fine-tuning is worth on the demo: robust mAP of the 75 % network, with and without.

    python benchmarks/demo_levers.py [--store runs/.store] [--only NAME,...] [--out docs/measurements/levers.jsonl]

Every variant is the demo's configuration with a few keys changed; all share pre-training through the stage store, are
fine-tuned for the same number of steps and are measured on the same test images with PGD made with their own
gradients. ``from-scratch`` trains the same small cfg from random weights for as many steps. Interval: paired
bootstrap of the ratio to the robust network's robust mAP. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

from torch import Tensor  # noqa: E402

from prunedeploy.attacks import Pgd  # noqa: E402
from prunedeploy.config import load_config  # noqa: E402
from prunedeploy.data.loader import EvaluationLoader  # noqa: E402
from prunedeploy.evaluation import Evaluation, TorchRunner, evaluate, paired_interval  # noqa: E402
from prunedeploy.models import Darknet, load_darknet  # noqa: E402
from prunedeploy.pipeline.context import (  # noqa: E402
    BuildContext,
    StageResult,
    load_stage_model,
    open_context,
)
from prunedeploy.pipeline.progress import Progress  # noqa: E402
from prunedeploy.pipeline.stages.cut import optimise_stage, prune_stage  # noqa: E402
from prunedeploy.pipeline.stages.score import score_stage  # noqa: E402
from prunedeploy.pipeline.stages.train import (  # noqa: E402
    finetune_stage,
    original_stage,
    pretrain_stage,
)
from prunedeploy.pipeline.store.store import Store  # noqa: E402

VARIANTS: dict[str, tuple[str, ...]] = {
    "demo": (),
    "no-distillation": ("finetune.distillation_weight=0",),
    "bn-recalibration": ("finetune.bn_recalibration_images=256",),
    "no-average": ("finetune.ema=0",),
    # Half of the steps optimise scores, so the total stays.
    "score-optimisation": ("score_optimization.steps=HALF", "finetune.steps=HALF"),
    "uniform-allocation": ("allocation=uniform",),
    "erk-allocation": ("allocation=erk",),
    "scaled-scores": ("scores.name=scaled", "allocation=uniform"),
    "random-scores": ("scores.name=random", "allocation=uniform"),
    "paper-finetune": (
        "finetune.optimizer=sgd", "finetune.lr=0.01", "finetune.ema=0", "finetune.distillation_weight=0",
        "finetune.bn_recalibration_images=0", "finetune.weight_decay=5e-4",
    ),
    "half-length": ("finetune.steps=HALF",),
    "double-length": ("finetune.steps=DOUBLE",),
    "from-scratch": ("finetune.distillation_weight=0", "finetune.bn_recalibration_images=0"),
}  # fmt: skip


def pruned_stage(context: BuildContext, name: str) -> tuple[StageResult, StageResult]:
    """The robust network and the fine-tuned pruned one."""
    robust = pretrain_stage(context, original_stage(context))
    scores = optimise_stage(context, robust, score_stage(context, robust))
    pruned = prune_stage(context, robust, scores)
    if name == "from-scratch":
        cut = pruned
        with context.stage("random-weights", 1, {"seed": context.config.seed}, {"cfg": cut.digest}) as pruned:
            if pruned.work:
                model = load_darknet(cut.folder / "model.cfg", seed=context.config.seed)
                model.save(pruned.work / "model.cfg", pruned.work / "model.weights")
    return robust, finetune_stage(context, robust, pruned)


def measure(context: BuildContext, model: Darknet) -> Evaluation:
    """Clean and robust mAP."""
    pgd = Pgd.against(model, context.config.attack, "fp32", context.config.seed)

    def attack(_: Darknet, images: Tensor, targets: Tensor) -> Tensor:
        return pgd(images, targets)

    loader = EvaluationLoader(context.test, model.cfg.input_size, context.config.evaluation.batch_size)
    found = evaluate(
        TorchRunner(model), loader, context.test, attack=attack, attacked_model=model, resamples=1000,
        iou_threshold=context.config.evaluation.iou_threshold,
    )  # fmt: skip
    return found["torch"]


def main() -> None:
    """Print and append one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/levers.jsonl"))
    parser.add_argument("--set", action="append", default=[], help="for every variant, e.g. finetune.steps=200")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    steps = load_config("demo", arguments.set).finetune.steps
    reference: Evaluation | None = None
    for name in arguments.only.split(","):
        changes = [
            change.replace("HALF", str(steps // 2)).replace("DOUBLE", str(steps * 2)) for change in VARIANTS[name]
        ]
        config = load_config("demo", [*arguments.set, *changes])
        with Store(arguments.store) as store:
            context = open_context(config, store, Progress())
            robust, pruned = pruned_stage(context, name)
            if reference is None:
                reference = measure(context, load_stage_model(robust.folder))
                report(arguments.out, "robust", reference, reference, robust.seconds)
            report(
                arguments.out,
                name,
                measure(context, load_stage_model(pruned.folder)),
                reference,
                pruned.seconds,
            )


def report(path: Path, name: str, found: Evaluation, reference: Evaluation, seconds: float) -> None:
    """One row, to the terminal and the file."""
    pair = paired_interval(reference.attacked["pgd"].usual.matches, found.attacked["pgd"].usual.matches)
    interval = found.intervals()["map_pgd"]
    row = {
        "variant": name,
        "map_clean": found.metrics()["map_clean"],
        "map_pgd": found.metrics()["map_pgd"],
        "map_pgd_interval": None if interval is None else [interval.low, interval.high],
        "kept": None if pair.ratio is None else [pair.ratio.value, pair.ratio.low, pair.ratio.high],
        "images": found.n_images,
        "training_s": seconds,
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    kept = "-" if pair.ratio is None else f"{pair.ratio.value:.3f} [{pair.ratio.low:.3f}, {pair.ratio.high:.3f}]"
    print(f"{name:30} clean {row['map_clean']:.4f}  PGD {row['map_pgd']:.4f}  kept {kept}", flush=True)


if __name__ == "__main__":
    main()
