"""Metrics, log line and trace of every request, told once when it is answered."""

from __future__ import annotations

import logging
import time

from prunedeploy_engines.serving.telemetry.logs import log_request
from prunedeploy_engines.serving.telemetry.metrics import Metrics
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes

_log = logging.getLogger(__name__)


class Telemetry:
    """Tells all three of an answered request.

    Args:
        metrics: Those that the models tell too.
        otlp_endpoint: Where traces go; None: nowhere.

    Raises:
        ConfigError: Traces are asked for, and OpenTelemetry is not installed.
    """

    def __init__(self, metrics: Metrics, otlp_endpoint: str | None) -> None:
        self.metrics = metrics
        self._tracing = None
        if otlp_endpoint is not None:
            from prunedeploy_engines.serving.telemetry.tracing import Tracing, otlp_exporter

            self._tracing = Tracing(otlp_exporter(otlp_endpoint))

    def answered(self, notes: RequestNotes, status: str) -> None:
        """Tell of a request whose answer is sent; what goes wrong here concerns nobody's answer."""
        seconds = time.monotonic() - notes.begun
        try:
            self.metrics.request(notes, status, seconds)
            log_request(notes, status, seconds)
            if self._tracing is not None:
                self._tracing.request(notes, status, seconds)
        except Exception:  # noqa: BLE001 - whatever it is, the answer is sent
            _log.exception("a request could not be counted")
