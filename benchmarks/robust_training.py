"""What each way of adversarial training earns at equal training steps, by PGD and by the ensemble of attacks.

    python benchmarks/robust_training.py [--steps 300] [--seeds 0,1] [--images 100] [--budget quick] [--only NAME,...]
        [--set KEY=VALUE] [--store runs/.store] [--out docs/measurements/robust-training.jsonl]

Every option trains the configuration's network from its given weights, the demo's bundled clean ones, with a few keys
changed, and is then measured on the same test images: clean mAP, mAP under the configuration's attack, and the
ensemble's. Steps are the optimiser's. What a step costs differs, and each row says how many passes through the network
and back the whole training took, by image of a batch. Trainings and measurements are stages of the store: a killed run
goes on where it was. The file has one row per option, seed and sizes, however often that was run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from prunedeploy.process_setup import keep_freed_memory

keep_freed_memory()

from _common import say_machine  # noqa: E402

from prunedeploy.attacks.suite import STEPS  # noqa: E402
from prunedeploy.config import load_config  # noqa: E402
from prunedeploy.pipeline.context import open_context  # noqa: E402
from prunedeploy.pipeline.progress import Progress  # noqa: E402
from prunedeploy.pipeline.stages.robustness import FILE as ROBUSTNESS  # noqa: E402
from prunedeploy.pipeline.stages.robustness import robustness_stage  # noqa: E402
from prunedeploy.pipeline.stages.train import original_stage, pretrain_stage  # noqa: E402
from prunedeploy.pipeline.store.store import Store  # noqa: E402
from prunedeploy.training.inner_attack import passes_per_step  # noqa: E402
from prunedeploy_engines.files import write_atomically  # noqa: E402

# The paper's step is as long as the radius.
FREE = ("adversarial=free", "attack.steps=1", "attack.step_size=0.05", "attack.random_start=false")
OPTIONS: dict[str, tuple[str, ...]] = {
    "pgd": (),
    "mtd": ("adversarial=mtd",),
    "class-wise": ("attack_objective=class-wise",),
    "objectness-aware": ("adversarial=objectness-aware",),
    "objectness-aware, 60 % clean": ("adversarial=objectness-aware", "clean_share=0.6"),
    "free, m = 4": FREE,
    "free, m = 8": (*FREE, "replays=8"),
    "objectness": ("attack_objective=objectness",),
    "rank": ("attack_objective=rank",),
    "total + rank": ("attack_objective=total + rank",),
    "fabricate": ("attack_objective=fabricate",),
    "pgd, 60 % clean": ("clean_share=0.6",),
}
"""Keys of ``pretrain`` by the name of an option."""


def main() -> None:
    """Print a line per option and seed, and keep its row in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--budget", default="quick", choices=STEPS)
    parser.add_argument("--only", help="names of options, joined by ;")
    parser.add_argument("--set", action="append", default=[], help="for every option, e.g. pretrain.batch_size=16")
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/robust-training.jsonl"))
    arguments = parser.parse_args()
    say_machine()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    names = [name.strip() for name in arguments.only.split(";")] if arguments.only else list(OPTIONS)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            shared = [*arguments.set, "pretrain.from=given", f"pretrain.steps={arguments.steps}", f"seed={seed}"]
            shared += ["robustness={attacks: [pgd, ensemble], error_kinds: false}"]
            shared += [f"robustness.budget={arguments.budget}", f"robustness.images={arguments.images}"]
            config = load_config(arguments.config, [*shared, *(f"pretrain.{change}" for change in OPTIONS[name])])
            with Store(arguments.store) as store:
                context = open_context(config, store, Progress())
                trained = pretrain_stage(context, original_stage(context))
                measured = robustness_stage(context, "robust", trained, None).read(ROBUSTNESS)
            row = {"option": name, "seed": seed, "steps": arguments.steps, "batch_size": config.pretrain.batch_size}
            row |= {"network": trained.digest[:12]}
            row |= {"images": min(arguments.images, len(context.test.images)), "budget": arguments.budget}
            identity = list(row.items())
            row |= {"training_passes": arguments.steps * passes_per_step(config.pretrain)}
            row |= {"training_s": trained.seconds}
            row |= {f"map_{name}": measured["figures"][f"map_{name}"] for name in ("clean", "pgd", "ensemble")}
            row |= {name: measured["ensembles"]["ensemble"][name] for name in ("lowest", "map", "chosen")}
            keep(arguments.out, identity, row)
            say(row)


def keep(path: Path, identity: list[tuple[str, Any]], row: dict[str, Any]) -> None:
    """Put a row into the file, in the place of one of the same option, seed and sizes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [other for other in rows if any(other.get(key) != value for key, value in identity)]
    write_atomically(path, "".join(json.dumps(one) + "\n" for one in [*rows, row]).encode())


def say(row: dict[str, Any]) -> None:
    """One line on the terminal."""
    values = "  ".join(
        f"{label} {'-' if row[key] is None else format(row[key], '.4f')}"
        for label, key in (("clean", "map_clean"), ("PGD", "map_pgd"), ("ensemble", "map_ensemble"))
    )
    print(f"{row['option']:30} seed {row['seed']}  {row['training_passes']:8.0f} passes  {values}", flush=True)


if __name__ == "__main__":
    main()
