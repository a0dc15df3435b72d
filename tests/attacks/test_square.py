"""Square against the paper's algorithms image by image, in plain Python, and its promises."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prunedeploy.attacks import Noise
from prunedeploy.attacks.answer_margins import from_scores, objects_of
from prunedeploy.attacks.checks import check_invariants
from prunedeploy.attacks.square import Loss, Searched, Square, area_at
from prunedeploy.evaluation import TorchRunner

Value = Callable[[NDArray[np.float64]], float]
SHAPE = (3, 20, 20)
WEIGHTS = np.random.default_rng(5).normal(size=SHAPE)


def images_of(count: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    """Multiples of 1/255, as photos have them."""
    levels = np.random.default_rng(0).integers(0, 256, (count, *shape))
    return (levels / np.float32(255)).astype(np.float32)


def wavy(image: NDArray[np.float64]) -> float:
    """Has no gradient worth following, and many minima."""
    along = float((image.astype(np.float64) * WEIGHTS).sum())
    return along + 3 * float(np.sin(along))


def loss_of(value: Value, lost_below: float = -np.inf, asked: list[list[int]] | None = None) -> Loss:
    """Each image's value; notes who was asked about."""

    def loss(images, indices):
        if asked is not None:
            asked.append(indices.tolist())
        values = np.array([value(image) for image in images])
        return values, values < lost_below

    return loss


def generator_of(image: NDArray[np.float32], seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(image.tobytes())))


def shares(queries: int, first: float) -> list[float]:
    """The supplement's schedule for 10,000 queries, for fewer: p for each window."""
    found = []
    for step in range(queries - 1):
        at, share = step * 10_000 // queries, first
        for boundary in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            if at > boundary:
                share /= 2
        found.append(share)
    return found


def algorithm_1_linf(
    image: NDArray[np.float32], value: Value, eps: float, queries: int, seed: int, first: float
) -> tuple[NDArray[np.float64], float]:
    """Algorithms 1 and 2 for one image, pixel by pixel."""
    random, (channels, height, width) = generator_of(image, seed), image.shape
    best = image.astype(np.float64)
    signs = random.choice([-1, 1], (channels, 1, width))
    for channel in range(channels):
        for column in range(width):
            for row in range(height):
                moved = best[channel, row, column] + eps * signs[channel, 0, column]
                best[channel, row, column] = min(1.0, max(0.0, moved))
    lowest = value(best)
    for share in shares(queries, first):
        side = max(1, round((share * height * width) ** 0.5))
        top, left = int(random.integers(0, height - side + 1)), int(random.integers(0, width - side + 1))
        tried, changed = best.copy(), False
        while not changed:
            signs = random.choice([-1, 1], (channels, 1, 1))
            for channel in range(channels):
                for row in range(top, top + side):
                    for column in range(left, left + side):
                        moved = float(image[channel, row, column]) + eps * signs[channel, 0, 0]
                        tried[channel, row, column] = min(1.0, max(0.0, moved))
            changed = float(np.abs(tried - best).max()) >= 1e-7
        if value(tried) < lowest:
            best, lowest = tried, value(tried)
    return best, lowest


