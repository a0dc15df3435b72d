"""What a batch is made of: requests, the parts they are computed in, and how their answers get back together.

Parts go from the event loop to the runners' threads; answers are given in the event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunedeploy_engines.runtimes.runner import Float32Array, Images
from prunedeploy_engines.serving.core.errors import DeadlineError
from prunedeploy_engines.serving.telemetry.request_notes import StageTimes

Output = tuple[Float32Array, Float32Array]


@dataclass(eq=False)
class Request:
    """What somebody waits for; more images than a batch has are several parts, computed in any order."""

    deadline: float
    parts: int
    answer: asyncio.Future[tuple[Output, StageTimes]]
    computed: dict[int, tuple[Output, StageTimes]] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)  # each is itself: arrays have no one truth value
class Part:
    """Images of one request that are computed together."""

    request: Request
    number: int
    images: Images
    times: StageTimes = field(default_factory=StageTimes)


def fits(part: Part, taken: Sequence[Part], room: int) -> bool:
    """A batch has room for it, and its images are of the batch's kind."""
    return len(part.images) <= room and (not taken or part.images.dtype == taken[0].images.dtype)


def joined(arrays: Sequence[Any]) -> Any:
    """One array of several, the very one if it is alone."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def expire(answer: asyncio.Future[tuple[Output, StageTimes]]) -> None:
    """Tell a request that its time is over, unless it was told something already."""
    if not answer.done():
        answer.set_exception(DeadlineError("the deadline passed before the answer was there"))


def give_up(parts: Sequence[Part]) -> None:
    """Tell requests that their answers would be too late."""
    for part in parts:
        expire(part.request.answer)


def deliver(parts: Sequence[Part], outputs: Output | Exception) -> None:
    """Give requests their share of a batch, or what went wrong with it."""
    start = 0
    for part in parts:
        end = start + len(part.images)
        request = part.request
        if not request.answer.done():
            if isinstance(outputs, Exception):
                request.answer.set_exception(outputs)
            else:
                request.computed[part.number] = (outputs[0][start:end], outputs[1][start:end]), part.times
                if len(request.computed) == request.parts:
                    request.answer.set_result(_whole(request))
        start = end


def _whole(request: Request) -> tuple[Output, StageTimes]:
    computed = [request.computed[number] for number in range(request.parts)]
    boxes, scores = zip(*(output for output, _ in computed), strict=True)
    return (joined(boxes), joined(scores)), computed[-1][1]
