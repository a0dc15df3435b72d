"""Batches for training (endless, by step, resumable at any step) and for measuring (in order, once).

Both letterbox with the function the device uses. A training step's batch depends on (seed, step) alone, so that
resuming, caching and worker processes change nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from prunedeploy.data.coco import CocoDataset, ImageRecord
from prunedeploy.data.reading import read_record
from prunedeploy.data.transforms import AugmentSettings, augment, clip_boxes, generator_for
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.letterbox import GREY, LetterboxGeometry, batch_to_input, letterbox, letterbox_boxes

CACHE_BYTES = 1 << 30
"""Letterboxed images are kept in memory if all of them, in every worker, fit into this many bytes."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Batch:
    """What one step trains or measures on.

    Attributes:
        images: ``(B, 3, H, W)`` float32 RGB in [0, 1], letterboxed.
        targets: ``(T, 6)`` float32: index of the image in the batch, class index, then centre x, centre y, width and
            height as fractions of the input's width and height. Without crowd boxes. T may be 0.
        image_ids: The JSON's id of each image.
        geometries: Where each image lies in the input; empty for training batches, which are augmented.
        skipped: Images that could not be used while this batch was made, and why.
    """

    images: Tensor
    targets: Tensor
    image_ids: list[int]
    geometries: list[LetterboxGeometry] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sample:
    """One letterboxed image, its boxes in input pixels, and its classes."""

    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    geometry: LetterboxGeometry


def load_sample(record: ImageRecord, input_size: tuple[int, int], greyscale: bool, colour: Colour) -> _Sample:
    """Read and letterbox one image; its crowd boxes and those that leave nothing in the input are left out.

    Raises:
        DataError: The image is missing, cannot be decoded, or has another size than the JSON says.
    """
    pixels = read_record(record, greyscale)
    image, geometry = letterbox(pixels, input_size, colour)
    wanted = ~record.iscrowd
    boxes = letterbox_boxes(record.boxes_xyxy[wanted], geometry).astype(np.float32)
    boxes, kept = clip_boxes(boxes, *input_size, min_area_kept=0.0, min_side_px=1e-3)
    return _Sample(image, boxes, record.class_ids[wanted][kept], geometry)


def make_targets(boxes: list[NDArray[np.float32]], classes: list[NDArray[np.int64]], size: tuple[int, int]) -> Tensor:
    """Return ``(T, 6)`` float32 targets, as in `Batch`, of boxes ``(n_i, 4)`` xyxy in input pixels per image."""
    counts = [len(entry) for entry in boxes]
    targets = np.empty((sum(counts), 6), np.float32)
    if len(targets):
        xyxy = np.concatenate(boxes)
        extent = np.array([size[1], size[0]], np.float32)
        targets[:, 0] = np.repeat(np.arange(len(boxes)), counts)
        targets[:, 1] = np.concatenate(classes)
        targets[:, 2:4] = (xyxy[:, :2] + xyxy[:, 2:]) / 2 / extent
        targets[:, 4:6] = (xyxy[:, 2:] - xyxy[:, :2]) / extent
    return torch.from_numpy(targets)


class StepDataset(Dataset[Batch]):
    """Maps a step to its batch; what worker processes hold.

    The images are an endless sequence: the permutation of epoch 0, of epoch 1, and so on; step ``s`` takes the
    positions from ``s * batch_size``. A batch may span two epochs.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        input_size: tuple[int, int],
        batch_size: int,
        seed: int,
        settings: AugmentSettings | None,
        greyscale: bool,
        colour: Colour,
        cached: bool,
    ) -> None:
        self.dataset = dataset
        self.input_size = input_size
        self.batch_size = batch_size
        self.seed = seed
        self.settings = settings
        self.greyscale = greyscale
        self.colour = colour
        self.cached = cached
        self.bad: dict[int, str] = {}
        self._samples: dict[int, _Sample] = {}
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, step: int) -> Batch:
        images, boxes, classes, ids = [], [], [], []
        skipped: dict[Path, str] = {}
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, place = divmod(position, len(self.dataset.images))
            order = self.order(epoch)
            index, sample = self.first_usable(order, place, skipped)
            image, image_boxes, image_classes = sample.image, sample.boxes_xyxy, sample.class_ids
            if self.settings is not None:
                # Keyed by the image whose turn it was: one that stands in for a bad one twice is drawn anew.
                rng = generator_for(self.seed, epoch, self.dataset.images[order[place]].image_id)
                image, image_boxes, image_classes = augment(
                    image, image_boxes, image_classes, rng, self.settings, self.colour
                )
            images.append(image)
            boxes.append(image_boxes)
            classes.append(image_classes)
            ids.append(self.dataset.images[index].image_id)
        pixels = torch.from_numpy(batch_to_input(images))
        return Batch(pixels, make_targets(boxes, classes, self.input_size), ids, skipped=skipped)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the permutation of one epoch; only the last one asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch], spawn_key=(1,)))
            self._order = epoch, rng.permutation(len(self.dataset.images))
        return self._order[1]

    def first_usable(self, order: NDArray[np.int64], place: int, skipped: dict[Path, str]) -> tuple[int, _Sample]:
        """Return the image at ``place``, or the next good one of the same epoch; note the bad ones."""
        for ahead in range(len(order)):
            index = int(order[(place + ahead) % len(order)])
            try:
                return index, self.sample(index)
            except DataError as error:
                self.bad[index] = error.what
                skipped[self.dataset.images[index].path] = error.what
        first, reason = next(iter(self.bad.items()))
        raise DataError(
            f"not one of the {len(order)} images can be used; the first: {self.dataset.images[first].path}: {reason}",
            self.dataset.json_path,
            "check the folder with `prunedeploy data coco`",
        )

    def sample(self, index: int) -> _Sample:
        """Return one letterboxed image, from memory if it is there."""
        if index in self.bad:  # not tried again: what a step sees must not depend on a file that comes back
            raise DataError(self.bad[index])
        sample = self._samples.get(index)
        if sample is None:
            sample = load_sample(self.dataset.images[index], self.input_size, self.greyscale, self.colour)
            if self.cached:
                self._samples[index] = sample
        return sample


class _Steps(Sampler[int]):
    """Counts from ``start`` for ever."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


