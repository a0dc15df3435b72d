"""What attacks leave of a build's engines: white-box on the fp32 network, transfer and adaptive on every file.

    python benchmarks/engine_attacks.py BUILD --work DIR [--images 600] [--attacks pgd,ensemble] [--budget standard]

BUILD is the output folder of a build with fp16 or int8 files. Transfer images are made with its fp32 network, adaptive
ones with the twin of the file that is measured. *Lowest* says which of the two is lower for each file; its difference
from the network's own figure has a bootstrap interval over the images that both were measured on (paired).

Every measurement leaves its detections as CSV in --work, beside a line in rows.jsonl; one that is there is not made
again, so that the program goes on where it was stopped. --work of other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _common import in_turns, median, say_machine

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.checks import values_and_gradient
from prunedeploy.attacks.norms import on_lattice
from prunedeploy.attacks.objectives import objective_for
from prunedeploy.attacks.suite import STEPS, check_references
from prunedeploy.config import EvaluationConfig, RobustnessConfig
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import Batch, EvaluationLoader
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import (
    ImageMatches,
    TorchRunner,
    evaluate,
    figure_name,
    matches_from,
    paired_interval,
    read_detections,
    run_cocoeval,
    write_detections,
)
from prunedeploy.evaluation.bootstrap import RESAMPLES, bootstrap_map
from prunedeploy.evaluation.engine_twin import EngineTwin
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.detector import Detector
from prunedeploy.pipeline.adaptive import AdaptiveAttack
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy.pipeline.context import composed_demo
from prunedeploy.pipeline.progress import Progress
from prunedeploy_engines import load_bundle
from prunedeploy_engines.runtimes.opening import model_target
from prunedeploy_engines.runtimes.runner import Runner

NETWORK = "fp32 torch"
BATCH = 50


@dataclass(frozen=True)
class Study:
    """What is measured, and where its rows are.

    Attributes:
        work: Folder of detections and rows.
        dataset: The images.
        attacked: The attacks, on the fp32 network.
        runners: The engines by name, the network first.
        files: ONNX file of each engine.
        threads: Threads of every runtime.
    """

    work: Path
    dataset: CocoDataset
    attacked: Attacked
    runners: dict[str, Runner]
    files: dict[str, Path]
    threads: int

    def csv(self, engine: str, kind: str, attack: str) -> Path:
        """Where detections of one measurement are."""
        return self.work / f"{engine.replace(' ', '-')}-{kind}-{figure_name(attack)}.csv"

    def measure(self, attack: str) -> None:
        """The network's own images on the network and on every engine; then each engine's own."""
        engines = list(self.files)
        alone = replace(self.attacked, wanted=self.attacked.wanted.model_copy(update={"attacks": (attack,)}))
        wanted = [self.csv(NETWORK, "white-box", attack), *(self.csv(one, "transfer", attack) for one in engines)]
        if not all(path.is_file() for path in wanted):
            started = time.monotonic()
            with alone.progress.task(f"{attack} on the network", len(self.dataset.images)) as advance:
                found = evaluate(
                    self.runners,
                    alone.loader_of(self.dataset),
                    self.dataset,
                    attack=alone.suite.attacks,
                    ensembles=alone.suite.ensembles,
                    attacked_model=alone.model,
                    lattice=lambda x_adv, x: on_lattice(x_adv, x, alone.threat_model.eps, "linf"),
                    score_threshold=alone.settings.map_score_threshold,
                    iou_threshold=alone.settings.iou_threshold,
                    resamples=0,
                    progress=advance,
                )
            for path, name in zip(wanted, self.runners, strict=True):
                write_detections(self.csv(name, "clean", ""), found[name].clean.detections, self.dataset)
                write_detections(path, found[name].attacked[attack].detections, self.dataset)
            self.note(attack=attack, kind="white-box and transfer", seconds=round(time.monotonic() - started, 1))
        for engine in engines:
            path = self.csv(engine, "adaptive", attack)
            if path.is_file():
                continue
            started = time.monotonic()
            own = AdaptiveAttack.on(self.files[engine], self.runners[engine], alone, self.threads)
            found_own, said = own.measure(engine)
            write_detections(path, found_own.attacked[attack].detections, self.dataset)
            seconds = round(time.monotonic() - started, 1)
            self.note(attack=attack, kind="adaptive", engine=engine, seconds=seconds, twin=said["twin"])

    def note(self, **row: Any) -> None:
        """Append a line."""
        with (self.work / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def matches(self, engine: str, kind: str, attack: str) -> ImageMatches:
        """What pycocotools makes of one measurement."""
        return matches_from(run_cocoeval(self.dataset, read_detections(self.csv(engine, kind, attack), self.dataset)))

    def table(self, attack: str) -> Iterator[str]:
        """A row per engine."""
        own = self.matches(NETWORK, "white-box", attack)
        yield f"| {NETWORK} | {_cell(self.matches(NETWORK, 'clean', ''))} | white-box {_cell(own)} | | | |"
        for engine in self.files:
            both = {kind: self.matches(engine, kind, attack) for kind in ("transfer", "adaptive")}
            lowest = min(both, key=lambda kind: _map(both[kind]))
            pair = paired_interval(own, both[lowest], resamples=RESAMPLES).difference
            apart = "-" if pair is None else f"{pair.value:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
            cells = [_cell(self.matches(engine, "clean", "")), *map(_cell, both.values()), lowest, apart]
            yield f"| {engine} | {' | '.join(cells)} |"
            tensors = self._gate(engine, attack)["tensors"]
            print(
                f"{engine}: {tensors['a_step_apart']} of {tensors['values']} values of its twin are a step apart, "
                f"heads {tensors['heads']:.1e}",
                file=sys.stderr,
            )

    def _gate(self, engine: str, attack: str) -> dict[str, Any]:
        """What the gate of an engine's twin measured."""
        rows = map(json.loads, (self.work / "rows.jsonl").read_text(encoding="utf-8").splitlines())
        wanted = {"engine": engine, "attack": attack}
        found: dict[str, Any] = next(row["twin"] for row in rows if wanted.items() <= row.items())
        return found


