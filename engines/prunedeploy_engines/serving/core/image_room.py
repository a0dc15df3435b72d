"""Room for decoded images: a small file can stand for very many pixels, so pixels are what is counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from prunedeploy_engines.serving.core.decoding import open_image
from prunedeploy_engines.serving.core.errors import DeadlineError, ModelUnavailableError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from PIL import ImageFile

Result = TypeVar("Result")


class ImageRoom:
    """Lets requests decode in the order they ask in, all together never more pixels than one may have.

    Args:
        max_pixels: Largest number of pixels of one request.
    """

    def __init__(self, max_pixels: int) -> None:
        from PIL import Image

        Image.init()  # or the first image would wait until Pillow has imported its decoders
        self._pool = ThreadPoolExecutor(2, "images")
        self._max_pixels = max_pixels
        self._free = max_pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def beside(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function beside the event loop, in one of the room's two threads.

        Raises:
            ModelUnavailableError: The room is closed.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except RuntimeError as error:
            if "after shutdown" in str(error):
                raise ModelUnavailableError("the server is stopping") from None
            raise

    def close(self) -> None:
        """Begin nothing more; what is running ends."""
        self._pool.shutdown(wait=False)

    @asynccontextmanager
    async def opened(
        self, images: Sequence[bytes | memoryview], fields: Sequence[str], deadline: float
    ) -> AsyncIterator[list[ImageFile.ImageFile]]:
        """Open the images of a request and wait until they may be decoded; they count as held until the ``with`` ends.

        Args:
            images: JPEG, PNG or WebP.
            fields: Where each stands in the request.
            deadline: By `time.monotonic`.

        Yields:
            What `decode_image` takes.

        Raises:
            ServingError: See `open_image`; the line begins with the field.
            TooLargeError: They have more pixels together than one request may have.
            DeadlineError: There was no room in time.
        """
        opened: list[ImageFile.ImageFile] = []
        pixels = 0
        for image, field in zip(images, fields, strict=True):
            opened.append(open_image(image, self._max_pixels, field))
            pixels += opened[-1].width * opened[-1].height
            # At once: Pillow sets memory aside for every WebP that it has opened.
            if pixels > self._max_pixels:
                raise TooLargeError(f"together the images have more pixels than {self._max_pixels}")
        await self._take(pixels, deadline)
        try:
            yield opened
        finally:
            self._give_back(pixels)

    async def _take(self, pixels: int, deadline: float) -> None:
        if not self._waiting and pixels <= self._free:
            self._free -= pixels
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        try:
            await asyncio.wait((turn,), timeout=deadline - time.monotonic())
        except asyncio.CancelledError:
            if turn.done():  # it came in the moment of giving up
                self._give_back(pixels)
            raise
        finally:
            if turn.cancel():
                self._hand_out()
        if turn.cancelled():
            raise DeadlineError("the deadline passed before the images were decoded")

    def _give_back(self, pixels: int) -> None:
        self._free += pixels
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            pixels, turn = self._waiting[0]
            if not turn.cancelled():
                if pixels > self._free:
                    return
                self._free -= pixels
                turn.set_result(None)
            self._waiting.popleft()
