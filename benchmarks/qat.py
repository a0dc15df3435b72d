"""What quantisation-aware training wins back: mAP of an int8 file, clean, transfer and adaptive, before and after.

    python benchmarks/qat.py --work DIR [--build BUILD] [--steps 100,400] [--control] [--images 600] [--lr LR]

The network is that of a build's output folder, or without ``--build`` the demo's, pruned by 75 % (made in ``--store``
if it is not there: minutes). Its int8 file is calibrated on training images, with no convolution in fp32 but those that
always are, and is trained as ``build --qat STEPS`` trains it. ``--control`` trains the same network for as many steps
on the same batches without roundings, and calibrates an int8 file of that: what more training does by itself.

Transfer images are PGD's on the fine-tuned fp32 network, the same for every file; adaptive ones PGD's on the twin of
the file that is measured. A row stands in DIR/rows.jsonl when it is measured; one that is there is not measured again,
and a training goes on from its checkpoint. A DIR of other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import say_machine

from prunedeploy.attacks.norms import on_lattice
from prunedeploy.config import BuildConfig, RobustnessConfig, load_config, validated
from prunedeploy.data import CocoDataset, load_splits, train_test_subset
from prunedeploy.data.coco import measured_subset
from prunedeploy.data.loader import Batch, EvaluationLoader, TrainingLoader
from prunedeploy.evaluation import TorchRunner, evaluate
from prunedeploy.evaluation.engine_twin import EngineTwin
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.pipeline.adaptive import AdaptiveAttack, adaptive_figures
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy.pipeline.context import composed_demo, open_context
from prunedeploy.pipeline.networks import all_networks
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.qat import qat_block
from prunedeploy.pipeline.store.store import Store
from prunedeploy.training.adversarial import robust_objective
from prunedeploy.training.loop import train
from prunedeploy.training.optimisation import ParameterSet
from prunedeploy.training.quantised import QuantisedDarknet
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_export import Quantiser, onnx_from_torch
from prunedeploy_export.precision.files import Calibration
from prunedeploy_export.precision.quantisation import Activations

CPU = torch.device("cpu")
FIGURES = ("map_clean", "map_pgd", "map_pgd_adaptive")


@dataclass(frozen=True)
class Study:
    """What is measured, and where its rows are.

    Attributes:
        work: Folder of rows, files and checkpoints.
        config: The build's, with the batch, optimiser and attack of its fine-tuning.
        source: Folder of the network's ``model.cfg`` and ``model.weights``.
        training: Training images.
        test: Test images that are measured.
        activations: Kind of the int8 file.
        threads: Threads of every runtime.
    """

    work: Path
    config: BuildConfig
    source: Path
    training: CocoDataset
    test: CocoDataset
    activations: Activations
    threads: int

    def network(self) -> Darknet:
        """The fine-tuned network."""
        return load_darknet(self.source / "model.cfg", self.source / "model.weights")

    def loader(self, dataset: CocoDataset) -> EvaluationLoader:
        """Images as they are."""
        cfg = self.network().cfg
        return EvaluationLoader(
            dataset,
            cfg.input_size,
            self.config.evaluation.batch_size,
            self.config.data.greyscale,
            channels=cfg.input_shape[0],
            stretch=not cfg.letterbox,
        )

    def files(self, network: Darknet, name: str, kept: Calibration | None = None) -> tuple[Path, Calibration]:
        """The int8 file of a network, beside its fp32 file, and what it was calibrated to."""
        folder, settings = self.work / name, self.config.export.int8
        folder.mkdir(exist_ok=True)
        onnx_from_torch(FoldedDarknet(network), folder / "fp32.onnx")
        drawn, _ = train_test_subset(self.training, settings.calibration_images, self.config.seed)
        images = np.concatenate([batch.images.numpy() for batch in self.loader(drawn)])
        quantiser = Quantiser(
            folder / "fp32.onnx",
            images,
            seed=self.config.seed,
            method=settings.method,
            sensitivity_images=settings.sensitivity_images,
            threads=self.threads,
            kept=kept,
        )
        _, record = quantiser.write(folder / "int8.onnx", self.activations)
        return folder / "int8.onnx", Calibration(quantiser.ranges(self.activations), record.skipped)

    def trained(self, file: Path, steps: int, lr: float | None, name: str) -> Darknet:
        """The network after so many steps with the roundings of a file, which may be fp32 and have none."""
        int8 = self.config.export.int8.model_copy(update={"qat": self.config.export.int8.qat.model_copy(
            update={"steps": steps, "lr": lr})})  # fmt: skip
        config = self.config.model_copy(update={"export": self.config.export.model_copy(update={"int8": int8})})
        block, finetune, network = qat_block(config), config.finetune, self.network()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
        cfg, folder = network.cfg, self.work / name
        folder.mkdir(exist_ok=True)
        loader = TrainingLoader(
            self.training, cfg.input_size, block.batch_size, config.seed * 2, block.augment,
            greyscale=config.data.greyscale, channels=cfg.input_shape[0], stretch=not cfg.letterbox,
        )  # fmt: skip

        def batches(start: int) -> Iterator[Batch]:
            loader.start_step = start
            yield from loader

        objective = robust_objective(
            QuantisedDarknet(network, EngineTwin(file, cfg)), block, block.attack, config.seed, CPU,
            teacher=FoldedDarknet(self.network()) if finetune.distillation_weight > 0 else None,
            distillation=finetune.distillation_weight, temperature=finetune.distillation_temperature,
        )  # fmt: skip
        everything = ParameterSet(tuple(network.parameters()))
        with Progress().task(name, steps) as advance:
            train(
                network, [everything], batches, objective, block, stage=name, work=folder, log=folder / "log.jsonl",
                advance=lambda count, loss: advance(count),
            )  # fmt: skip
        network.eval().save(folder / "model.cfg", folder / "model.weights")
        return network

    def measure(self, name: str, file: Path | None) -> dict[str, Any]:
        """A row of the fine-tuned network itself (no file), or of one int8 file."""
        network, settings = self.network(), self.config.evaluation
        attacked = Attacked(
            network,
            self.test,
            self.loader,
            self.config.attack,
            RobustnessConfig(attacks=("pgd",), error_kinds=False),
            settings,
            self.config.seed,
            Progress(),
        )
        runner: Runner = TorchRunner(network) if file is None else OnnxRuntimeRunner(file, threads=self.threads)
        with runner:
            with attacked.progress.task(name, len(self.test.images)) as advance:
                found = evaluate(
                    {name: runner},
                    self.loader(self.test),
                    self.test,
                    attack=attacked.suite.attacks,
                    attacked_model=network,
                    lattice=partial(on_lattice, eps=self.config.attack.eps, norm="linf"),
                    score_threshold=settings.map_score_threshold,
                    iou_threshold=settings.iou_threshold,
                    resamples=settings.bootstrap,
                    seed=self.config.seed,
                    progress=advance,
                )[name]
            figures: dict[str, Any] = dict(found.metrics())
            ends: dict[str, Any] = {
                key: None if one is None else [one.low, one.high] for key, one in found.intervals().items()
            }
            if file is not None:
                own, said = AdaptiveAttack.on(file, runner, attacked, self.threads).measure(name)
                adaptive, adaptive_ends = adaptive_figures(own)
                figures, ends = {**figures, **adaptive}, {**ends, **adaptive_ends}
                figures["twin"] = said["twin"]["tensors"]
        return {"name": name, "images": len(self.test.images), **figures, "intervals": ends}


def main() -> None:
    """Measure what is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--build", type=Path, help="output folder of a build; default: the demo's, by 75 %%")
    parser.add_argument("--config", default="demo", help="without --build: whose network instead, e.g. smoke to try it")
    parser.add_argument("--data", type=Path, help="its data set, if it is no longer where it was")
    parser.add_argument("--steps", default="100,400")
    parser.add_argument("--lr", type=float, help="default: as of the build, a tenth of finetune.lr")
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--activations", default="uint8", choices=["uint8", "int8"])
    parser.add_argument("--images", type=int, help="test images; default: all")
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    about = {key: str(value) for key, value in vars(arguments).items() if key not in ("work", "steps", "control")}
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = arguments.work / "settings.json"
    if settings.is_file() and json.loads(settings.read_text()) != about:
        sys.exit(f"{settings}: {arguments.work} holds measurements of other settings; give another --work")
    settings.write_text(json.dumps(about))
    study = _study(arguments)
    rows = _rows(study, [int(steps) for steps in arguments.steps.split(",")], arguments.lr, arguments.control)
    print(f"\n{len(study.test.images)} images, PGD as of the build, {arguments.activations} activations\n")
    print("| | clean | PGD: of the network itself, or transfer | adaptive |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {' | '.join(_cell(row, name) for name in FIGURES)} |", flush=True)


