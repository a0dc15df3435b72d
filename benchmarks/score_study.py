"""Which scores prune the demo network better: robust mAP after equal fine-tuning, over seeds, ratios and methods.

    python benchmarks/score_study.py run [--only main,...] [--worker 0/1] [--cut-only] [--out F] [--store DIR]
    python benchmarks/score_study.py table [--out F]

Every cell is the demo's configuration with the settings below, from the bundled robust weights (one for all seeds: a
seed decides the images that scores are taken on, the random scores, and everything in training). All cells are given
the same number of training steps; where scores are optimised, half of them do that. Stages are shared through the
store, one row is appended per finished cell, and cells with a row are skipped, so a killed run goes on where it was;
several workers with numbers of their own share the cells. ``table`` prints Markdown: mean and standard deviation (of
the sample) over seeds, and one-way ANOVA against ``scaled`` in the same column.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

from scipy.stats import f_oneway  # noqa: E402
from torch import Tensor  # noqa: E402

from prunedeploy.attacks import Pgd  # noqa: E402
from prunedeploy.config import load_config  # noqa: E402
from prunedeploy.data.loader import EvaluationLoader  # noqa: E402
from prunedeploy.evaluation import TorchRunner, evaluate  # noqa: E402
from prunedeploy.models import Darknet  # noqa: E402
from prunedeploy.pipeline.context import BuildContext, load_stage_model, open_context  # noqa: E402
from prunedeploy.pipeline.progress import Progress  # noqa: E402
from prunedeploy.pipeline.stages.cut import optimise_stage, prune_stage  # noqa: E402
from prunedeploy.pipeline.stages.score import score_stage  # noqa: E402
from prunedeploy.pipeline.stages.train import finetune_stage, original_stage, pretrain_stage  # noqa: E402
from prunedeploy.pipeline.store.store import Store  # noqa: E402

SEEDS = (0, 1, 2)
RATIOS = (0.75, 0.85, 0.5, 0.65, 0.9, 0.95)
METHODS = ("structured", "unstructured")
EQUAL = (
    "allocation=uniform", "threads=1", "finetune.batch_size=16", "score_optimization.batch_size=16",
    "data.eval_images=200", "evaluation.bootstrap=0",
)  # fmt: skip
"""What every cell has in common, beside the demo's configuration. All have 80 training steps."""

NO_STEP_3 = ("score_optimization.enabled=false", "finetune.steps=80")
HALF_STEP_3 = ("score_optimization.enabled=true", "score_optimization.steps=40", "finetune.steps=40")
DEEPLIFT = ("scores.name=deeplift", "scores.reference=zeros", *NO_STEP_3)
VARIANTS: dict[str, tuple[str, ...]] = {
    # HYDRA: scaled initialisation, then score optimisation. DeepLIFT replaces both, as in the paper.
    "scaled": ("scores.name=scaled", *HALF_STEP_3),
    "deeplift": DEEPLIFT,
    "random": ("scores.name=random", *NO_STEP_3),
    "scaled, not optimised": ("scores.name=scaled", *NO_STEP_3),
    "magnitude": ("scores.name=magnitude", *NO_STEP_3),
    "snip": ("scores.name=snip", *NO_STEP_3),
    "taylor": ("scores.name=taylor", *NO_STEP_3),
    "bn-scale": ("scores.name=bn-scale", *NO_STEP_3),
    "gradient-x-input": ("scores.name=gradient-x-input", *NO_STEP_3),
    "deeplift, optimised": ("scores.name=deeplift", "scores.reference=zeros", *HALF_STEP_3),
    # Where DeepLIFT loses against a black reference: other references, the other rule, a wider target, robustness.
    "deeplift, mean reference": (*DEEPLIFT, "scores.reference=mean"),
    "deeplift, blurred reference": (*DEEPLIFT, "scores.reference=blur"),
    "deeplift, reveal-cancel": (*DEEPLIFT, "scores.deeplift_rule=reveal-cancel"),
    "deeplift, mean, reveal-cancel, 100 predictions": (
        *DEEPLIFT, "scores.reference=mean", "scores.deeplift_rule=reveal-cancel", "scores.predictions=100",
    ),
}  # fmt: skip
OTHERS = (
    "scaled, not optimised", "magnitude", "snip", "taylor", "bn-scale", "gradient-x-input", "deeplift, optimised",
)  # fmt: skip
REMEDIES = (
    "deeplift, mean reference",
    "deeplift, mean, reveal-cancel, 100 predictions",
    "deeplift, blurred reference",
    "deeplift, reveal-cancel",
)
"""All on unstructured networks, where DeepLIFT loses, the first one on structured ones too."""


