"""How much of the robust network's mAP under PGD pruning leaves on the demo: whole builds by method and ratio.

    python benchmarks/demo_kept.py [--only unstructured-0.9,...] [--runs runs/kept] [--store DIR] [--set KEY=VALUE]

Every build is `prunedeploy build` on the demo's configuration as it ships, measured on all 600 test scenes under PGD-5
with the network's own gradients; the share's interval is a paired bootstrap over them. Builds that are there are not
built again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from prunedeploy.resources import asset_path

AIMS = {
    "structured-0.75": 85, "structured-0.9": 50,
    "unstructured-0.75": 92, "unstructured-0.9": 85, "unstructured-0.95": 65,
}  # fmt: skip
"""Method and ratio, and what share of the robust network's mAP we want to be left, in percent."""


def paper_share(method: str, ratio: float) -> float:
    """What the paper's own figures leave at a ratio: the better of its two scores, means over its ten runs."""
    appendix = json.loads(asset_path("paper-appendix.json").read_text())
    at = appendix["ratios"].index(ratio)
    runs = [appendix["runs"][f"{method}-{scores}"]["map"] for scores in ("scaled", "deeplift")]
    return max(statistics.mean(run[at] for run in own) / statistics.mean(run[0] for run in own) for own in runs)


def main() -> None:
    """Build what is missing and print a row per build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(AIMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/kept"))
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--set", action="append", default=[], help="for every build, e.g. threads=1")
    arguments = parser.parse_args()
    print("| | steps of step 3 | of fine-tuning | mAP clean | mAP under PGD | kept | aim | the paper's |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.only.split(","):
        method, _, ratio = name.partition("-")
        out = arguments.runs / name
        if not (out / "results.json").is_file():
            sets = [part for value in arguments.set for part in ("--set", value)]
            command = [
                sys.executable, "-m", "prunedeploy.cli", "build", "--ratio", ratio, "--method", method,
                "--out", str(out), "--store", str(arguments.store), *sets,
            ]  # fmt: skip
            subprocess.run(command, check=True, stdout=sys.stderr)
        results = json.loads((out / "results.json").read_text())
        pruned = next(row for row in results["models"] if row["name"] == "pruned")
        kept = results["comparisons"]["map_pgd_kept"]
        config, paper = results["configuration"], paper_share(method, float(ratio))
        optimised = "optimise-scores" in results["stages"]
        steps = config["score_optimization"]["steps"] if optimised else 0
        print(
            f"| {method}, {float(ratio):.0%} | {steps} | {config['finetune']['steps']} | {pruned['map_clean']:.3f} "
            f"| {pruned['map_pgd']:.3f} | **{kept['value']:.1%}** [{kept['low']:.1%}, {kept['high']:.1%}] "
            f"| {AIMS[name]} % | {paper:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
