"""What is noted of a request while it is answered, for its log line, the metrics and its trace."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

STAGES = ("decode", "preprocess", "queue", "compute", "postprocess", "encode")
"""In the order they happen in."""


@dataclass
class StageTimes:
    """Seconds by stage, and how many images were computed together with the last of the request's.

    Attributes:
        decode_s: Encoded image to pixels.
        preprocess_s: Letterbox, scaling to [0, 1].
        queue_s: Waiting for a runner.
        compute_s: The network.
        postprocess_s: Suppression, boxes back into the image.
        encode_s: Writing the answer.
        batch_size: Images of the batch.
    """

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    postprocess_s: float = 0.0
    encode_s: float = 0.0
    batch_size: int = 0

    def milliseconds(self) -> dict[str, float]:
        """By name of the stage, without ``_s``."""
        return {name: 1e3 * getattr(self, f"{name}_s") for name in STAGES}


@dataclass
class RequestNotes:
    """One request.

    Attributes:
        request_id: The client's, if it is short and plain, or one of ours.
        protocol: ``http`` or ``grpc``.
        route: Pattern of its address or name of its method; never what a client chose.
        model: Protocol name; empty unless there is such a model, since a client can invent any number of names.
        version: Version of the model.
        images: In the request.
        times: By stage; None if nothing was computed.
        remarks: What there is to say about images that were read although something is wrong with their files.
        error: Kind of error; empty if there was none.
        trace_parent: Header of W3C Trace Context.
        begun: By `time.monotonic`.
    """

    request_id: str
    protocol: str = "http"
    route: str = "none"
    model: str = ""
    version: str = ""
    images: int = 0
    times: StageTimes | None = None
    remarks: list[str] = field(default_factory=list)
    error: str = ""
    trace_parent: str = ""
    begun: float = field(default_factory=time.monotonic)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Take the time of writing the answer."""
        begun = time.monotonic()
        yield
        if self.times is not None:
            self.times.encode_s = time.monotonic() - begun


def request_id(given: str) -> str:
    """The id a client gives, or a new one: an id stands in logs and headers, so it must be plain."""
    return given if _PLAIN_ID.fullmatch(given) else secrets.token_hex(8)
