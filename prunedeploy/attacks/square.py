"""Square attack: random search in a ball by answers alone, for whatever gives one loss per image.

Andriushchenko, Croce, Flammarion and Hein, Square Attack: a query-efficient black-box adversarial attack via random
search, ECCV 2020: algorithm 1 (the search), 2 (proposals in L-inf) and 3 (in L2). An image starts in vertical stripes
of +eps and -eps (in L2: in a grid of bumps). Each query then changes one square window of the best image so far, and
is kept if its loss is lower. The window's share of the area shrinks with the share of the budget that is spent.

Beside the authors' own code (github.com/max-andr/square-attack, attack.py), which we follow where it says more than the
paper, this is different:

- Windows are drawn from all places, as in the paper; the code leaves out the last row and the last column.
- Images need not be square: a window is no larger than the shorter side, and in L2 the grid has as many bumps as fit.
- Every image draws from a generator of its own, in L2 too, where the code moves the same window of all images.
- A search may start from given images in the ball instead of stripes; each is one query, and the best one counts.
- In L2 the budget is what is spent; the code spends one query more.
- Images may be held on the lattice of 8 bits, as a network with uint8 input sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prunedeploy.attacks.checks import check_invariants, pixel_keys
from prunedeploy.attacks.norms import Norm, on_lattice, project
from prunedeploy_engines.runtimes.runner import Float32Array

Loss = Callable[[Float32Array, NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""``loss(images (n, C, H, W), indices (n,)) -> losses (n,), lost (n,)``, one query of each image.

The attack minimises it. ``indices`` say which images of the batch these are; an image that is ``lost`` has nothing
more to lose.
"""

QUERIES = 1000
AREA = 0.8
"""The first window's share of the area, the paper's p. The paper takes 0.05 (L-inf) and 0.1 (L2) for undefended
classifiers and more for robust ones; this is what AutoAttack (Croce and Hein, 2020) takes for all."""
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the area halves."""
_SAME = 1e-6
"""Two pixels are the same within this: 1e-7 in the authors' code, whose pixels are float64."""
_LEAST_RADIUS = 1e-5
_TINY = 1e-10


@dataclass(frozen=True)
class Searched:
    """What the search found.

    Attributes:
        images: ``(B, C, H, W)`` float32, the best image of each.
        losses: ``(B,)``, their losses.
        lost: ``(B,)``: there was nothing more to gain.
        queries: ``(B,)``, how often each image was asked about.
    """

    images: Float32Array
    losses: NDArray[np.float64]
    lost: NDArray[np.bool_]
    queries: NDArray[np.int64]


@dataclass(frozen=True)
class Square:
    """The attack.

    Attributes:
        eps: Radius of the ball, in pixel units of [0, 1]; of L2, of an image's whole vector of pixels.
        queries: The budget of each image, starts included.
        norm: ``linf`` or ``l2``.
        area: The first window's share of the area, in (0, 1].
        seed: Together with an image's own pixels it decides that image's draws, whatever its batch.
        lattice: Keep images on multiples of 1/255. The clean ones must be there.
    """

    eps: float
    queries: int = QUERIES
    norm: Norm = "linf"
    area: float = AREA
    seed: int = 0
    lattice: bool = False

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError(f"queries must be at least 1, got {self.queries}")
        if self.radius < _LEAST_RADIUS:
            raise ValueError(f"eps = {self.eps:g} leaves no other image{' of 8 bits' * self.lattice} in the ball")
        if not 0 < self.area <= 1:
            raise ValueError(f"area must be in (0, 1], got {self.area}")

    @property
    def radius(self) -> float:
        """How far images move: eps, on the lattice in L-inf its largest multiple of 1/255 within."""
        return math.floor(self.eps * 255 + 1e-6) / 255 if self.lattice and self.norm == "linf" else self.eps

    def __call__(self, images: Float32Array, loss: Loss, starts: Sequence[Float32Array] = ()) -> Searched:
        """Search around each image.

        Args:
            images: Clean images, ``(B, C, H, W)`` float32 in [0, 1].
            loss: What is asked; with all images at first, later without those that are lost.
            starts: Where to start instead of stripes, each like ``images``; they are projected into the ball.

        Raises:
            ValueError: There are more starts than queries.
            AttackInvariantError: The result left the ball or the range. A bug of ours.
        """
        if len(starts) > self.queries:
            raise ValueError(f"{self.queries} queries are not enough for {len(starts)} starts")
        generators = [np.random.default_rng((self.seed, key)) for key in pixel_keys(torch.from_numpy(images))]
        every = np.arange(len(images))
        best = images
        lowest, lost = np.full(len(images), np.inf), np.zeros(len(images), np.bool_)
        first = [self._in_ball(start, images) for start in starts]
        if not first:
            draw = _stripes if self.norm == "linf" else _bumps
            drawn = [draw(image, self.radius, own) for image, own in zip(images, generators, strict=True)]
            first = [self._in_ball(np.stack(drawn), images)]
        for start in first:
            losses, over = loss(start, every)
            better = losses < lowest
            best = np.where(better[:, None, None, None], start, best)
            lowest, lost = np.where(better, losses, lowest), np.where(better, over, lost)
        queries = np.full(len(images), len(first))
        best = best.copy()
        propose = _square if self.norm == "linf" else _moved_bump
        for step in range(self.queries - len(first)):
            left = np.flatnonzero(~lost)
            if not len(left):
                break
            share = area_at(step, self.queries, self.area)
            tried = np.stack([propose(images[i], best[i], share, self.radius, generators[i]) for i in left])
            tried = self._in_ball(tried, images[left])
            losses, over = loss(tried, left)
            queries[left] += 1
            better = losses < lowest[left]
            kept = left[better]
            best[kept], lowest[kept], lost[kept] = tried[better], losses[better], over[better]
        check_invariants(torch.from_numpy(best), torch.from_numpy(images), self.eps, self.norm)
        return Searched(best, lowest, lost, queries)

    def _in_ball(self, moved: Float32Array, images: Float32Array) -> Float32Array:
        """``(B, C, H, W)`` projected, and put on the lattice if that is wanted."""
        clean = torch.from_numpy(images)
        inside = project(torch.from_numpy(moved), clean, self.eps, self.norm)
        if self.lattice:
            inside = on_lattice(inside, clean, self.eps, self.norm)
        return np.asarray(inside.numpy())