@dataclass(frozen=True)
class Cell:
    """One model of the study.

    Attributes:
        part: Part of the study that it was computed for.
        variant: Key of `VARIANTS`.
        method: Pruning method.
        ratio: Requested.
        seed: Seed of every draw.
    """

    part: str
    variant: str
    method: str
    ratio: float
    seed: int

    @property
    def name(self) -> tuple[str, str, float, int]:
        """What a row is found by."""
        return self.variant, self.method, self.ratio, self.seed

    def settings(self) -> list[str]:
        """Keys of the configuration."""
        own = [f"method={self.method}", f"ratio={self.ratio}", f"seed={self.seed}"]
        return [*EQUAL, *VARIANTS[self.variant], *own]


def cells(parts: Iterable[str]) -> Iterator[Cell]:
    """The study in the order in which it is computed: what says most comes first."""
    grid = {
        "main": [
            (variant, method, ratio)
            for variant in ("scaled", "deeplift", "random") for ratio in RATIOS for method in METHODS
            # Random weights keep nothing from 75 % on, which two ratios are enough to say.
            if not (variant == "random" and method == "unstructured" and ratio >= 0.9)
        ],
        "others": [(variant, method, 0.75) for variant in OTHERS for method in METHODS],
        "remedies": [(variant, "unstructured", 0.75) for variant in REMEDIES]
        + [(variant, "structured", 0.75) for variant in REMEDIES[:1]],
        # Half of what goes are filters, so shape and latency are those of the second of each pair.
        "hybrid": [
            ("scaled", "hybrid", 0.75), ("scaled", "structured", 0.375),
            ("scaled", "hybrid", 0.9), ("scaled", "structured", 0.45),
        ],
        # The best of `others`, where more is cut.
        "best": [
            (variant, method, ratio)
            for ratio in (0.9, 0.95) for variant, method in (("magnitude", METHODS[1]), ("bn-scale", METHODS[0]))
        ],
        "mean": [
            ("deeplift, mean reference", method, ratio)
            for ratio in RATIOS for method in METHODS if ratio != 0.75
        ],
    }  # fmt: skip
    for part in parts:
        for variant, method, ratio in grid[part]:
            for seed in SEEDS:
                yield Cell(part, variant, method, ratio, seed)


def measure(context: BuildContext, model: Darknet) -> dict[str, Any]:
    """Clean and robust mAP, PGD in fp32 with the network's own gradients."""
    pgd = Pgd.against(model, context.config.attack, "fp32", context.config.seed)

    def attack(_: Darknet, images: Tensor, targets: Tensor) -> Tensor:
        return pgd(images, targets)

    loader = EvaluationLoader(context.test, model.cfg.input_size, context.config.evaluation.batch_size)
    found = evaluate(
        TorchRunner(model), loader, context.test, attack=attack, attacked_model=model, resamples=0,
        iou_threshold=context.config.evaluation.iou_threshold,
    )["torch"]  # fmt: skip
    metrics = found.metrics()
    return {key: metrics[key] for key in ("map_clean", "map_pgd", "map50_clean", "map50_pgd")}


def run_cell(cell: Cell, store: Path, tune: bool) -> dict[str, Any]:
    """Score, prune and measure one network, and fine-tune and measure it again unless that is not wanted."""
    config = load_config("demo", cell.settings())
    with Store(store) as stages:
        context = open_context(config, stages, Progress(quiet=True))
        robust = pretrain_stage(context, original_stage(context))
        scores = score_stage(context, robust)
        optimised = optimise_stage(context, robust, scores)
        prune = prune_stage(context, robust, optimised)
        row = {f"cut_{name}": value for name, value in measure(context, load_stage_model(prune.folder)).items()}
        if tune:
            tuned = finetune_stage(context, robust, prune)
            row |= measure(context, load_stage_model(tuned.folder))
        score = json.loads((scores.folder / "score.json").read_text())
        pruning = json.loads((prune.folder / "pruning.json").read_text())
        return {
            **asdict(cell),
            **row,
            "ratio_achieved": pruning["ratio_achieved"],
            "score_s": score["seconds"],
            "summation_to_delta": score["summation_to_delta"],
            "test_images": len(context.test.images),
            "seconds": sum(result.seconds for result in context.results if result.computed),
        }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows so far; half a last line, of a killed run, is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out, as it is no row: {line[:60]}")
    return rows


