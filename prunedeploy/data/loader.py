"""Batches for training (endless, by step, resumable at any step) and for measuring (in order, once).

Both letterbox with the function the device uses. A training step's batch depends on (seed, step) alone, so
that resuming, caching and worker processes change nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunedeploy.config import AugmentConfig
from prunedeploy.data.batches import Batch, Colour, Sample, load_sample, make_targets
from prunedeploy.data.draws import generator_for
from prunedeploy.data.records import CocoDataset
from prunedeploy.data.transforms import augment
from prunedeploy_engines.detection.letterbox import GREY, batch_to_input, unit_pixels
from prunedeploy_engines.errors import DataError

__all__ = ["CACHE_BYTES", "Batch", "EvaluationLoader", "TrainingLoader"]

CACHE_BYTES = 1 << 30
"""Letterboxed images are kept in memory if all of them, in every worker, fit into this many bytes."""


@dataclass(eq=False)
class StepDataset(Dataset[Batch]):
    """Maps a step to its batch; what worker processes hold.

    The images are an endless sequence: the permutation of epoch 0, of epoch 1, and so on; step ``s`` takes
    the positions from ``s * batch_size``. A batch may span two epochs.
    """

    dataset: CocoDataset
    input_size: tuple[int, int]
    batch_size: int
    seed: int
    settings: AugmentConfig | None
    greyscale: bool
    colour: Colour
    cached: bool
    channels: int = 3
    stretch: bool = False
    bad: dict[int, str] = field(default_factory=dict)
    _samples: dict[int, Sample] = field(default_factory=dict)
    _order: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, step: int) -> Batch:
        stored: list[NDArray[np.uint8]] = []  # (H, W, 3) each, or, if augmented,
        planes: list[Tensor] = []  # (3, H, W) each
        boxes, classes, ids = [], [], []
        skipped: dict[Path, str] = {}
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, place = divmod(position, len(self.dataset.images))
            order = self.order(epoch)
            index, sample = self.first_usable(order, place, skipped)
            image_boxes, image_classes = sample.boxes_xyxy, sample.class_ids
            if self.settings is None:
                stored.append(sample.image)
            else:
                # Keyed by the image whose turn it was: one that stands in for a bad one twice is drawn anew.
                rng = generator_for(self.seed, epoch, self.dataset.images[order[place]].image_id)
                image, image_boxes, image_classes = augment(
                    sample.image, image_boxes, image_classes, rng, self.settings, self.colour
                )
                planes.append(image)
            boxes.append(image_boxes)
            classes.append(image_classes)
            ids.append(self.dataset.images[index].image_id)
        pixels = torch.from_numpy(unit_pixels(torch.stack(planes).numpy()) if planes else batch_to_input(stored))
        pixels = pixels[:, : self.channels].contiguous()
        return Batch(pixels, make_targets(boxes, classes, self.input_size), ids, skipped=skipped)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the permutation of one epoch; only the last one asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch], spawn_key=(1,)))
            self._order = epoch, rng.permutation(len(self.dataset.images))
        return self._order[1]

    def first_usable(self, order: NDArray[np.int64], place: int, skipped: dict[Path, str]) -> tuple[int, Sample]:
        """Return the image at ``place``, or the next good one of the same epoch; note the bad ones."""
        for ahead in range(len(order)):
            index = int(order[(place + ahead) % len(order)])
            try:
                return index, self.sample(index)
            except DataError as error:
                self.bad[index] = error.what
                skipped[self.dataset.images[index].path] = error.what
        reasons = {self.dataset.images[index].path: reason for index, reason in self.bad.items()}
        raise _nothing_usable(self.dataset, reasons)

    def sample(self, index: int) -> Sample:
        """Return one letterboxed image, from memory if it is there."""
        if index in self.bad:  # not tried again: what a step sees must not depend on a file that comes back
            raise DataError(self.bad[index])
        sample = self._samples.get(index)
        if sample is None:
            sample = load_sample(self.dataset.images[index], self.input_size, self.greyscale, self.colour, self.stretch)
            if self.cached:
                self._samples[index] = sample
        return sample


class TrainingLoader:
    """Endless training batches.

    Every ``iter`` starts at ``start_step``; the batch of a step is the same whatever step was started from
    and however many workers there are.

    Attributes:
        skipped: Path and reason of every image that could not be used so far; its place is taken by the next
            good image, so that the batch size is kept.

    Args:
        dataset: What to train on.
        input_size: (height, width) of the network input.
        batch_size: Images per step.
        seed: Seed of order and augmentation.
        augment: What may happen to an image; None: nothing.
        workers: Processes that prepare batches; 0: this one.
        greyscale: Rec. 601 luma in all three channels.
        letterbox_colour: RGB of the padding, 0 to 255.
        start_step: First step of an iteration.
        cache_bytes: Budget for keeping letterboxed images in memory.
        channels: Channels of a batch: 3, or 1 for a grey network.
        stretch: Stretch images to the input instead of letterboxing them.

    Raises:
        DataError: While iterating: every image is bad. At once: the data set is empty.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        input_size: tuple[int, int],
        batch_size: int,
        seed: int,
        augment: AugmentConfig | None = None,
        workers: int = 0,
        greyscale: bool = False,
        letterbox_colour: Colour = GREY,
        start_step: int = 0,
        cache_bytes: int = CACHE_BYTES,
        channels: int = 3,
        stretch: bool = False,
    ) -> None:
        _check_sizes(dataset, input_size, batch_size)
        if start_step < 0 or workers < 0 or seed < 0:
            raise ValueError(f"start_step, workers, seed must be >= 0, got {start_step}, {workers}, {seed}")
        greyscale = greyscale or channels == 1
        if augment is not None and greyscale:
            # Grey has neither; and it stays exactly grey.
            augment = augment.model_copy(update={"hue": 0.0, "saturation": 1.0})
        # Every worker holds its own copy.
        needed = len(dataset.images) * input_size[0] * input_size[1] * 3 * max(1, workers)
        self.batch_size = batch_size
        self.images_per_epoch = len(dataset.images)
        self.start_step = start_step
        self.workers = workers
        self.skipped: dict[Path, str] = {}
        self._steps = StepDataset(
            dataset,
            input_size,
            batch_size,
            seed,
            augment,
            greyscale,
            letterbox_colour,
            needed <= cache_bytes,
            channels,
            stretch,
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of one step, made in this process."""
        batch = self._steps[step]
        self.skipped.update(batch.skipped)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        if self.workers == 0:
            for step in count(self.start_step):
                yield self.batch(step)
            return
        loader: DataLoader[Batch | DataError] = DataLoader(
            _InWorker(self._steps),
            batch_size=None,  # a step is a whole batch already
            sampler=count(self.start_step),
            num_workers=self.workers,
        )
        made = iter(loader)
        try:
            while True:
                batch = next(made)
                if isinstance(batch, DataError):
                    raise batch
                self.skipped.update(batch.skipped)
                yield batch
        finally:
            del made  # ends the workers now, not when somebody drops the error's traceback


class _InWorker(Dataset["Batch | DataError"]):
    """Hands an error over as a value: torch would turn it into another one whose text is a traceback."""

    def __init__(self, steps: StepDataset) -> None:
        self.steps = steps

    def __getitem__(self, step: int) -> Batch | DataError:
        try:
            return self.steps[step]
        except DataError as error:
            return error


@dataclass(eq=False)
class EvaluationLoader:
    """Every image once, in the order of the JSON, not augmented.

    Attributes:
        skipped: Path and reason of every image that could not be used; stays empty unless bad images are
            allowed.

    Args:
        dataset: What to measure on.
        input_size: (height, width) of the network input.
        batch_size: Images per batch; the last may be smaller, as may one with bad images in it.
        greyscale: Rec. 601 luma in all three channels.
        allow_bad_images: Leave out images that cannot be used instead of raising.
        letterbox_colour: RGB of the padding, 0 to 255.
        channels: Channels of a batch: 3, or 1 for a grey network.
        stretch: Stretch images to the input instead of letterboxing them.

    Raises:
        DataError: While iterating: a bad image, unless allowed; or every image is bad. At once: the data set
            is empty.
    """

    dataset: CocoDataset
    input_size: tuple[int, int]
    batch_size: int
    greyscale: bool = False
    allow_bad_images: bool = False
    letterbox_colour: Colour = GREY
    channels: int = 3
    stretch: bool = False
    skipped: dict[Path, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        _check_sizes(self.dataset, self.input_size, self.batch_size)
        self.greyscale = self.greyscale or self.channels == 1

    def __len__(self) -> int:
        """Return the number of batches, if no batch consists of bad images only."""
        return -(-len(self.dataset.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped.clear()
        records = self.dataset.images
        usable = 0
        for start in range(0, len(records), self.batch_size):
            samples: list[Sample] = []
            ids: list[int] = []
            skipped: dict[Path, str] = {}
            for record in records[start : start + self.batch_size]:
                try:
                    samples.append(
                        load_sample(record, self.input_size, self.greyscale, self.letterbox_colour, self.stretch)
                    )
                    ids.append(record.image_id)
                except DataError as error:
                    if not self.allow_bad_images:
                        raise
                    skipped[record.path] = error.what
            self.skipped.update(skipped)
            usable += len(samples)
            if samples:
                images = [sample.image[..., : self.channels] for sample in samples]
                pixels = torch.from_numpy(batch_to_input(images))
                boxes, classes = [sample.boxes_xyxy for sample in samples], [sample.class_ids for sample in samples]
                targets = make_targets(boxes, classes, self.input_size)
                yield Batch(pixels, targets, ids, [sample.geometry for sample in samples], skipped)
        if usable == 0:
            raise _nothing_usable(self.dataset, self.skipped)


def _nothing_usable(dataset: CocoDataset, reasons: dict[Path, str]) -> DataError:
    path, reason = next(iter(reasons.items()))
    return DataError(
        f"not one of the {len(dataset.images)} images can be used; the first: {path}: {reason}",
        dataset.json_path,
        "check the folder with `prunedeploy data check`",
    )


def _check_sizes(dataset: CocoDataset, input_size: tuple[int, int], batch_size: int) -> None:
    if not dataset.images:
        raise DataError("the data set has no images", dataset.json_path, "add images or use another split")
    if batch_size < 1 or min(input_size) < 1:
        raise ValueError(f"batch_size and input_size must be positive, got {batch_size} and {input_size}")
