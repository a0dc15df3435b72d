"""Metrics, log lines and traces against what was asked of the server."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from prunedeploy_engines import Bundle
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.serving.telemetry.logs import configure_logs
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes, StageTimes
from prunedeploy_engines.serving.telemetry.tracing import Tracing, otlp_exporter
from served_protocol import Running, images, infer_body, picture, running

PNG = {"Content-Type": "image/png"}


def samples(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Everything that ``/metrics`` says, read by Prometheus' own parser."""
    text = server.ask("GET", "/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"prunedeploy_{name}", frozenset(labels.items())


def test_metrics_count_what_was_asked(bundle: Bundle) -> None:
    with running({"tiny": bundle}) as own:
        for count in (1, 2, 8):
            own.ask("POST", "/v2/models/tiny/infer", infer_body(images(0, count)))
        own.ask("POST", "/v1/detect", picture(0), PNG)
        own.ask("POST", "/v1/detect", b"no image", PNG)
        own.ask("POST", "/v2/models/stranger/infer", {})
        own.ask("GET", "/nowhere")
        seen = samples(own)
    infer = {"protocol": "http", "route": "/v2/models/{name}/infer"}
    detect = {"protocol": "http", "route": "/v1/detect", "model": "tiny"}
    assert seen[key("requests_total", **infer, model="tiny", status="200")] == 3
    assert seen[key("requests_total", **infer, model="", status="404")] == 1, "a stranger's name is no label"
    assert seen[key("requests_total", **detect, status="200")] == 1
    assert seen[key("requests_total", **detect, status="415")] == 1
    assert seen[key("errors_total", protocol="http", kind="unsupported-media")] == 1
    assert seen[key("errors_total", protocol="http", kind="no-such-route")] == 1
    assert seen[key("images_total", model="tiny")] == 1 + 2 + 8 + 1
    assert seen[key("batch_size_count", model="tiny")] == 4
    assert seen[key("batch_size_sum", model="tiny")] == 12
    assert seen[key("batch_size_bucket", model="tiny", le="2.0")] == 3
    assert seen[key("queue_depth", model="tiny")] == 0
    assert seen[key("model_ready", model="tiny")] == 1
    for stage in ("decode", "preprocess", "queue", "compute", "postprocess", "encode"):
        assert seen[key("stage_seconds_count", model="tiny", stage=stage)] == 4
    assert seen[key("stage_seconds_sum", model="tiny", stage="compute")] > 0
    assert seen[key("request_seconds_count", **infer)] == 4
    assert not any("stranger" in str(labels) for _, labels in seen)


def test_one_line_of_json_per_request(server: Running) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("prunedeploy_engines.serving")
    handler = configure_logs(stream)
    try:
        server.ask("POST", "/v1/detect?model=tiny", picture(0), {**PNG, "X-Request-Id": "mine"})
        server.ask("POST", "/v1/detect?model=a%0Ab", picture(0), PNG)
        until = time.monotonic() + 20  # a line is written after its answer has left
        while stream.getvalue().count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    good, bad = (json.loads(line) for line in stream.getvalue().splitlines())
    expected = {"request_id": "mine", "protocol": "http", "route": "/v1/detect", "status": "200", "model": "tiny"}
    assert expected.items() <= good.items()
    assert good["images"] == 1
    assert good["batch_size"] == 1
    assert set(good["stages_ms"]) == {"decode", "preprocess", "queue", "compute", "postprocess", "encode"}
    assert sum(good["stages_ms"].values()) <= good["ms"]
    assert (bad["status"], bad["error"]) == ("404", "unknown-model")
    assert "model" not in bad


def test_traces_have_a_span_per_stage_under_the_clients() -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs 'tracing'")
    exporter = memory.InMemorySpanExporter()
    tracing = Tracing(exporter, batched=False)
    # The example of W3C Trace Context: version, trace, span, sampled.
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    times = StageTimes(queue_s=0.25, compute_s=0.5)
    notes = RequestNotes("id", "http", "/v1/detect", "tiny", "1", 2, times, trace_parent=parent)
    tracing.request(notes, "200", 1.0)
    queue, compute, request = exporter.get_finished_spans()
    assert request.name == "http /v1/detect"
    assert request.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert request.parent.span_id == 0xB7AD6B7169203331
    assert request.end_time - request.start_time == 10**9
    assert request.attributes["prunedeploy.images"] == 2
    for span, name, length in ((queue, "queue", 250_000_000), (compute, "compute", 500_000_000)):
        assert (span.name, span.end_time - span.start_time) == (name, length)
        assert span.parent.span_id == request.context.span_id
    assert compute.start_time == queue.end_time
    tracing.request(RequestNotes("id", error="invalid", trace_parent="nonsense"), "400", 0.1)
    failed = exporter.get_finished_spans()[-1]
    assert failed.parent is None
    assert failed.status.description == "invalid"


def test_traces_without_the_library_or_address_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="begin with http"):
        otlp_exporter("localhost:4318")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"prunedeploy\[tracing\]"):
        otlp_exporter("http://localhost:4318/v1/traces")