def by_cell(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, float, int], dict[str, Any]]:
    """One row per cell: what was measured of it in several runs is put together."""
    found: dict[tuple[str, str, float, int], dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row["variant"], row["method"], row["ratio"], row["seed"]), {}).update(row)
    return found


def run(wanted: list[Cell], tune: bool, out: Path, store: Path) -> None:
    """Compute what has no row yet."""
    for position, cell in enumerate(wanted):
        if ("map_pgd" if tune else "cut_map_pgd") in by_cell(read_rows(out)).get(cell.name, {}):
            continue
        started = time.perf_counter()
        row = run_cell(cell, store, tune)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{position + 1}/{len(wanted)} {cell.name}: PGD {row['cut_map_pgd']:.3f}, fine-tuned "
              f"{row.get('map_pgd', math.nan):.3f} ({time.perf_counter() - started:.0f} s)", flush=True)  # fmt: skip


Groups = dict[tuple[str, str, float], list[dict[str, Any]]]
"""Rows by variant, method and ratio."""


def table(out: Path) -> None:
    """Print the rows as Markdown: robust mAP over ratios, then everything of each ratio."""
    groups: Groups = defaultdict(list)
    for row in by_cell(read_rows(out)).values():
        groups[row["variant"], row["method"], row["ratio"]].append(row)
    for method in sorted({method for _, method, _ in groups}):
        ratios = sorted({ratio for _, of, ratio in groups if of == method})
        print(f"\n## {method}, mAP under PGD\n")
        print(f"| scores | {' | '.join(f'{ratio:.3g}' for ratio in ratios)} |\n|---|{'---|' * len(ratios)}")
        for variant in VARIANTS:
            cells = [_cell(groups, variant, method, ratio) for ratio in ratios]
            if any(cells):
                print(f"| {variant} | {' | '.join(cells)} |")
    for method, ratio in sorted({(method, ratio) for _, method, ratio in groups}):
        print(f"\n### {method}, {ratio:.3g}\n")
        print("| scores | seeds | not fine-tuned | mAP PGD | ± | p against scaled | mAP clean | ± | scoring, s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for variant in VARIANTS:
            if rows := groups.get((variant, method, ratio)):
                robust, clean = [r["map_pgd"] for r in rows], [r["map_clean"] for r in rows]
                cut = [r["cut_map_pgd"] for r in rows if "cut_map_pgd" in r]
                p = _p_against_scaled(groups, variant, method, ratio)
                print(
                    f"| {variant} | {len(rows)} | {f'{statistics.mean(cut):.3f}' if cut else ''} "
                    f"| {statistics.mean(robust):.4f} | {_deviation(robust)} "
                    f"| {'' if p is None else f'{p:.3g}'} | {statistics.mean(clean):.4f} | {_deviation(clean)} "
                    f"| {statistics.median(r['score_s'] for r in rows):.1f} |"
                )


def _cell(groups: Groups, variant: str, method: str, ratio: float) -> str:
    rows = groups.get((variant, method, ratio), [])
    if not rows:
        return ""
    values = [row["map_pgd"] for row in rows]
    p = _p_against_scaled(groups, variant, method, ratio)
    mark = "" if p is None or p >= 0.05 else " *"
    return f"{statistics.mean(values):.3f} ± {_deviation(values) or '?'}{mark}"


def _p_against_scaled(groups: Groups, variant: str, method: str, ratio: float) -> float | None:
    """One-way ANOVA of robust mAP; None if one side has fewer than two runs."""
    own, scaled = ([row["map_pgd"] for row in groups.get((name, method, ratio), ())] for name in (variant, "scaled"))
    if variant == "scaled" or min(len(own), len(scaled)) < 2:
        return None
    return float(f_oneway(own, scaled).pvalue)


def _deviation(values: list[float]) -> str:
    return f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""


def main() -> None:
    """Run cells or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--only", default="main,others,remedies,hybrid,best,mean")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--worker", default="0/1", help="number of this worker / workers")
    parser.add_argument("--cut-only", action="store_true", help="measure cuts, without fine-tuning them")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/score-study.jsonl"))
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    arguments = parser.parse_args()
    if arguments.action == "table":
        table(arguments.out)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    number, count = (int(part) for part in arguments.worker.split("/"))
    seeds = {int(seed) for seed in arguments.seeds.split(",")}
    wanted = [cell for cell in cells(arguments.only.split(",")) if cell.seed in seeds]
    run(wanted[number::count], not arguments.cut_only, arguments.out, arguments.store)


if __name__ == "__main__":
    main()
