"""What is noted of a request while it is answered, for its log line, the metrics and its trace."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field

from prunedeploy_engines.serving.telemetry.stage_times import StageTimes

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


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
    error: str = ""
    trace_parent: str = ""
    begun: float = field(default_factory=time.monotonic)


def request_id(given: str | None) -> str:
    """The id a client gives, or a new one: an id stands in logs and headers, so it must be plain."""
    if given is not None and _PLAIN_ID.fullmatch(given):
        return given
    return secrets.token_hex(8)