def area_at(step: int, budget: int, first: float) -> float:
    """Share of the area that the window of a query has, in (0, 1]; after the authors' ``p_selection``.

    It halves after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries, or such a share of a budget.

    Args:
        step: Windows before this one.
        budget: Queries in all.
        first: Share of the first window.
    """
    scaled = int(step / budget * 10_000)
    return first / 2 ** sum(scaled > after for after in _HALVED_AFTER)


def _stripes(image: Float32Array, eps: float, generator: np.random.Generator) -> Float32Array:
    """``(C, H, W)`` in vertical stripes: one sign for each channel and column."""
    channels, _, width = image.shape
    signs = generator.choice([-1, 1], (channels, 1, width))
    return np.clip(image + (eps * signs).astype(np.float32), 0, 1)


def _square(
    image: Float32Array, best: Float32Array, share: float, eps: float, generator: np.random.Generator
) -> Float32Array:
    """Algorithm 2: ``best (C, H, W)`` with one sign for each channel of a square window."""
    channels, height, width = image.shape
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    top, left = _corner(height, width, side, generator)
    window = np.s_[:, top : top + side, left : left + side]
    new = best[window]
    while np.all(np.abs(new - best[window]) < _SAME):  # a window that changes nothing is drawn again
        signs = generator.choice([-1, 1], (channels, 1, 1))
        new = np.clip(image[window] + (eps * signs).astype(np.float32), 0, 1)
    tried = best.copy()
    tried[window] = new
    return tried


def _bumps(image: Float32Array, eps: float, generator: np.random.Generator) -> Float32Array:
    """``(C, H, W)`` with a grid of bumps of random signs, five or more along the shorter side."""
    channels, height, width = image.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    delta = np.zeros(image.shape)
    for row in range(rows):
        for column in range(columns):
            top, left = (height - side * rows) // 2 + side * row, (width - side * columns) // 2 + side * column
            delta[:, top : top + side, left : left + side] = _signed_bump(channels, side, generator)
    return _at_length(image, delta, eps)


def _moved_bump(
    image: Float32Array, best: Float32Array, share: float, eps: float, generator: np.random.Generator
) -> Float32Array:
    """Algorithm 3: ``best (C, H, W)`` with a bump in one window, paid for by what another window had."""
    channels, height, width = image.shape
    side = max(round(math.sqrt(share * height * width)), 3)
    side = min(side + (side % 2 == 0), (min(height, width) - 1) // 2 * 2 + 1)  # odd
    top, left = _corner(height, width, side, generator)
    window = np.s_[:, top : top + side, left : left + side]
    top, left = _corner(height, width, side, generator)
    emptied = np.s_[:, top : top + side, left : left + side]
    delta = best.astype(np.float64) - image
    either = np.zeros(delta.shape, np.bool_)
    either[window] = either[emptied] = True
    in_either = (np.where(either, delta, 0) ** 2).sum((1, 2), keepdims=True)  # squared lengths, (C, 1, 1)
    unused = max(eps**2 - float((delta**2).sum()), 0)
    new = _signed_bump(channels, side, generator) + delta[window] / (_TINY + _lengths(delta[window]))
    new *= np.sqrt(unused / channels + in_either) / (_TINY + _lengths(new))
    delta[emptied] = 0
    delta[window] = new
    return _at_length(image, delta, eps)


def _signed_bump(channels: int, side: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """``(C, side, side)``: halves of opposite signs, side by side or stacked; each channel has length 1."""
    bump = np.zeros((side, side))
    half = side // 2
    if half:
        bump[:half] = _nested(half, side)
    bump[half:] = -_nested(side - half, side)
    bump /= np.sqrt((bump**2).sum())
    bump = bump.T if generator.random() > 0.5 else bump
    return np.asarray(bump * generator.choice([-1, 1], (channels, 1, 1)))


def _nested(height: int, width: int) -> NDArray[np.float64]:
    """``(height, width)`` of length 1: nested squares around the middle, the n-th of them 1 / n^2 higher."""
    middle, top, left = max(height // 2 + 1, width // 2 + 1), height // 2, width // 2
    bump = np.zeros((height, width))
    for ring in range(middle):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        bump[rows, columns] += 1 / (ring + 1) ** 2
    bump /= np.sqrt((bump**2).sum())
    return bump


def _corner(height: int, width: int, side: int, generator: np.random.Generator) -> tuple[int, int]:
    """Top and left of a square window anywhere in an image."""
    return int(generator.integers(0, height - side + 1)), int(generator.integers(0, width - side + 1))


def _lengths(delta: NDArray[np.float64]) -> NDArray[np.float64]:
    """L2 norm of each channel, ``(C, 1, 1)``."""
    found: NDArray[np.float64] = np.sqrt((delta**2).sum((1, 2), keepdims=True))
    return found


def _at_length(image: Float32Array, delta: NDArray[np.float64], eps: float) -> Float32Array:
    """An image moved by ``eps`` in a direction, and clipped to [0, 1]."""
    moved = image + delta * (eps / (_TINY + np.sqrt((delta**2).sum())))
    return np.clip(moved, 0, 1).astype(np.float32)
