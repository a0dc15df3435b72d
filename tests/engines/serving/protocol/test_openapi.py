"""The server against its own OpenAPI document, by schemathesis; and the document as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from prunedeploy_engines import Bundle
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.http.docs_page import docs_page
from prunedeploy_engines.serving.http.openapi import openapi_document
from served_protocol import Running, running

if TYPE_CHECKING:
    from collections.abc import Callable

schemathesis = pytest.importorskip("schemathesis", reason="the reference is schemathesis")


def operations_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Methods and paths."""
    paths = document["paths"].items()
    return [(method.upper(), path) for path, item in paths for method in item if method in ("get", "post")]


DOCUMENT = openapi_document(ServingSettings())
SHARED = openapi_document(ServingSettings(shared_memory=Path("/dev/shm").is_dir()))
OPERATIONS = operations_of(DOCUMENT)


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> Iterator[Running]:
    """Offers shared memory too."""
    with running({"tiny": bundle}, shared_memory=True) as there:
        yield there


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_the_document_says(server: Running, method: str, path: str) -> None:
    check_operation(server, DOCUMENT, method, path)


@pytest.mark.parametrize(("method", "path"), [one for one in operations_of(SHARED) if one not in OPERATIONS])
def test_so_is_shared_memory(shared: Running, method: str, path: str) -> None:
    assert "systemsharedmemory" in path
    assert shared.ask("GET", "/openapi.json").json == SHARED
    check_operation(shared, SHARED, method, path)


def check_operation(server: Running, described: dict[str, Any], method: str, path: str) -> None:
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi_checks

    # What a tensor's data must be depends on the model, which no schema can say: whether a request that the schema
    # allows is answered 200 or 400 is not asked of it.
    asked: list[Callable[..., Any]] = [
        checks.not_a_server_error,
        openapi_checks.status_code_conformance,
        openapi_checks.content_type_conformance,
        openapi_checks.response_headers_conformance,
        openapi_checks.response_schema_conformance,
        openapi_checks.unsupported_method,
    ]
    document = {**described, "servers": [{"url": f"http://{server.http}"}]}
    schema = schemathesis.openapi.from_dict(document)
    answers = []

    operation = schema[path][method]

    @schemathesis_given(operation)
    def run(case: Any) -> None:
        response = case.call(base_url=f"http://{server.http}", timeout=20)
        answers.append(response)
        # 503 and 504 are documented, and no failures: the server is busy, or the client gave it no time.
        expected = response.status_code in (503, 504)
        case.validate_response(response, checks=asked[1:] if expected else asked)

    run()
    assert answers


def schemathesis_given(operation: Any) -> Any:
    from hypothesis import given

    def decorate(function: Any) -> Any:
        bounded = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        return bounded(given(case=operation.as_strategy())(function))

    return decorate


def test_document_names_every_address_but_those_of_the_page(server: Running) -> None:
    served = server.ask("GET", "/openapi.json").json
    assert served == DOCUMENT
    for _, path in OPERATIONS:
        filled = path.replace("{name}", "tiny").replace("{version}", "1")
        assert server.ask("PUT", filled).status == 405, path


def test_docs_are_the_document_without_scripts(server: Running) -> None:
    answer = server.ask("GET", "/docs")
    text = answer.body.decode()
    assert text == docs_page(DOCUMENT)
    for method, path in OPERATIONS:
        assert f"<code>{method} {path}</code>" in text
    assert not re.search(r"<script|<style|\sstyle=|https?:", text)
    for address in re.findall(r'href="([^"]+)"', text):
        assert server.ask("GET", f"/{address.removeprefix('./')}").status == 200
