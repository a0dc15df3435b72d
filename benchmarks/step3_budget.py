"""What score optimisation is worth at equal total training: robust mAP of the demo network by the share of step 3.

    python benchmarks/step3_budget.py run [--only budget,magnitude,...] [--backwards] [--out FILE] [--store DIR]
    python benchmarks/step3_budget.py table|picture [--out FILE]

Every model starts from the bundled robust network and is given the same number of steps in all, divided between score
optimisation and fine-tuning; batches, inner attack and everything else are the same. Measured are mAP clean and under
PGD-5 made with the network's own gradients, on 200 test scenes, right after the cut and after fine-tuning. Rows are
appended as they are finished and a second run goes on where it was; two workers share a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

from _common import ROOT  # noqa: E402
from scipy.stats import ttest_rel  # noqa: E402
from score_study import measure, read_rows  # noqa: E402

from prunedeploy.config import load_config  # noqa: E402
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model, open_context  # noqa: E402
from prunedeploy.pipeline.progress import Progress  # noqa: E402
from prunedeploy.pipeline.stages.cut import optimise_stage, prune_stage  # noqa: E402
from prunedeploy.pipeline.stages.score import score_stage  # noqa: E402
from prunedeploy.pipeline.stages.train import finetune_stage, original_stage, pretrain_stage  # noqa: E402
from prunedeploy.pipeline.store.store import Store  # noqa: E402

OUT = ROOT / "docs" / "measurements" / "step3-budget.jsonl"
BATCH = 8
EQUAL = (
    "threads=1", f"finetune.batch_size={BATCH}", f"score_optimization.batch_size={BATCH}", "data.eval_images=200",
    "evaluation.bootstrap=0",
)  # fmt: skip
"""What every model has in common, beside the demo's configuration."""

RATIOS = (0.5, 0.75, 0.9, 0.95)
SHARES = (0.0, 0.1, 0.25, 0.5)
SHORT, LONG = 120, 360
"""Steps in all."""

GLOBAL = ("scores.name=bn-scale", "allocation=global")
VARIANTS: dict[str, tuple[str, ...]] = {
    "HYDRA": ("scores.name=scaled", "allocation=uniform"),
    "magnitude": ("scores.name=magnitude", "allocation=uniform"),
    "magnitude, erk": ("scores.name=magnitude", "allocation=erk"),
    "scaled, erk": ("scores.name=scaled", "allocation=erk"),
    "deeplift": ("scores.name=deeplift", "allocation=uniform"),
    "taylor, global": ("scores.name=taylor", "scores.normalise=mean", "allocation=global"),
    "bn-scale": ("scores.name=bn-scale", "allocation=uniform"),
    "bn-scale, erk": ("scores.name=bn-scale", "allocation=erk"),
    "bn-scale, global": GLOBAL,
    "bn-scale, global, three cuts": GLOBAL,
}
BEST = {"unstructured": "scaled, erk", "structured": "bn-scale, global"}
"""What the budget is about: the demo's scores and allocation."""
CUTS = {"bn-scale, global, three cuts": 3}
"""Variants that come to the ratio in so many cuts, scored anew each time, by the cubic schedule of Zhu and Gupta, To
Prune, or Not to Prune, 2017. Half of the fine-tuning follows the last cut, the others share the other half."""


@dataclass(frozen=True)
class Cell:
    """One model.

    Attributes:
        part: Part of the study.
        variant: Key of `VARIANTS`.
        method: Pruning method.
        ratio: Requested.
        total: Steps of score optimisation and of fine-tuning together.
        share: Share of them that optimise scores.
        seed: Seed of every draw.
    """

    part: str
    variant: str
    method: str
    ratio: float
    total: int
    share: float
    seed: int

    @property
    def name(self) -> tuple[Any, ...]:
        """What a row is found by."""
        return self.variant, self.method, self.ratio, self.total, self.share, self.seed

    def settings(self) -> list[str]:
        """Keys of the configuration."""
        optimising = round(self.share * self.total)
        tuning = self.total - optimising
        steps = [
            f"score_optimization.steps={optimising}", f"finetune.steps={tuning}",
            f"score_optimization.enabled={str(optimising > 0).lower()}", f"finetune.warmup_steps={tuning // 20}",
        ]  # fmt: skip
        own = [f"method={self.method}", f"ratio={self.ratio}", f"seed={self.seed}"]
        return [*EQUAL, *own, *steps, *VARIANTS[self.variant]]


