"""What the stages of one build share: configuration, data, device, store."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from prunedeploy.config import BUNDLED, BuildConfig, TrainingConfig, result_settings
from prunedeploy.data import CocoDataset, content_key, find_splits, measured_subset
from prunedeploy.data.demo import DemoSettings, holds_demo, write_demo
from prunedeploy.data.left_out import left_out, said_in_one_line
from prunedeploy.data.loader import EvaluationLoader, TrainingLoader
from prunedeploy.data.recognise import Splits
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.cfg_notes import cfg_notes
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.starting_network import StartingNetwork, class_names_known, given_cfg, starting_network
from prunedeploy.pipeline.store.key import StageKey, read_record
from prunedeploy.pipeline.store.store import Store
from prunedeploy.training.distributed import is_main_process, start_process_group, world
from prunedeploy_engines.errors import ConfigError, DataError
from prunedeploy_engines.locks import FileLock


@dataclass
class StageResult:
    """A result in the store, or one that is missing and being computed.

    Attributes:
        name: Name of the stage.
        folder: Where its files are, or will be.
        digest: Digest of its key; what later stages take as their input.
        computed: False if it was there already.
        seconds: What computing it took; 0 until it is known.
        work: Where its files are to be written by whoever computes it; None if there is nothing to compute.
        checkpoints: Folder for checkpoints meanwhile; it outlives a killed process.
    """

    name: str
    folder: Path
    digest: str
    computed: bool = False
    seconds: float = 0.0
    work: Path | None = None
    checkpoints: Path | None = None

    def read(self, name: str) -> Any:
        """The content of one of its JSON files."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write(self, name: str, document: Any) -> None:
        """Write one of them, while the result is computed."""
        assert self.work is not None, "the result is there already"
        (self.work / name).write_text(json.dumps(document, indent=2))


@dataclass
class BuildContext:
    """Everything that a stage may read.

    Attributes:
        config: The build's configuration.
        store: Where results are kept.
        progress: Where long work says how far it is.
        device: Where the network is trained.
        threads: Threads of PyTorch on the CPU, resolved.
        network: What the build starts from; its cfg has the input size, classes and anchors of the build.
        training: Training images.
        test: Test images.
        training_key: Content of the training images; ``test_key`` of the test images.
        results: Results of this build's stages, in their order.
    """

    config: BuildConfig
    store: Store
    progress: Progress
    device: torch.device
    threads: int
    network: StartingNetwork
    training: CocoDataset
    test: CocoDataset
    training_key: str
    test_key: str
    results: list[StageResult] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """Class names of the network, in the order of its scores."""
        return self.network.class_names

    @property
    def attacked(self) -> CocoDataset:
        """The test images that ``robustness`` attacks and corrupts; some of them if it says how many."""
        images = self.config.robustness.images
        return self.test if images is None or images >= len(self.test.images) else measured_subset(self.test, images)

    @contextmanager
    def stage(
        self,
        name: str,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        machine: str | None = None,
        collective: bool = False,
    ) -> Iterator[StageResult]:
        """Look a stage's result up; where the store does not have it, the block is to compute it.

        For example::

            with context.stage("score", 2, settings, inputs) as result:
                if result.work:
                    save_scores(result.work / "scores.safetensors", magnitude_scores(model))
            return result

        Under a launcher with several processes the first one computes; a collective stage is computed by all of
        them together, of which only the first one's files count.

        Args:
            name: Name of the stage.
            version: Raised whenever its code changes its result.
            config: The settings it reads.
            inputs: Digests of what it reads.
            machine: `machine_id` for a measurement.
            collective: All processes take part, i.e. a training.
        """
        key = StageKey(name, version, config, inputs, machine)
        result = StageResult(name, self.store.folder(key), key.digest)
        several = world()[1] > 1
        with ExitStack() as stack:
            missing = torch.tensor([several and not self.store.has(key)])
            if several:
                dist.broadcast(missing, 0)
            if is_main_process():
                result.work = stack.enter_context(self.store.computing(key, name))
                result.computed = result.work is not None
            elif collective and bool(missing):
                result.work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if result.work is not None:
                result.checkpoints = self.store.checkpoint_dir(key)
            yield result
        result.work = result.checkpoints = None
        if several:
            dist.barrier()
            self.store.load(key)
        result.seconds = float(read_record(result.folder)["seconds"])
        self.results.append(result)

    def training_settings(self) -> dict[str, Any]:
        """What every training's result depends on beside its own block."""
        return {
            "seed": self.config.seed,
            "threads": self.threads,
            "device": self.device.type,
            "processes": world()[1],
            "greyscale": self.config.data.greyscale,
        }

    def measuring_settings(self) -> dict[str, Any]:
        """What every measurement of mAP under attacks or corruptions depends on beside its own block."""
        return {
            "evaluation": result_settings(self.config.evaluation),
            "seed": self.config.seed,
            "device": self.device.type,
            "greyscale": self.config.data.greyscale,
            "allow_bad_images": self.config.data.allow_bad_images,
        }

    def loader(self, block: TrainingConfig, cfg: DarknetCfg, clean: bool = False) -> TrainingLoader:
        """Batches of a training block."""
        data = self.config.data
        # A clean and a robust training of one seed must not see the same draws in the same order.
        seed = self.config.seed * 2 + int(clean)
        return TrainingLoader(
            self.training,
            cfg.input_size,
            block.batch_size,
            seed,
            block.augment,
            data.workers,
            data.greyscale,
            cache_bytes=data.cache_mb << 20,
            channels=cfg.input_shape[0],
            stretch=not cfg.letterbox,
        )

    def evaluation_loader(
        self, dataset: CocoDataset, network: Darknet, batch_size: int, allow_bad_images: bool = False
    ) -> EvaluationLoader:
        """Letterboxed (or stretched) images of a data set, not augmented.

        Bad ones are left out if the configuration says so too.
        """
        data, cfg = self.config.data, network.cfg
        allowed = allow_bad_images or data.allow_bad_images
        return EvaluationLoader(
            dataset,
            cfg.input_size,
            batch_size,
            data.greyscale,
            allowed,
            channels=cfg.input_shape[0],
            stretch=not cfg.letterbox,
        )


