"""One line of JSON per request and per event, for whatever collects the server's standard error."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes

REQUESTS = logging.getLogger("prunedeploy_engines.serving.requests")

_FIELDS = "prunedeploy_fields"
_MOMENT_S = 0.05


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


class _LinesTogether(logging.StreamHandler):
    """Writes the lines of a moment together; warnings, and what comes from other threads, at once.

    Every write is a system call, at which this thread gives the interpreter away, perhaps to a runner's.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; whoever calls holds the handler's lock."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            if record.levelno > logging.INFO:
                self.flush()
            elif len(self._lines) == 1:
                asyncio.get_running_loop().call_later(_MOMENT_S, self.flush)
        except RuntimeError:  # no event loop in this thread
            self.flush()
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)

    def flush(self) -> None:
        """Write what there is; `logging` calls this at the end of the process, too."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()
        finally:
            self.release()


def configure_logs(stream: TextIO | None = None) -> logging.Handler:
    """Send what the server logs to a stream, as lines of JSON.

    Args:
        stream: None is standard error.

    Returns:
        The handler that was added to the logger of this package's ``serving``.
    """
    handler = _LinesTogether(stream or sys.stderr)
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
