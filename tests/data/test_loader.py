from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from prunedeploy.config import AugmentConfig
from prunedeploy.data import load_coco
from prunedeploy.data.loader import EvaluationLoader, TrainingLoader
from prunedeploy_engines.detection.letterbox import GREY
from prunedeploy_engines.errors import DataError

SIZE = (64, 64)


@pytest.fixture
def train(coco_folder):
    return load_coco(coco_folder / "train.json", coco_folder / "train")


def take(loader, count):
    iterator = iter(loader)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close() if hasattr(iterator, "close") else None


def assert_same(left, right):
    assert [batch.image_ids for batch in left] == [batch.image_ids for batch in right]
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


def test_a_batch_holds_letterboxed_pixels_and_normalised_targets(train):
    (batch,) = EvaluationLoader(train, (64, 64), 100)
    assert batch.images.shape == (10, 3, 64, 64)
    assert batch.images.dtype == batch.targets.dtype == torch.float32
    # 48 x 64 in 64 x 64: scale 1, 8 rows of padding above and below.
    with Image.open(train.images[3].path) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    assert torch.equal(batch.images[3, :, 8:56], pixels)
    padding = torch.tensor(GREY) / 255
    assert torch.equal(batch.images[3, :, 0, 0], padding)
    # xywh (4, 6, 20, 10): centre (14, 11 + 8); and (30, 20, 16, 24): centre (38, 32 + 8).
    expected = [[3, 0, 14 / 64, 19 / 64, 20 / 64, 10 / 64], [3, 1, 38 / 64, 40 / 64, 16 / 64, 24 / 64]]
    torch.testing.assert_close(batch.targets[batch.targets[:, 0] == 3], torch.tensor(expected))
    assert batch.image_ids == list(range(100, 110))
    assert (batch.geometries[3].pad_left, batch.geometries[3].pad_top) == (0, 8)


def test_training_without_augmentation_gives_the_pixels_of_evaluation(train):
    (measured,) = EvaluationLoader(train, SIZE, 10)
    (trained,) = take(TrainingLoader(train, SIZE, 10, seed=3), 1)
    assert sorted(trained.image_ids) == measured.image_ids
    for place, image_id in enumerate(trained.image_ids):
        assert torch.equal(trained.images[place], measured.images[measured.image_ids.index(image_id)])


def test_every_epoch_is_another_permutation(train):
    ids = [image_id for batch in take(TrainingLoader(train, SIZE, 4, seed=0), 10) for image_id in batch.image_ids]
    epochs = [ids[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(100, 110)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_bit_identical_with_workers_and_after_resuming(train, workers):
    def make(**more):
        return TrainingLoader(train, SIZE, 3, seed=7, augment=AugmentConfig(), **more)

    straight = take(make(), 8)
    assert_same(take(make(workers=workers), 8), straight)
    assert_same(take(make(workers=workers, start_step=5), 3), straight[5:])
    assert_same(take(make(start_step=5), 3), straight[5:])
    assert_same(take(make(cache_bytes=0), 8), straight)
    loader = make()
    assert_same([loader.batch(step) for step in (6, 2)], [straight[6], straight[2]])


def test_the_seed_changes_order_and_augmentation(train):
    (first,) = take(TrainingLoader(train, SIZE, 10, seed=1, augment=AugmentConfig()), 1)
    (second,) = take(TrainingLoader(train, SIZE, 10, seed=2, augment=AugmentConfig()), 1)
    assert first.image_ids != second.image_ids
    place = second.image_ids.index(first.image_ids[0])
    assert not torch.equal(first.images[0], second.images[place])


def test_augmented_targets_lie_inside_the_input(train):
    for batch in take(TrainingLoader(train, SIZE, 5, seed=1, augment=AugmentConfig()), 10):
        centre, extent = batch.targets[:, 2:4], batch.targets[:, 4:6]
        assert (centre - extent / 2).min() >= -1e-6
        assert (centre + extent / 2).max() <= 1 + 1e-6
        assert extent.min() > 0
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1


def test_crowd_boxes_are_no_targets_and_images_without_boxes_are_used(coco_folder, edit_json):
    def change(document):
        document["annotations"][0]["iscrowd"] = 1
        document["annotations"] = document["annotations"][:2]

    edit_json(coco_folder / "train.json", change)
    dataset = load_coco(coco_folder / "train.json", coco_folder / "train")
    (batch,) = EvaluationLoader(dataset, SIZE, 10)
    assert batch.targets[:, :2].tolist() == [[0, 1]]
    empty = EvaluationLoader(dataset, SIZE, 5)
    assert list(empty)[1].targets.shape == (0, 6)


def test_bad_images_are_counted_named_and_replaced_in_training(train):
    missing, corrupt = train.images[2].path, train.images[5].path
    missing.unlink()
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    for workers in (0, 2):
        loader = TrainingLoader(train, SIZE, 4, seed=0, augment=AugmentConfig(), workers=workers)
        batches = take(loader, 5)
        assert all(len(batch.image_ids) == len(batch.images) == 4 for batch in batches)
        assert set(loader.skipped) == {missing, corrupt}
        assert all(loader.skipped.values())
        counts = Counter(image_id for batch in batches for image_id in batch.image_ids)
        assert 102 not in counts
        assert 105 not in counts
        assert sum(counts.values()) == 20
        if workers == 0:
            straight = batches
        else:
            assert_same(batches, straight)


def test_a_stand_in_is_augmented_differently_from_the_image_itself(train):
    train.images[2].path.unlink()
    (batch,) = take(TrainingLoader(train, SIZE, 10, seed=0, augment=AugmentConfig()), 1)
    twice = Counter(batch.image_ids).most_common(1)[0]
    assert twice[1] == 2
    first, second = (place for place, image_id in enumerate(batch.image_ids) if image_id == twice[0])
    assert not torch.equal(batch.images[first], batch.images[second])


@pytest.mark.parametrize("workers", [0, 1])
def test_all_images_bad_is_an_error(train, workers):
    for image in train.images:
        image.path.write_bytes(b"no image")
    with pytest.raises(DataError, match="not one of the 10 images") as caught:
        take(TrainingLoader(train, SIZE, 4, seed=0, workers=workers), 1)
    assert caught.value.where == str(train.json_path)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match="not one of the 10 images"):
        list(EvaluationLoader(train, SIZE, 4, allow_bad_images=True))


def test_a_bad_image_stops_a_measurement_unless_allowed(train):
    bad = train.images[9].path
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"109\.png"):
        list(EvaluationLoader(train, SIZE, 4))
    loader = EvaluationLoader(train, SIZE, 4, allow_bad_images=True)
    batches = list(loader)
    assert [len(batch.image_ids) for batch in batches] == [4, 4, 1]
    assert len(loader) == 3
    assert list(loader.skipped) == [bad]