def _study(arguments: argparse.Namespace) -> Study:
    progress = Progress()
    if arguments.build is None:
        config = load_config(arguments.config, [f"threads={arguments.threads}"]).with_divided_steps()
        with Store(arguments.store, progress.message) as store:
            source = all_networks(open_context(config, store, progress)).pruned.folder
    else:
        source = arguments.build
        results = json.loads((source / "results.json").read_text())
        config = validated(BuildConfig, results["configuration"], {}, str(source / "results.json"))
    data = arguments.data or Path(config.data.path)
    if arguments.data is None and config.data.path == "demo":
        data = composed_demo(arguments.store, progress)
    names = None
    if arguments.build is not None:
        names = json.loads((source / "bundle" / "bundle.json").read_text())["class_names"]
    training, test = load_splits(data, names, config.data.train_images, config.seed)
    if arguments.images is not None and arguments.images < len(test.images):
        test = measured_subset(test, arguments.images)
    return Study(arguments.work, config, source, training, test, arguments.activations, arguments.threads)


def _rows(study: Study, all_steps: list[int], lr: float | None, control: bool) -> Iterator[Mapping[str, Any]]:
    """Rows of the network, of its int8 file, and of what is trained; those that are in the file are read from it."""
    file = study.work / "rows.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    there = {row["name"]: row for row in map(json.loads, lines)}

    def row(name: str, path: Path | None) -> Mapping[str, Any]:
        if name not in there:
            there[name] = study.measure(name, path)
            with file.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(there[name]) + "\n")
        return there[name]

    yield row("fp32", None)
    calibrated, calibration = study.files(study.network(), "calibrated")
    yield row("int8", calibrated)
    for steps in all_steps:
        for name, source, kept in (
            (f"int8 after {steps} steps of QAT", calibrated, calibration),
            (f"int8 after {steps} steps without roundings", calibrated.with_name("fp32.onnx"), None),
        ):
            if kept is None and not control:
                continue
            if name in there:
                yield there[name]
                continue
            network = study.trained(source, steps, lr, name.replace(" ", "-"))
            yield row(name, study.files(network, name.replace(" ", "-"), kept)[0])


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, ends = row.get(name), row["intervals"].get(name)
    if value is None:
        return "-"
    return f"{value:.4f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


if __name__ == "__main__":
    main()