def cells(parts: Iterable[str]) -> Iterator[Cell]:
    """The study in the order in which it is computed."""
    three = (0, 1, 2)
    grid = {
        # Optimised scores against magnitudes: as the authors of HYDRA run it, and with layers sharing unevenly.
        "magnitude": [
            Cell("magnitude", variant, "unstructured", ratio, SHORT, share, seed)
            for seed in range(5) for ratio in (0.9, 0.95, 0.85)
            for variant, share in (("HYDRA", 0.5), ("magnitude", 0.0))
        ],
        "starts": [
            Cell("starts", variant, "unstructured", ratio, SHORT, share, seed)
            for seed in three for ratio in (0.75, 0.9)
            for variant, share in (("deeplift", 0.5), ("deeplift", 0.0), ("HYDRA", 0.5), ("magnitude", 0.0))
            if seed == 0 or variant != "magnitude"
        ],
        # In the order of what says most. For filters step 3 does not pay, which two shares are enough to say.
        "budget": [
            Cell("budget", BEST[method], method, ratio, total, share, 0)
            for total, ratios in ((LONG, (0.9, 0.75, 0.95, 0.5)), (SHORT, (0.9,)))
            for ratio in ratios for share in (0.25, 0.0, 0.5, 0.1) for method in BEST
            if not (ratio == 0.5 and share in (0.1, 0.5))
            and (method == "unstructured" or share in (0.0, 0.25))
            and (total == LONG or share != 0.1)
        ],
        "weights": [
            Cell("weights", variant, "unstructured", ratio, LONG, share, seed)
            for seed in three for ratio in (0.95, 0.9)
            for variant, share in (("magnitude, erk", 0.0), ("scaled, erk", 0.25))
        ],
        "filters": [
            Cell("filters", variant, "structured", ratio, LONG, share, seed)
            for seed in three for ratio in (0.75, 0.9)
            for variant, share in (
                ("bn-scale, global", 0.0), ("bn-scale, global, three cuts", 0.0), ("bn-scale, erk", 0.0),
                ("HYDRA", 0.0), ("HYDRA", 0.25), ("scaled, erk", 0.0), ("bn-scale", 0.0), ("taylor, global", 0.0),
            )
            if seed == 0 or variant in ("bn-scale, global", "bn-scale, global, three cuts", "bn-scale, erk")
        ],
    }  # fmt: skip
    for part in parts:
        yield from grid[part]


def networks(context: BuildContext, cuts: int) -> tuple[StageResult, StageResult, float]:
    """The last cut, the fine-tuned network, and the ratio that was reached."""
    robust = network = pretrain_stage(context, original_stage(context))
    config, left = context.config, 1.0
    for number in range(1, cuts + 1):
        reach, tuning, last = config.ratio * (1 - (1 - number / cuts) ** 3), config.finetune.steps, number == cuts
        early = 0 if cuts == 1 else tuning // 2 // (cuts - 1)
        block = config.finetune if last else config.finetune.model_copy(update={"schedule": "constant"})
        block = block.model_copy(update={"steps": tuning - early * (cuts - 1) if last else early})
        step = config.model_copy(update={"ratio": 1 - (1 - reach) / left, "finetune": block})
        here = replace(context, config=step)
        cut = prune_stage(here, network, optimise_stage(here, network, score_stage(here, network)))
        network = finetune_stage(here, robust, cut)
        left *= 1 - json.loads((cut.folder / "pruning.json").read_text())["ratio_achieved"]
    return cut, network, 1 - left


def run_cell(cell: Cell, store: Path) -> dict[str, Any]:
    """Score, prune, fine-tune and measure one network."""
    with Store(store) as stages:
        context = open_context(load_config("demo", cell.settings()), stages, Progress(quiet=True))
        cut, tuned, achieved = networks(context, CUTS.get(cell.variant, 1))
        row = {**asdict(cell), **measure(context, load_stage_model(tuned.folder))}
        # What is cut without step 3 sees nothing, which is not measured again and again.
        if cell.part == "budget" or cell.share:
            row |= {f"cut_{name}": value for name, value in measure(context, load_stage_model(cut.folder)).items()}
        seconds = sum(result.seconds for result in context.results if result.computed)
        macs = load_stage_model(tuned.folder).cfg.macs
        return {**row, "ratio_achieved": achieved, "mmacs": macs / 1e6, "seconds": round(seconds, 1)}


def run(parts: list[str], seeds: set[int], backwards: bool, out: Path, store: Path) -> None:
    """Compute what has no row yet; where two workers meet, the store lets one of them compute."""
    wanted = [cell for cell in cells(parts) if cell.seed in seeds]

    def is_done(cell: Cell) -> bool:
        return cell.name in {Cell(**{key: row[key] for key in asdict(cell)}).name for row in read_rows(out)}

    for position, cell in enumerate(reversed(wanted) if backwards else wanted):
        if is_done(cell):
            continue
        started = time.perf_counter()
        row = run_cell(cell, store)
        if is_done(cell):
            continue
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{position + 1}/{len(wanted)} {cell.name}: {row['map_pgd']:.3f} "
              f"({time.perf_counter() - started:.0f} s)", flush=True)  # fmt: skip


Rows = list[dict[str, Any]]


def shown(rows: Rows, key: str = "map_pgd") -> str:
    """Mean of a figure, with several seeds their standard deviation too; empty without any."""
    values = [row[key] for row in rows if key in row]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}" if values else ""