def test_an_image_of_another_size_than_the_json_says_is_bad(train):
    Image.new("RGB", (64, 40)).save(train.images[0].path)
    with pytest.raises(DataError, match=r"64 x 40 .* 64 x 48 for image 100"):
        list(EvaluationLoader(train, SIZE, 4))


def test_greyscale_batches_have_three_equal_channels(train):
    loaders = [
        TrainingLoader(train, SIZE, 10, seed=0, augment=AugmentConfig(), greyscale=True),
        EvaluationLoader(train, SIZE, 10, greyscale=True),
    ]
    for loader in loaders:
        (batch,) = take(loader, 1)
        assert torch.equal(batch.images[:, 0], batch.images[:, 1])
        assert torch.equal(batch.images[:, 0], batch.images[:, 2])
    with Image.open(train.images[0].path) as image:
        luma = np.array(image) @ np.array([0.299, 0.587, 0.114])  # Rec. 601
    np.testing.assert_allclose(batch.images[0, 0, 8:56].numpy() * 255, luma, atol=0.51)


def test_batches_for_a_grey_network_have_the_one_channel_of_grey_ones(train):
    for make in (
        lambda **kind: TrainingLoader(train, SIZE, 10, seed=0, augment=AugmentConfig(), **kind),
        lambda **kind: TrainingLoader(train, SIZE, 10, seed=0, **kind),
        lambda **kind: EvaluationLoader(train, SIZE, 10, **kind),
    ):
        (one,), (three,) = take(make(channels=1), 1), take(make(greyscale=True), 1)
        assert one.images.shape == (10, 1, 64, 64)
        assert torch.equal(one.images, three.images[:, :1])
        assert torch.equal(one.targets, three.targets)


def test_stretched_batches_have_plainly_resized_pixels_and_boxes_as_fractions_of_the_image(train):
    size = (32, 96)
    (measured,) = EvaluationLoader(train, size, 10, stretch=True)
    (trained,) = take(TrainingLoader(train, size, 10, seed=3, stretch=True), 1)
    for batch in (measured, trained):
        place = batch.image_ids.index(train.images[3].image_id)
        with Image.open(train.images[3].path) as image:
            plain = np.asarray(image.resize((96, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), plain.astype(np.float32) / np.float32(255))
        # xywh (4, 6, 20, 10) and (30, 20, 16, 24) of an image of 64 x 48: of whatever size it is made.
        expected = [[0, 14 / 64, 11 / 48, 20 / 64, 10 / 48], [1, 38 / 64, 32 / 48, 16 / 64, 24 / 48]]
        torch.testing.assert_close(batch.targets[batch.targets[:, 0] == place][:, 1:], torch.tensor(expected))


def test_nonsense_arguments_are_refused(train):
    with pytest.raises(ValueError, match="positive"):
        TrainingLoader(train, SIZE, 0, seed=0)
    with pytest.raises(ValueError, match=">= 0"):
        TrainingLoader(train, SIZE, 1, seed=0, start_step=-1)
    train.images.clear()
    with pytest.raises(DataError, match="no images"):
        EvaluationLoader(train, SIZE, 1)
