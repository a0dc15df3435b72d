"""What the core tells whoever counts; `metrics` fulfils it."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Is told of queues and batches, from any thread, and must be quick."""

    def queue_depth(self, model: str, images: int) -> None:
        """So many images of a model wait now."""

    def batch(self, model: str, images: int, seconds: float) -> None:
        """A batch was computed."""

    def model_state(self, model: str, ready: bool) -> None:
        """A model was loaded or unloaded."""


class Nobody:
    """Counts nothing."""

    def queue_depth(self, model: str, images: int) -> None:
        """See `Observer`."""

    def batch(self, model: str, images: int, seconds: float) -> None:
        """See `Observer`."""

    def model_state(self, model: str, ready: bool) -> None:
        """See `Observer`."""