def open_context(config: BuildConfig, store: Store, progress: Progress) -> BuildContext:
    """Resolve device and threads, read the data, and check that it fits the network.

    Raises:
        ConfigError: CUDA was asked for but is not available, or the class names do not fit the network.
        DataError: The data cannot be used.
        DarknetFormatError: The cfg cannot be used.
    """
    device = training_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    start_process_group(device)
    cfg = given_cfg(config)
    names = class_names_known(config, cfg)
    folder = _data_folder(config, store, progress)
    pretrain = config.pretrain
    # Before the data is divided: how long transfer training is follows only from what the data has.
    splits = find_splits(folder)
    _check_training_split(folder, splits, _trains(config, pretrain.clean_steps if pretrain.start == "scratch" else 0))
    training, test, network = starting_network(config, cfg, names, folder)
    trains = _trains(config, network.clean_steps(pretrain))
    _check_training_split(folder, splits, trains)
    if is_main_process() and (lost := said_in_one_line(left_out(training, test))):
        progress.message(f"data: {lost} (`prunedeploy data check {folder}` names them)")
    if not training.images or not test.images:
        raise DataError("has no images for training or none for test", folder, "add images")
    if trains and all(record.iscrowd.all() for record in training.images):
        what = f"not one of the {len(training.images)} training images has a box to learn from"
        raise DataError(what, training.json_path, "add their annotations")
    for line in (*cfg_notes(cfg), *network.said(pretrain)) if is_main_process() else ():
        progress.message(line)
    count = config.data.eval_images
    if count is not None and count < len(test.images):
        test = measured_subset(test, count)
    keys, threads = (content_key(training), content_key(test)), torch.get_num_threads()
    return BuildContext(config, store, progress, device, threads, network, training, test, *keys)


def load_stage_model(folder: Path) -> Darknet:
    """The network that a stage has written as ``model.cfg`` and ``model.weights``."""
    return load_darknet(folder / "model.cfg", folder / "model.weights")


def training_device(config: BuildConfig) -> torch.device:
    """Where a configuration trains in this process; stages have the type of it in their keys.

    Raises:
        ConfigError: CUDA was asked for but is not available.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ConfigError("CUDA was asked for but is not available", "device", "use --set device=cpu")
    if config.device == "cpu" or not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _check_training_split(folder: Path, splits: Splits, trains: bool) -> None:
    """Refuse to train on a part of a test split: `evaluate` takes all of it."""
    if trains and splits.test is not None and splits.train is None:
        raise DataError("has images for test and none for training", folder, "add the training split")


def _trains(config: BuildConfig, clean_steps: int) -> bool:
    """Whether any training takes a step; ``clean_steps`` are those of the original."""
    pretrain = config.pretrain
    first = clean_steps + (0 if pretrain.start == "bundled" else pretrain.steps)
    optimising = config.score_optimization.steps if config.optimises_scores and config.ratio > 0 else 0
    return first + optimising + config.finetune.steps + config.export.int8.qat.steps > 0


def _data_folder(config: BuildConfig, store: Store, progress: Progress) -> Path:
    if config.data.path != BUNDLED:
        return Path(config.data.path)
    if is_main_process():
        # Composing replaces the folder: of two builds that start at once, the second one waits and finds it.
        with FileLock(store.root / "locks" / "demo-data"):
            for leftover in store.root.parent.glob(f".{store.root.name}-demo-data.*.tmp"):  # of a killed build
                shutil.rmtree(leftover, ignore_errors=True)
            composed_demo(store.root, progress)
    if world()[1] > 1:
        dist.barrier()
    return composed_demo(store.root, progress)


def composed_demo(store: Path, progress: Progress) -> Path:
    """The folder of the demo set beside a store, composed unless it is there."""
    folder, settings = store.parent / f"{store.name}-demo-data", DemoSettings()
    if not holds_demo(folder, settings):
        with progress.task("compose the demo set", settings.train_scenes + settings.test_scenes) as advance:
            write_demo(folder, settings, lambda done: advance(1))
    return folder