def bump(side: int, random: np.random.Generator, channels: int) -> NDArray[np.float64]:
    """Equation 2 of the paper and its supplement: eta, of one side, with a sign for each channel."""

    def half(height: int) -> NDArray[np.float64]:
        found = np.zeros((height, side))
        for row in range(height):
            for column in range(side):
                # In how many of the nested squares around the middle the pixel is: the n-th adds 1 / n^2.
                rings = max(abs(row - height // 2), abs(column - side // 2))
                last = max(height // 2 + 1, side // 2 + 1)
                found[row, column] = sum(1 / (n + 1) ** 2 for n in range(rings, last))
        return found / np.linalg.norm(found)

    whole = np.concatenate([half(side // 2), -half(side - side // 2)]) if side > 1 else -half(1)
    whole /= np.linalg.norm(whole)
    if random.random() > 0.5:
        whole = whole.T
    return whole * random.choice([-1, 1], (channels, 1, 1))


def algorithm_1_l2(
    image: NDArray[np.float32], value: Value, eps: float, queries: int, seed: int, first: float
) -> tuple[NDArray[np.float64], float]:
    """Algorithms 1 and 3 for one image."""
    random, (channels, height, width) = generator_of(image, seed), image.shape
    clean = image.astype(np.float64)
    side = height // 5
    delta = np.zeros(image.shape)
    for row in range(5):
        for column in range(5):
            place = np.s_[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            delta[place] = bump(side, random, channels)
    best = np.clip(clean + eps * delta / np.linalg.norm(delta), 0, 1)
    lowest = value(best)
    for share in shares(queries, first):
        side = max(3, round((share * height * width) ** 0.5))
        side += 1 - side % 2
        corners = [[int(random.integers(0, size - side + 1)) for size in (height, width)] for _ in range(2)]
        one, other = (np.s_[:, top : top + side, left : left + side] for top, left in corners)
        delta = best - clean
        budget = max(0.0, eps**2 - float((delta**2).sum()))  # what clipping has left
        new = bump(side, random, channels)
        for channel in range(channels):
            union = np.zeros((height, width), np.bool_)
            union[one[1:]] = union[other[1:]] = True
            own = delta[channel][one[1:]]
            direction = new[channel] + own / (1e-10 + np.linalg.norm(own))
            length = np.sqrt((delta[channel][union] ** 2).sum() + budget / channels)
            new[channel] = direction / np.linalg.norm(direction) * length
        delta[other] = 0
        delta[one] = new
        tried = np.clip(clean + eps * delta / np.linalg.norm(delta), 0, 1)
        if value(tried) < lowest:
            best, lowest = tried, value(tried)
    return best, lowest


@pytest.mark.parametrize("queries", [1, 2, 7, 60, 250])
@pytest.mark.parametrize(
    ("norm", "eps", "area", "reference"),
    [("linf", 0.05, 0.05, algorithm_1_linf), ("linf", 0.05, 0.8, algorithm_1_linf), ("l2", 1.5, 0.1, algorithm_1_l2)],
)
def test_square_is_the_papers_algorithm(norm, eps, area, reference, queries):
    images = images_of(3)
    found = Square(eps, queries, norm, area, seed=7)(images, loss_of(wavy))
    assert found.queries.tolist() == [queries] * 3
    for image, ours, loss in zip(images, found.images, found.losses, strict=True):
        expected, lowest = reference(image, wavy, eps, queries, 7, area)
        assert np.abs(ours - expected).max() < 1e-5  # float32 beside float64
        assert loss == pytest.approx(lowest, abs=1e-3)


def test_the_schedule_is_that_of_the_authors_for_10_000_queries():
    # p_selection of their code, after so many iterations: 11 to 50, 51 to 200, ..., 8001 to 10000
    halved = {0: 0, 10: 0, 11: 1, 50: 1, 51: 2, 200: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4001: 7, 6001: 8, 9999: 9}
    assert {step: round(np.log2(0.8 / area_at(step, 10_000, 0.8))) for step in halved} == halved
    assert area_at(2, 1000, 0.8) == 0.4  # as after 20 of 10,000


def test_the_search_comes_as_low_as_the_best_of_the_ball_lets_it():
    """A linear loss: its minimum in the ball is known, and so is what a random point leaves of it."""
    images = images_of(1) * 0.8 + np.float32(0.1)  # nothing is clipped
    weights = np.repeat(np.repeat(np.random.default_rng(1).normal(size=(3, 5, 5)), 4, 1), 4, 2)  # constant in squares
    found = Square(0.05, 3000, seed=1)(images, loss_of(lambda image: float((image * weights).sum())))
    gained = (images * weights).sum((1, 2, 3)) - found.losses
    assert (gained > 0.8 * 0.05 * np.abs(weights).sum()).all()
    few = Square(0.05, 20, seed=1)(images, loss_of(lambda image: float((image * weights).sum())))
    assert (few.losses > found.losses).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_images_result_does_not_depend_on_its_batch(norm):
    images = images_of(4)
    attack = Square(0.05 if norm == "linf" else 1.0, 120, norm, seed=3)
    together = attack(images, loss_of(wavy))
    reverse = attack(images[::-1].copy(), loss_of(wavy))
    alone = attack(images[2:3], loss_of(wavy))
    assert np.array_equal(together.images, reverse.images[::-1])
    assert np.array_equal(together.images[2:3], alone.images)
    assert not np.array_equal(together.images, Square(attack.eps, 120, norm, seed=4)(images, loss_of(wavy)).images)


def test_a_lost_image_is_not_asked_about_again_and_the_budget_is_never_exceeded():
    images = images_of(4)
    easy = 26.7  # the second starts at 26.8 and comes to 26.6769

    asked: list[list[int]] = []

    def loss(moved, indices):
        values, _ = loss_of(wavy, asked=asked)(moved, indices)
        return values, (indices == 3) | ((indices == 1) & (values < easy))

    found = Square(0.05, 200)(images, loss)
    counts = np.bincount([index for query in asked for index in query], minlength=4)
    assert found.queries.tolist() == counts.tolist()
    assert (counts[0], counts[2], counts[3]) == (200, 200, 1)
    assert 1 < counts[1] < 200
    assert found.lost.tolist() == [False, True, False, True]
    assert found.losses[1] < easy
    assert len(asked) == 200


@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 1.0)])
def test_everything_that_is_asked_is_in_the_ball_and_on_the_lattice(norm, eps, lattice):
    images = images_of(3)
    start = np.random.default_rng(2).random(images.shape, np.float32)  # far outside: it is projected
    for starts in ((), (start, images)):
        seen = []

        def loss(moved, indices, seen=seen):
            seen.append((moved.copy(), indices))
            return loss_of(wavy)(moved, indices)

        found = Square(eps, 100, norm, lattice=lattice)(images, loss, starts)
        for moved, indices in [*seen, (found.images, np.arange(3))]:
            check_invariants(torch.from_numpy(moved), torch.from_numpy(images[indices]), eps, norm)
            if lattice:
                assert np.array_equal(moved, np.rint(moved * np.float32(255)) / np.float32(255))
        assert np.abs(found.images - images).max() > 0.9 * min(eps, 0.05)
    if lattice and norm == "linf":
        assert Square(eps, lattice=True).radius == 12 / 255  # of 12.75


def test_a_start_is_never_made_worse_and_the_best_of_several_counts():
    images = images_of(3)
    plain = Square(0.05, 200, seed=1)(images, loss_of(wavy))
    asked: list[list[int]] = []
    starts = (images, plain.images)
    found = Square(0.05, 2, seed=2)(images, loss_of(wavy, asked=asked), starts)
    assert asked == [[0, 1, 2]] * 2
    assert np.array_equal(found.images, np.where((plain.losses < [wavy(i) for i in images])[:, None, None, None],
                                                 plain.images, images))  # fmt: skip
    longer = Square(0.05, 300, seed=2)(images, loss_of(wavy), starts)
    assert (longer.losses <= plain.losses).all()
    assert (longer.losses < plain.losses).any()
    with pytest.raises(ValueError, match="1 queries are not enough for 2 starts"):
        Square(0.05, 1)(images, loss_of(wavy), starts)


def test_images_need_not_be_square_nor_coloured():
    images = images_of(2, (1, 9, 14))
    value = lambda image: float((image * np.arange(14)).sum())  # noqa: E731
    for norm, eps in (("linf", 0.05), ("l2", 0.5)):
        found: Searched = Square(eps, 80, norm, area=1.0)(images, loss_of(value))
        assert found.images.shape == images.shape
        assert (found.losses < [value(image) for image in images]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"eps": 0.0}, "leaves no other image in the ball"),
        ({"eps": 0.003, "lattice": True}, "leaves no other image of 8 bits in the ball"),
        ({"area": 0.0}, r"area must be in \(0, 1\], got 0"),
    ],
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Square(**{"eps": 0.05, **wrong})


def test_on_a_network_it_finds_what_random_points_of_the_ball_do_not(model, images):
    with TorchRunner(model) as runner:
        boxes, scores = runner.infer(images.numpy())
        rows = []
        for image in (0, 1, 3):  # the third has no object
            best, class_id = np.unravel_index(scores[image].argmax(), scores[image].shape)
            x0, y0, x1, y1 = boxes[image, best].clip(0, 16) / 16
            rows.append([image, class_id, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        loss = from_scores(runner, objects_of(torch.tensor(rows), 4, runner.input_size))
        pixels, every = images.numpy(), np.arange(4)
        found = Square(0.05, 60)(pixels, loss)
        assert np.allclose(loss(found.images, every)[0], found.losses, atol=1e-4)
        noise = np.min([loss(Noise(0.05, seed=seed)(images).numpy(), every)[0] for seed in range(60)], axis=0)
    assert found.losses.sum() < noise.sum()
    assert found.queries.tolist() == [60, 60, 1, 60]


def test_in_l2_changes_of_less_than_half_a_level_leave_something_on_the_lattice():
    images = images_of(2, (3, 64, 64))
    weights = np.random.default_rng(3).normal(size=images.shape[1:])
    loss = loss_of(lambda image: float((image * weights).sum()))
    found = Square(1.0, 100, "l2", lattice=True)(images, loss)
    assert (found.losses < (images * weights).sum((1, 2, 3))).all()
