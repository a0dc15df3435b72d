"""Two threads beside the one that detects: one reads ahead, one writes behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

Item = TypeVar("Item")
_LONGEST_END_S = 5.0


class ReadAhead(Generic[Item]):
    """Takes items from an iterable in a thread of its own. A context manager; iterate over it once.

    Args:
        items: Gives items, and may raise; what it raises comes after the items before.
        depth: Items that may wait.
        latest: Drop the oldest that waits instead of letting ``items`` wait, which a camera would not.

    Attributes:
        skipped: How many were dropped.
    """

    def __init__(self, items: Iterable[Item], depth: int, *, latest: bool = False) -> None:
        self._items = items
        self._depth = depth
        self._latest = latest
        self._ready: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="reads ahead", daemon=True)
        self.skipped = 0

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    if self._latest and len(self._ready) >= self._depth:
                        self._ready.popleft()
                        self.skipped += 1
                    self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._depth)
                    if self._stopped:
                        return
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are taken
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._ended)
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(_LONGEST_END_S)


class WriteBehind:
    """Calls a function in a thread of its own, in order. A context manager, which waits for all calls in the end.

    Args:
        function: What to call.
        depth: Calls that may wait.
    """

    def __init__(self, function: Callable[..., Any], depth: int) -> None:
        self._function = function
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, "writes behind")
        self._waiting: deque[Future[Any]] = deque()

    def __call__(self, *arguments: Any) -> None:
        """Have the function called; raises what an earlier call raised."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._function, *arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for call in self._waiting:
                call.result()
