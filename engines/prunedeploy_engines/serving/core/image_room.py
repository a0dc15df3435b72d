"""Room for decoded images: a small file can stand for very many pixels, so pixels are what is counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from prunedeploy_engines.serving.core.decoding import open_image
from prunedeploy_engines.serving.core.errors import (
    DeadlineError,
    InvalidRequestError,
    TooLargeError,
    UnsupportedMediaError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from prunedeploy_engines.serving.core.served_model import ServedModel

Encoded = bytes | memoryview


class ImageRoom:
    """Lets requests decode in the order they ask in, all together never more pixels than one may have.

    Args:
        max_pixels: Largest number of pixels of one request.
    """

    def __init__(self, max_pixels: int) -> None:
        from PIL import Image

        Image.init()  # or the first image would wait until Pillow has imported its decoders
        self._max_pixels = max_pixels
        self._free = max_pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def decoded(
        self, model: ServedModel, images: Sequence[Encoded], fields: Sequence[str], deadline: float
    ) -> AsyncIterator[list[npt.NDArray[np.uint8]]]:
        """Decode the images of a request; they count as held until the ``with`` ends.

        Args:
            model: Decodes, beside the event loop.
            images: JPEG, PNG or WebP.
            fields: Where each stands in the request.
            deadline: By `time.monotonic`.

        Yields:
            ``(H, W, 3)`` uint8 RGB each.

        Raises:
            ServingError: See `open_image` and `decode_image`; the line begins with the field.
            TooLargeError: They have more pixels together than one request may have.
            DeadlineError: There was no room in time.
        """
        opened: deque[Image.Image] = deque()
        pixels = 0
        for image, field in zip(images, fields, strict=True):
            with _naming(field):
                opened.append(open_image(image, self._max_pixels))
            pixels += opened[-1].width * opened[-1].height
            # At once: Pillow sets memory aside for every WebP that it has opened.
            if pixels > self._max_pixels:
                raise TooLargeError(f"the images have more pixels together than {self._max_pixels}")
        await self._take(pixels, deadline)
        try:
            pixels_of = []
            for field in fields:
                with _naming(field):
                    pixels_of.append(await model.decode(opened.popleft()))
            yield pixels_of
        finally:
            self._give_back(pixels)

    async def _take(self, pixels: int, deadline: float) -> None:
        if not self._waiting and pixels <= self._free:
            self._free -= pixels
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        try:
            # Shielded, so that a turn which came in the moment of giving up is seen, and its pixels go back.
            await asyncio.wait_for(asyncio.shield(turn), deadline - time.monotonic())
        except (asyncio.TimeoutError, asyncio.CancelledError) as error:
            if turn.done():
                self._give_back(pixels)
            else:
                turn.cancel()
                self._hand_out()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise DeadlineError("the time was over before the images were decoded") from None

    def _give_back(self, pixels: int) -> None:
        self._free += pixels
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            pixels, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif pixels <= self._free:
                self._waiting.popleft()
                self._free -= pixels
                turn.set_result(None)
            else:
                return


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Put the field before the line of a refusal."""
    try:
        yield
    except (InvalidRequestError, TooLargeError, UnsupportedMediaError) as error:
        raise type(error)(error.what, field, error.fix) from None
