"""What clients written for Triton ask beside inference: nested strings, configuration, statistics, what is missing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from prunedeploy_engines import Bundle
from served_protocol import HEIGHT, WIDTH, Running, images, infer_body, picture, running


@pytest.fixture
def fresh(bundle: Bundle) -> Iterator[Running]:
    """A server that nobody has asked before."""
    with running({"tiny": bundle}, max_batch=4, workers=2, max_delay_ms=3.0) as there:
        yield there


def encoded_body(data: Any, shape: list[int]) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": shape, "data": data}]}


ONE, TWO = (base64.b64encode(picture(seed)).decode() for seed in (1, 2))


@pytest.mark.parametrize(
    ("data", "shape"),
    [([ONE, TWO], [2]), ([ONE, TWO], [2, 1]), ([[ONE], [TWO]], [2, 1]), ([[ONE, TWO]], [1, 2])],
)
def test_strings_may_be_nested_as_their_shape(server: Running, data: Any, shape: list[int]) -> None:
    """The protocol: "data" is in row-major order, flat or nested; KServe's own clients nest."""
    flat = server.ask("POST", "/v2/models/tiny-detect/infer", encoded_body([ONE, TWO], [2])).json["outputs"]
    answer = server.ask("POST", "/v2/models/tiny-detect/infer", encoded_body(data, shape))
    assert answer.status == 200, answer.body
    assert answer.json["outputs"] == flat
    assert flat[0]["shape"][0] == 2


@pytest.mark.parametrize(
    ("data", "shape", "words"),
    [
        ([[ONE], [TWO]], [2], "an element that is not a string of base64"),
        ([[ONE, TWO]], [2, 1], "not flat and not nested as inputs[0].shape, [2, 1]"),
        ([[ONE], TWO], [2, 1], "not flat and not nested as"),
        ([[ONE], []], [2, 1], "not flat and not nested as"),
        ([[ONE]], [2, 1], "has 1 elements, its shape makes 2"),
        ([[[ONE]], [[TWO]]], [2, 1], "an element that is not a string of base64"),
        ([[7], [TWO]], [2, 1], "an element that is not a string of base64"),
    ],
)
def test_strings_nested_in_another_way_are_refused(server: Running, data: Any, shape: list[int], words: str) -> None:
    answer = server.ask("POST", "/v2/models/tiny-detect/infer", encoded_body(data, shape))
    assert answer.status == 400
    assert answer.json["error"].startswith("inputs[0].data")
    assert words in answer.json["error"]


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_configuration_is_that_of_the_models(fresh: Running, version: str) -> None:
    config = fresh.ask("GET", f"/v2/models/tiny{version}/config").json
    assert config["name"] == "tiny"
    assert config["max_batch_size"] == 32  # images of one request
    assert config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, HEIGHT, WIDTH]}]
    assert config["output"] == [
        {"name": "boxes", "data_type": "TYPE_FP32", "dims": [-1, 4]},
        {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, 3]},
    ]
    assert config["dynamic_batching"] == {"preferred_batch_size": [4], "max_queue_delay_microseconds": 3000}
    assert config["instance_group"] == [{"name": "tiny", "count": 2}]
    detect = fresh.ask("GET", f"/v2/models/tiny-detect{version}/config").json
    assert detect["input"] == [
        {"name": "image", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}},
    ]
    assert [one["dims"] for one in detect["output"]] == [[-1, 4], [-1], [-1], [1]]


def test_configuration_is_what_tritons_client_parses(server: Running) -> None:
    """Its protobuf knows every key that we write."""
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the reference is tritonclient")
    from google.protobuf import json_format

    for name in ("tiny", "tiny-detect"):
        parsed = model_config.ModelConfig()
        json_format.ParseDict(server.ask("GET", f"/v2/models/{name}/config").json, parsed)
        assert parsed.max_batch_size == 32
        assert parsed.name == name


def test_statistics_count_what_was_asked(fresh: Running) -> None:
    assert fresh.ask("GET", "/v2/models/tiny/stats").json["model_stats"][0]["inference_count"] == 0
    for count in (1, 3):
        assert fresh.ask("POST", "/v2/models/tiny/infer", infer_body(images(0, count))).status == 200
    assert fresh.ask("POST", "/v2/models/tiny/infer", infer_body(np.full((1, 3, HEIGHT, WIDTH), 9.0))).status == 400
    assert fresh.ask("POST", "/v2/models/tiny-detect/infer", encoded_body([ONE], [1])).status == 200
    (tiny,) = fresh.ask("GET", "/v2/models/tiny/versions/1/stats").json["model_stats"]
    (detect,) = fresh.ask("GET", "/v2/models/tiny-detect/stats").json["model_stats"]
    assert (tiny["name"], tiny["version"], tiny["inference_count"]) == ("tiny", "1", 4)
    assert detect["inference_count"] == 1
    for one, answered, failed in ((tiny, 2, 1), (detect, 1, 0)):
        stats = one["inference_stats"]
        assert stats["success"]["count"] == answered
        assert stats["fail"]["count"] == failed
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        assert {stats[part]["count"] for part in parts} == {answered}
        assert 0 < sum(stats[part]["ns"] for part in parts) <= stats["success"]["ns"]
        # Both names run one network: batches of 1, 3 and 1 images, and two warm-ups of each runner, which do not count.
        assert {batch["batch_size"]: batch["compute_infer"]["count"] for batch in one["batch_stats"]} == {1: 2, 3: 1}
        assert one["execution_count"] == 3
        assert one["last_inference"] > 1.6e12
    everything = fresh.ask("GET", "/v2/models/stats").json["model_stats"]
    assert [one["name"] for one in everything] == ["tiny", "tiny-detect"]
    assert everything[0]["inference_count"] == 4


def test_tritons_http_client_reads_both(server: Running) -> None:
    client = pytest.importorskip("tritonclient.http", reason="the public client is not installed")
    with client.InferenceServerClient(server.http) as opened:
        assert opened.get_model_config("tiny")["max_batch_size"] == 32
        assert opened.get_inference_statistics("tiny")["model_stats"][0]["name"] == "tiny"
        assert {one["name"] for one in opened.get_inference_statistics()["model_stats"]} >= {"tiny", "other-detect"}
        extensions = opened.get_server_metadata()["extensions"]
    assert {"model_configuration", "statistics"} <= set(extensions)


@pytest.mark.parametrize("part", ["config", "stats"])
def test_of_an_unknown_model_there_is_nothing(server: Running, part: str) -> None:
    assert server.ask("GET", f"/v2/models/nobody/{part}").status == 404
    assert server.ask("GET", f"/v2/models/tiny/versions/7/{part}").status == 404


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("GET", "/v2/systemsharedmemory/status", "shared memory"),
        ("POST", "/v2/cudasharedmemory/region/a/register", "CUDA shared memory"),
        ("GET", "/v2/trace/setting", "trace settings"),
        ("POST", "/v2/models/tiny/trace/setting", "trace settings"),
        ("GET", "/v2/logging", "log settings"),
        ("POST", "/v2/models/tiny/generate", "generating text"),
    ],
)
def test_what_is_not_offered_is_named(server: Running, method: str, path: str, what: str) -> None:
    answer = server.ask(method, path)
    assert answer.status == 501
    assert answer.json == {"error": f"{what} is an extension of the protocol that this server does not offer"}
