"""Traces with OpenTelemetry: a span per request, and one inside it for each stage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.version import __version__

if TYPE_CHECKING:
    from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes, StageTimes

_NEEDED = "traces need OpenTelemetry, which is not installed"
_FIX = "pip install 'prunedeploy[tracing]', or leave --otlp-endpoint out"


def otlp_exporter(endpoint: str) -> Any:
    """An exporter over HTTP.

    Args:
        endpoint: Endpoint of a collector, e.g. ``http://localhost:4318/v1/traces``.

    Raises:
        ConfigError: OpenTelemetry is not installed, or this is not an HTTP address.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"{endpoint!r} is not an HTTP address", "--otlp-endpoint", "begin with http:// or https://")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(_NEEDED, "--otlp-endpoint", _FIX) from None
    return OTLPSpanExporter(endpoint=endpoint)


class Tracing:
    """Makes spans of requests that were answered; nothing is in their way before.

    Args:
        exporter: OpenTelemetry's `SpanExporter`.
        batched: Export in a thread, many at a time.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, exporter: Any, *, batched: bool = True) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError(_NEEDED, "--otlp-endpoint", _FIX) from None
        resource = Resource.create({"service.name": "prunedeploy", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=True)
        self._provider.add_span_processor((BatchSpanProcessor if batched else SimpleSpanProcessor)(exporter))
        self._tracer = self._provider.get_tracer("prunedeploy")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def request(self, notes: RequestNotes, status: str, seconds: float) -> None:
        """Make the spans of a request.

        Args:
            notes: Its notes; the span's parent is the client's span if the client names one.
            status: HTTP status, or the name of gRPC's.
            seconds: It took, until now.
        """
        end = time.time_ns()
        start = end - int(1e9 * seconds)
        parent = self._propagator.extract({"traceparent": notes.trace_parent})
        attributes: dict[str, Any] = {"prunedeploy.request_id": notes.request_id, "prunedeploy.status": status}
        if notes.model:
            attributes |= {"prunedeploy.model": notes.model, "prunedeploy.images": notes.images}
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(f"{notes.protocol} {notes.route}", parent, kind, attributes, start_time=start)
        if notes.error:
            span.set_status(self._trace.StatusCode.ERROR, notes.error)
        if notes.times is not None:
            self._stages(span, notes.times, start)
        span.end(end)

    def _stages(self, parent: Any, times: StageTimes, start: int) -> None:
        """One after the other from the start, as they happened; what lies between them is not told apart."""
        inside = self._trace.set_span_in_context(parent)
        for stage, milliseconds in times.milliseconds().items():
            length = int(1e6 * milliseconds)
            if length:
                self._tracer.start_span(stage, inside, start_time=start).end(start + length)
                start += length