class TrainingLoader:
    """Endless training batches.

    Every ``iter`` starts at ``start_step``; the batch of a step is the same whatever step was started from and
    however many workers there are.

    Attributes:
        skipped: Path and reason of every image that could not be used so far; its place is taken by the next good
            image, so that the batch size is kept.

    Args:
        dataset: What to train on.
        input_size: (height, width) of the network input.
        batch_size: Images per step.
        seed: Of order and augmentation.
        augment: What may happen to an image; None: nothing.
        workers: Processes that prepare batches; 0: this one.
        greyscale: Rec. 601 luma in all three channels.
        letterbox_colour: RGB of the padding, 0 to 255.
        start_step: First step of an iteration.
        cache_bytes: Budget for keeping letterboxed images in memory.

    Raises:
        DataError: While iterating: every image is bad. At once: the data set is empty.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        input_size: tuple[int, int],
        batch_size: int,
        seed: int,
        augment: AugmentSettings | None = None,
        workers: int = 0,
        greyscale: bool = False,
        letterbox_colour: Colour = GREY,
        start_step: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        _check_sizes(dataset, input_size, batch_size)
        if start_step < 0 or workers < 0 or seed < 0:
            raise ValueError(f"start_step, workers, seed must be >= 0, got {start_step}, {workers}, {seed}")
        if augment is not None and greyscale:
            augment = replace(augment, hue=0.0, saturation=1.0)  # grey has neither; and it stays exactly grey
        # Every worker holds its own copy.
        needed = len(dataset.images) * input_size[0] * input_size[1] * 3 * max(1, workers)
        self.batch_size = batch_size
        self.images_per_epoch = len(dataset.images)
        self.start_step = start_step
        self.workers = workers
        self.skipped: dict[Path, str] = {}
        self._steps = StepDataset(
            dataset, input_size, batch_size, seed, augment, greyscale, letterbox_colour, needed <= cache_bytes
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of one step, made in this process."""
        batch = self._steps[step]
        self.skipped.update(batch.skipped)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        if self.workers == 0:
            for step in _Steps(self.start_step):
                yield self.batch(step)
            return
        loader = DataLoader(
            self._steps,
            batch_size=None,  # a step is a whole batch already
            sampler=_Steps(self.start_step),
            num_workers=self.workers,
            collate_fn=_unchanged,
            worker_init_fn=_one_thread,
        )
        for batch in loader:
            self.skipped.update(batch.skipped)
            yield batch


def _unchanged(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class EvaluationLoader:
    """Every image once, in the order of the JSON, not augmented.

    Attributes:
        skipped: Path and reason of every image that could not be used; stays empty unless bad images are allowed.

    Args:
        dataset: What to measure on.
        input_size: (height, width) of the network input.
        batch_size: Images per batch; the last may be smaller, as may one with bad images in it.
        greyscale: Rec. 601 luma in all three channels.
        allow_bad_images: Leave out images that cannot be used instead of raising.
        letterbox_colour: RGB of the padding, 0 to 255.

    Raises:
        DataError: While iterating: a bad image, unless allowed; or every image is bad. At once: the data set is empty.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        input_size: tuple[int, int],
        batch_size: int,
        greyscale: bool = False,
        allow_bad_images: bool = False,
        letterbox_colour: Colour = GREY,
    ) -> None:
        _check_sizes(dataset, input_size, batch_size)
        self.dataset = dataset
        self.input_size = input_size
        self.batch_size = batch_size
        self.greyscale = greyscale
        self.allow_bad_images = allow_bad_images
        self.letterbox_colour = letterbox_colour
        self.skipped: dict[Path, str] = {}

    def __len__(self) -> int:
        """Return the number of batches, if no batch consists of bad images only."""
        return -(-len(self.dataset.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped.clear()
        records = self.dataset.images
        for start in range(0, len(records), self.batch_size):
            samples: list[_Sample] = []
            ids: list[int] = []
            skipped: dict[Path, str] = {}
            for record in records[start : start + self.batch_size]:
                try:
                    samples.append(load_sample(record, self.input_size, self.greyscale, self.letterbox_colour))
                    ids.append(record.image_id)
                except DataError as error:
                    if not self.allow_bad_images:
                        raise
                    skipped[record.path] = error.what
            self.skipped.update(skipped)
            if not samples:
                continue
            pixels = torch.from_numpy(batch_to_input([sample.image for sample in samples]))
            boxes, classes = [sample.boxes_xyxy for sample in samples], [sample.class_ids for sample in samples]
            targets = make_targets(boxes, classes, self.input_size)
            yield Batch(pixels, targets, ids, [sample.geometry for sample in samples], skipped)
        if len(self.skipped) == len(records):
            path, reason = next(iter(self.skipped.items()))
            raise DataError(
                f"not one of the {len(records)} images can be used; the first: {path}: {reason}",
                self.dataset.json_path,
                "check the folder with `prunedeploy data coco`",
            )


def _check_sizes(dataset: CocoDataset, input_size: tuple[int, int], batch_size: int) -> None:
    if not dataset.images:
        raise DataError("the data set has no images", dataset.json_path, "add images or use another split")
    if batch_size < 1 or min(input_size) < 1:
        raise ValueError(f"batch_size and input_size must be positive, got {batch_size} and {input_size}")