def _map(matches: ImageMatches) -> float:
    found = bootstrap_map(matches, resamples=1).map_50_95
    return 1.0 if found is None else found.value


def _cell(matches: ImageMatches) -> str:
    found = bootstrap_map(matches, resamples=RESAMPLES).map_50_95
    return "-" if found is None else f"{found.value:.4f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> None:
    """Measure what is missing and print a table per attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--attacks", default="pgd,ensemble")
    parser.add_argument("--budget", default="standard", choices=STEPS)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--precisions", default="fp16,int8")
    parser.add_argument("--runtimes", default="onnxruntime")
    parser.add_argument("--data", type=Path, help="the demo set, if it is composed already")
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    attacks = tuple(arguments.attacks.split(","))
    check_references(attacks, "--attacks")
    about = {name: getattr(arguments, name) for name in ("images", "budget", "eps")} | {"build": str(arguments.build)}
    _claim(arguments.work, about)
    network = load_darknet(arguments.build / "model.cfg", arguments.build / "model.weights").eval()
    data = arguments.data or composed_demo(arguments.store, Progress())
    dataset = load_test_split(data, list(CLASS_NAMES))
    dataset = replace(dataset, images=dataset.images[: arguments.images])
    attacked = Attacked(
        network,
        dataset,
        lambda some: EvaluationLoader(some, network.cfg.input_size, BATCH),
        ThreatModel(eps=arguments.eps),
        RobustnessConfig(budget=arguments.budget, error_kinds=False),
        EvaluationConfig(bootstrap=0),
        0,
        Progress(),
    )
    with ExitStack() as stack:
        bundle = load_bundle(arguments.build / "bundle")
        runners: dict[str, Runner] = {NETWORK: stack.enter_context(TorchRunner(network))}
        files = {}
        for precision in arguments.precisions.split(","):
            for runtime in arguments.runtimes.split(","):
                name = f"{precision} {runtime}"
                files[name] = bundle.model_path(precision, model_target(runtime))
                runners[name] = stack.enter_context(bundle.runner(runtime, precision, threads=arguments.threads))
        _say_costs(network, files, next(iter(attacked.loader_of(dataset))))
        study = Study(arguments.work, dataset, attacked, runners, files, arguments.threads)
        for attack in attacks:
            study.measure(attack)
            print(f"\n{attack}, eps {arguments.eps:g}, {len(dataset.images)} images\n")
            print("| | clean | transfer | adaptive | lowest | lowest - white-box |\n|---|---|---|---|---|---|")
            for row in study.table(attack):
                print(row, flush=True)


def _say_costs(network: Darknet, files: dict[str, Path], batch: Batch) -> None:
    """Print how long a pass through each file's twin and back takes, over one through the folded network."""
    few = batch.images[:8]
    targets = batch.targets[batch.targets[:, 0] < len(few)]

    def of(detector: Detector) -> Callable[[], object]:
        objective = objective_for("total", lambda: [], targets, network.cfg)
        return lambda: values_and_gradient(detector, few, objective)

    twins = {f"{path.name}": of(EngineTwin(path, network.cfg)) for path in dict.fromkeys(files.values())}
    times = in_turns({NETWORK: of(network.for_inference()), **twins}, 5)
    for name in twins:
        ratio = median(times[name]) / median(times[NETWORK])
        print(f"a pass through the twin of {name} and back takes {ratio:.2f} times as long as one through the network")


def _claim(work: Path, about: dict[str, Any]) -> None:
    """Make the folder of these settings, or take it up again."""
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "settings.json"
    if settings.is_file() and json.loads(settings.read_text()) != about:
        sys.exit(f"{work}: holds measurements of other settings, {settings.read_text()}; give another --work")
    settings.write_text(json.dumps(about))


if __name__ == "__main__":
    main()
