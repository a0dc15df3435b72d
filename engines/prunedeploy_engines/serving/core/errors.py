"""What goes wrong with a request: each with its HTTP and gRPC status, and a line that a client may read.

Such a line names fields of the request and names of models, never a path, an address or a library's own words.
"""

from __future__ import annotations

import time

from prunedeploy_engines.errors import PrunedeployError


class ServingError(PrunedeployError):
    """A request that is not answered as asked.

    Attributes:
        status: HTTP status.
        grpc_status: Name of the gRPC status code.
        kind: For metrics and logs.
    """

    status = 500
    grpc_status = "INTERNAL"
    kind = "internal"


class InvalidRequestError(ServingError):
    """The request is malformed; the line names the field."""

    status, grpc_status, kind = 400, "INVALID_ARGUMENT", "invalid"


class UnauthorisedError(ServingError):
    """The token is missing or wrong."""

    status, grpc_status, kind = 401, "UNAUTHENTICATED", "unauthorised"


class UnknownModelError(ServingError):
    """No model of that name or version is served."""

    status, grpc_status, kind = 404, "NOT_FOUND", "unknown-model"


class SlowClientError(ServingError):
    """The client took too long to send its request."""

    status, grpc_status, kind = 408, "DEADLINE_EXCEEDED", "slow-client"


class TooLargeError(ServingError):
    """The request is over a limit."""

    status, grpc_status, kind = 413, "INVALID_ARGUMENT", "too-large"


class UnsupportedMediaError(ServingError):
    """The body is of a kind that is not taken."""

    status, grpc_status, kind = 415, "INVALID_ARGUMENT", "unsupported-media"


class ClientGoneError(ServingError):
    """The client hung up while it was sending; nobody reads the answer."""

    status, grpc_status, kind = 499, "CANCELLED", "client-gone"


class NotOfferedError(ServingError):
    """The request is for an extension of the protocol that is not part of this server."""

    status, grpc_status, kind = 501, "UNIMPLEMENTED", "not-offered"


class OverloadedError(ServingError):
    """The queue is full.

    Attributes:
        retry_after_s: When asking again may help, in seconds.
    """

    status, grpc_status, kind = 503, "RESOURCE_EXHAUSTED", "overloaded"

    def __init__(self, what: str, retry_after_s: float = 1.0) -> None:
        super().__init__(what, fix="ask again later")
        self.retry_after_s = retry_after_s


class ModelUnavailableError(ServingError):
    """The model is known but not loaded, or the server is stopping."""

    status, grpc_status, kind = 503, "UNAVAILABLE", "unavailable"


class DeadlineError(ServingError):
    """The request's time was over before its answer was there."""

    status, grpc_status, kind = 504, "DEADLINE_EXCEEDED", "deadline"


def check_in_time(deadline: float) -> None:
    """Refuse to give an answer that is too late, whatever it has cost.

    Args:
        deadline: By `time.monotonic`.

    Raises:
        DeadlineError: It has passed.
    """
    if time.monotonic() > deadline:
        raise DeadlineError("the deadline passed before the answer was there")


class InferenceFailedError(ServingError):
    """The runner failed; the server's log says how."""


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
