"""How much of a request has come: what an answer that is given before all of it has to know."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

ARRIVAL = "prunedeploy.arrival"
"""Key in the ASGI scope's state."""

DRAINED_BYTES = 1 << 20
"""So much of a body that nobody wants is read and thrown away for the sake of its connection; of more, the end is that
of the connection too."""


@dataclass
class Arrival:
    """One request.

    Attributes:
        left: Bytes of its body that are still to come; None where that is not announced.
        expects: Its client waits for ``100 Continue`` before it sends a body.
        begun: When its head was there, by `time.monotonic`.
    """

    left: int | None = 0
    expects: bool = False
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, headers: list[tuple[bytes, bytes]], expects: bool) -> Arrival:
        """By the headers of a request that the HTTP parser has accepted; their names are in lower case."""
        named = dict(headers)
        left = None if b"transfer-encoding" in named else int(named.get(b"content-length", b"0"))
        return cls(left, expects)

    def came(self, size: int) -> None:
        """So much more of its body has come."""
        if self.left is not None:
            self.left -= size

    def is_whole(self) -> bool:
        """Nothing is left to come."""
        return self.left == 0

    def is_small(self) -> bool:
        """What is left will come, and is little enough to be read for the sake of the next request."""
        # A client that was told no before 100 Continue may send its body or not (RFC 9110, 10.1.1).
        return self.left == 0 or (self.left is not None and self.left <= DRAINED_BYTES and not self.expects)
