"""What HTTP and gRPC share: models, limits that hold for both together, the token, and who counts."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from prunedeploy_engines.serving.core.image_room import ImageRoom
from prunedeploy_engines.serving.core.limits import BodyBudget
from prunedeploy_engines.serving.core.models import ProtocolModels
from prunedeploy_engines.serving.core.repository import ModelRepository
from prunedeploy_engines.serving.core.security import Token
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.telemetry.metrics import Metrics
from prunedeploy_engines.serving.telemetry.telemetry import Telemetry


@dataclass(frozen=True)
class Service:
    """See above; made by `service_of`."""

    models: ProtocolModels
    settings: ServingSettings
    budget: BodyBudget
    token: Token
    telemetry: Telemetry


_services: WeakKeyDictionary[ModelRepository, Service] = WeakKeyDictionary()


def service_of(repository: ModelRepository, settings: ServingSettings) -> Service:
    """The service around a repository, made when first asked for.

    Args:
        repository: If its observer is `Metrics`, requests are counted there too.
        settings: The server's settings.

    Raises:
        ConfigError: Traces are asked for, and OpenTelemetry is not installed.
    """
    if repository not in _services:
        observer = repository.observer
        tracing = None
        if settings.otlp_endpoint is not None:
            from prunedeploy_engines.serving.telemetry.tracing import Tracing, otlp_exporter

            tracing = Tracing(otlp_exporter(settings.otlp_endpoint))
        _services[repository] = Service(
            ProtocolModels(repository, settings, ImageRoom(settings.max_pixels)),
            settings,
            BodyBudget(settings.max_body_bytes),
            Token(settings.token),
            Telemetry(observer if isinstance(observer, Metrics) else Metrics(), tracing),
        )
    return _services[repository]