def both(rows: Rows) -> str:
    """Fine-tuned, and in brackets right after the cut where that was measured."""
    cut = shown(rows, "cut_map_pgd")
    return shown(rows) + (f" ({cut})" if cut else "")


def where(rows: Rows, **wanted: Any) -> Rows:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def table(out: Path) -> None:
    """Print the rows as Markdown."""
    rows = read_rows(out)
    for method, variant in BEST.items():
        own = where(rows, variant=variant, method=method, seed=0)
        print(f"\n## {method}, {variant}, seed 0\n")
        print(f"| ratio | steps in all | {' | '.join(f'{share:.0%} step 3' for share in SHARES)} |")
        print(f"|---|---|{'---|' * len(SHARES)}")
        for ratio, total in sorted({(row["ratio"], row["total"]) for row in own}):
            cells = [both(where(own, ratio=ratio, total=total, share=share)) for share in SHARES]
            print(f"| {ratio:.0%} | {total} | {' | '.join(cells)} |")
    for part, total in (("weights", LONG), ("filters", LONG), ("starts", SHORT)):
        found = where(rows, part=part)
        ratios = sorted({row["ratio"] for row in found})
        print(f"\n## {part}, {total} steps in all\n")
        print(f"| | step 3 | seeds | {' | '.join(f'{ratio:.0%} | MMACs' for ratio in ratios)} |")
        print(f"|---|---|---|{'---|---|' * len(ratios)}")
        for variant, share in dict.fromkeys((row["variant"], row["share"]) for row in found):
            cells = []
            for ratio in ratios:
                # A model that two parts share has one row, under the part that came first.
                same = where(rows, variant=variant, method=found[0]["method"], share=share, ratio=ratio, total=total)
                cells += [both(same), shown(same, "mmacs").partition(".")[0]]
            seeds = len({row["seed"] for row in where(found, variant=variant, share=share)})
            print(f"| {variant} | {share:.0%} | {seeds} | {' | '.join(cells)} |")
    print(f"\n## Optimised scores against magnitudes, uniform allocation, {SHORT} steps in all, paired over seeds\n")
    print("| ratio | seeds | HYDRA | magnitudes | p | p after Holm |\n|---|---|---|---|---|---|")
    for line in holm_tests(rows):
        print(line)


def holm_tests(rows: Rows) -> Iterator[str]:
    """Paired t-tests of optimised scores against magnitudes by ratio, corrected after Holm; a table's line each."""
    tests = []
    for ratio in (0.85, 0.9, 0.95):
        sides = [
            {row["seed"]: row for row in where(rows, variant=variant, share=share, ratio=ratio, total=SHORT)}
            for variant, share in (("HYDRA", 0.5), ("magnitude", 0.0))
        ]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        own, other = ([side[seed] for seed in seeds] for side in sides)
        if len(seeds) > 1:
            p = ttest_rel([row["map_pgd"] for row in own], [row["map_pgd"] for row in other]).pvalue
            tests.append((float(p), f"| {ratio:.0%} | {len(seeds)} | {both(own)} | {shown(other)} |"))
    corrected = 0.0
    for position, (p, line) in enumerate(sorted(tests)):
        corrected = max(corrected, min(1.0, p * (len(tests) - position)))
        yield f"{line} {p:.2g} | {corrected:.2g} |"


def picture(out: Path, path: Path) -> None:
    """Draw robust mAP over the share of step 3: a panel per method, a line per ratio and total."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = where(read_rows(out), seed=0)
    figure, axes = plt.subplots(1, len(BEST), figsize=(9, 3.6), sharey=True, layout="constrained")
    colours = plt.get_cmap("viridis")
    for panel, (method, variant) in zip(axes, BEST.items(), strict=True):
        panel.set_title(f"{method} ({variant})", fontsize=9)
        for number, ratio in enumerate(RATIOS):
            for total, style in ((LONG, "o-"), (SHORT, "o--")):
                own = where(rows, variant=variant, method=method, ratio=ratio, total=total)
                if len(own) > 1:
                    line = sorted((row["share"], row["map_pgd"]) for row in own)
                    colour, label = colours(number / len(RATIOS)), f"{ratio:.0%} pruned, {total} steps"
                    panel.plot(*zip(*line, strict=True), style, color=colour, label=label)
        panel.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.supxlabel(f"share of the training steps (of {BATCH} images) that optimise scores", fontsize=9)
    figure.supylabel("mAP under PGD, fine-tuned", fontsize=9)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main() -> None:
    """Run models, or show them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table", "picture"])
    parser.add_argument("--only", default="magnitude,starts,budget,weights,filters")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--backwards", action="store_true", help="for a second worker: the last model first")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "step3-budget.png")
    arguments = parser.parse_args()
    if arguments.action == "table":
        table(arguments.out)
    elif arguments.action == "picture":
        picture(arguments.out, arguments.picture)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        seeds = {int(seed) for seed in arguments.seeds.split(",")}
        run(arguments.only.split(","), seeds, arguments.backwards, arguments.out, arguments.store)


if __name__ == "__main__":
    main()
