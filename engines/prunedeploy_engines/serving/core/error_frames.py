"""Errors that let go of what they passed through."""

from __future__ import annotations


def drop_frames(error: BaseException) -> None:
    """Forget the frames of an error that has been told, and of those it came from.

    An error out of `asyncio.wait_for` is part of a ring: frame, task, error, frame. Only the garbage collector opens
    it, and a few dozen objects do not make that run soon, while one of the frames may hold a body of many megabytes.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            left += [one.__context__, one.__cause__]
