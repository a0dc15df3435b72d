"""One server for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prunedeploy_engines import Bundle
from served_protocol import Running, running, tiny_bundle

for needed in ("fastapi", "uvicorn", "grpc", "prometheus_client", "python_multipart"):
    pytest.importorskip(needed, reason="the server needs the extra 'serve'")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Around the tiny detector."""
    return tiny_bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(bundle: Bundle) -> Iterator[Running]:
    """Serves it twice, as ``tiny`` and as ``other``."""
    with running({"tiny": bundle, "other": bundle}) as there:
        yield there
