"""One line of JSON per request and per event, for whatever collects the server's standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes

REQUESTS = logging.getLogger("prunedeploy_engines.serving.requests")

_FIELDS = "prunedeploy_fields"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, message, and the fields of a request."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{when}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(stream: TextIO | None = None) -> logging.Handler:
    """Send what the server logs to a stream, as lines of JSON.

    Args:
        stream: None is standard error.

    Returns:
        The handler that was added to the logger of this package's ``serving``.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("prunedeploy_engines.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("uvicorn").addHandler(handler)  # it warns of what is no HTTP
    return handler


def log_request(notes: RequestNotes, status: str, seconds: float) -> None:
    """Write the line of an answered request.

    Args:
        notes: Its notes.
        status: HTTP status, or the name of gRPC's.
        seconds: It took.
    """
    if not REQUESTS.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "request_id": notes.request_id,
        "protocol": notes.protocol,
        "route": notes.route,
        "status": status,
        "ms": round(1e3 * seconds, 3),
    }
    if notes.model:
        fields |= {"model": notes.model, "version": notes.version, "images": notes.images}
    if notes.remarks:
        fields["remarks"] = notes.remarks
    if notes.error:
        fields["error"] = notes.error
    if notes.times is not None:
        stages = {name: round(value, 3) for name, value in notes.times.milliseconds().items()}
        fields |= {"stages_ms": stages, "batch_size": notes.times.batch_size}
    # Made by hand: `info` would first look up who called it, and nobody asks.
    record = logging.LogRecord(REQUESTS.name, logging.INFO, __file__, 0, "request", None, None)
    setattr(record, _FIELDS, fields)
    REQUESTS.handle(record)
