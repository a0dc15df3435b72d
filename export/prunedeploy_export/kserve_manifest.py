"""A bundle as an InferenceService of KServe: its manifest, for `kubectl apply`.

Two servers can stand behind it: prunedeploy's own, in a container of the user's, or Triton with a model repository
(`triton_repository`). Only fields that Knative lets through are used, so that one manifest serves both of KServe's
modes: security is set per container, and nothing is asked of the pod but empty folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.bundle_manifest import MANIFEST_NAME
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.version import __version__

from .serving_image import BUNDLE_FOLDER, TRITON_USER_ID, USER_ID

SERVERS = ("prunedeploy", "triton")
METRICS = ("concurrency", "rps", "cpu")
STORAGE_SCHEMES = ("gs", "s3", "pvc", "hdfs", "webhdfs", "https", "http", "oci", "hf")
MOUNTED = "/mnt/models"
"""Where KServe puts what lies at the storage URI."""

# KServe names pods after "<name>-predictor", and Kubernetes' labels end at 63 characters.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_PORTS = {"prunedeploy": 8000, "triton": 8080}
_METRICS_PORTS = {"prunedeploy": 8000, "triton": 8002}
_TARGETS = {"concurrency": 8, "cpu": 80}


@dataclass(frozen=True)
class KServeSettings:
    """What to ask of the cluster.

    Attributes:
        name: Of the service.
        namespace: None leaves it to `kubectl`.
        server: ``"prunedeploy"`` or ``"triton"``.
        image: The container's. prunedeploy's server needs one; Triton's replaces the cluster's, which has no Pillow.
        storage_uri: Where the bundle, or Triton's repository, lies. None: the image has the bundle in it.
        min_replicas: 0 lets the service sleep, not with ``scale_metric`` cpu.
        max_replicas: At least 1.
        scale_metric: ``"concurrency"`` and ``"rps"`` are Knative's; ``"cpu"`` is Kubernetes' own, without Knative.
        scale_target: Per replica: requests at once, requests per second, or % of the CPUs asked for. None is 8 at
            once, or 80 %.
        concurrency: Requests that a replica is ever given at once, the others wait before it; None is no limit.
        timeout_s: Of a request, in the cluster's gateway.
        startup_s: How long loading may take before a replica counts as dead.
        cpu: Kubernetes quantity.
        memory: Kubernetes quantity.
        gpus: Per replica.
        service_account: Whose credentials fetch the model.
        arguments: More for prunedeploy's server, e.g. ``("--precision", "int8")``.
    """

    name: str
    namespace: str | None = None
    server: str = "prunedeploy"
    image: str | None = None
    storage_uri: str | None = None
    min_replicas: int = 1
    max_replicas: int = 3
    scale_metric: str = "concurrency"
    scale_target: int | None = None
    concurrency: int | None = None
    timeout_s: int = 30
    startup_s: int = 60
    cpu: str = "1"
    memory: str = "2Gi"
    gpus: int = 0
    service_account: str | None = None
    arguments: tuple[str, ...] = ()


def inference_service(bundle: Bundle, settings: KServeSettings) -> dict[str, Any]:
    """The manifest, ready to be written as YAML.

    Args:
        bundle: From `load_bundle`, verified; the manifest says which one it is for.
        settings: What to ask of the cluster.

    Raises:
        ConfigError: A setting that Kubernetes or KServe would refuse, or that does not fit the others.
    """
    check_settings(settings)
    metadata: dict[str, Any] = {"name": settings.name}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    metadata["labels"] = {"app.kubernetes.io/name": settings.name, "app.kubernetes.io/component": "detector"}
    metadata["annotations"] = _annotations(bundle, settings)
    predictor: dict[str, Any] = {
        "minReplicas": settings.min_replicas,
        "maxReplicas": settings.max_replicas,
        "scaleMetric": settings.scale_metric,
        "scaleTarget": settings.scale_target or _TARGETS[settings.scale_metric],
        "timeout": settings.timeout_s,
    }
    if settings.concurrency is not None:
        predictor["containerConcurrency"] = settings.concurrency
    if settings.service_account is not None:
        predictor["serviceAccountName"] = settings.service_account
    if settings.server == "triton":
        predictor["model"] = _triton_model(settings)
    else:
        predictor["containers"] = [_container(settings)]
    predictor["volumes"] = _volumes(settings)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": predictor},
    }


def to_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest as text."""
    import yaml

    text: str = yaml.safe_dump(dict(manifest), sort_keys=False, default_flow_style=False, allow_unicode=True, width=120)
    return f"# Written by prunedeploy {__version__}; kubectl apply -f takes it.\n{text}"


def _annotations(bundle: Bundle, settings: KServeSettings) -> dict[str, str]:
    """Mode, metrics, and which bundle it is for. KServe takes ``cpu`` only where both of the first two are said."""
    standard = settings.scale_metric == "cpu"
    mode = {"serving.kserve.io/deploymentMode": "Standard" if standard else "Knative"}
    if standard:
        mode["serving.kserve.io/autoscalerClass"] = "hpa"
    return {
        **mode,
        "prometheus.io/scrape": "true",
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": str(_METRICS_PORTS[settings.server]),
        "prunedeploy/version": __version__,
        "prunedeploy/bundle-sha256": file_sha256(bundle.path / MANIFEST_NAME),
    }


def _triton_model(settings: KServeSettings) -> dict[str, Any]:
    """The cluster's Triton runtime, whose container these fields are laid over."""
    return {
        "modelFormat": {"name": "triton"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": settings.storage_uri,
        **({} if settings.image is None else {"image": settings.image}),
        **_around(settings, TRITON_USER_ID),
    }


def _container(settings: KServeSettings) -> dict[str, Any]:
    """The container of prunedeploy's own server."""
    bundle = BUNDLE_FOLDER if settings.storage_uri is None else MOUNTED
    port = _PORTS[settings.server]
    storage = [] if settings.storage_uri is None else [{"name": "STORAGE_URI", "value": settings.storage_uri}]
    return {
        "name": "kserve-container",  # KServe looks for this name
        "image": settings.image,
        "args": ["serve", bundle, "--host", "0.0.0.0", "--port", str(port), *settings.arguments],
        **({"env": storage} if storage else {}),
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        **_around(settings, USER_ID),
    }


def _around(settings: KServeSettings, user: int) -> dict[str, Any]:
    """What both containers have: resources, probes, and as few rights as possible."""
    amounts = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        amounts["nvidia.com/gpu"] = str(settings.gpus)
    mounts = [{"name": volume["name"], "mountPath": path} for volume, path in _folders(settings)]
    return {
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "readinessProbe": _probe(settings, "ready", periodSeconds=5, failureThreshold=3),
        "livenessProbe": _probe(
            settings, "live", initialDelaySeconds=settings.startup_s, periodSeconds=10, failureThreshold=3
        ),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }


def _probe(settings: KServeSettings, kind: str, **timing: int) -> dict[str, Any]:
    request = {"path": f"/v2/health/{kind}", "port": _PORTS[settings.server]}
    return {"httpGet": request, "timeoutSeconds": 3, **timing}


def _volumes(settings: KServeSettings) -> list[dict[str, Any]]:
    return [volume for volume, _ in _folders(settings)]


def _folders(settings: KServeSettings) -> list[tuple[dict[str, Any], str]]:
    """Where a container may write, since its own root is read-only: volumes and where they are mounted."""
    folders: list[tuple[dict[str, Any], str]] = [({"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}, "/tmp")]
    if settings.server == "triton":  # its Python models are processes that hand over images in shared memory
        folders.append(({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}, "/dev/shm"))
    return folders


def check_settings(settings: KServeSettings) -> None:
    """Refuse what the cluster would refuse, before anybody asks it.

    Raises:
        ConfigError: With the option that is wrong.
    """
    lowercase = "use lower-case letters, digits and '-' (RFC 1123), and begin with a letter"
    if not _NAME.fullmatch(settings.name):
        raise ConfigError(f"{settings.name!r} is no name of a service of at most 53 characters", "--name", lowercase)
    if settings.namespace is not None and not _NAMESPACE.fullmatch(settings.namespace):
        raise ConfigError(f"{settings.namespace!r} is no namespace", "--namespace", lowercase.rpartition(",")[0])
    _check_server(settings)
    _check_scaling(settings)
    for option, quantity in (("--cpu", settings.cpu), ("--memory", settings.memory)):
        if not _QUANTITY.fullmatch(quantity) or not quantity.strip("0.mkKMGTi"):
            raise ConfigError(f"{quantity!r} is no amount", option, "write it as Kubernetes does, e.g. 500m, 2 or 2Gi")
    if settings.gpus < 0:
        raise ConfigError(f"{settings.gpus} is no number of GPUs", "--gpus")
    for option, seconds in (("--timeout-s", settings.timeout_s), ("--startup-s", settings.startup_s)):
        if seconds < 1:
            raise ConfigError(f"{seconds} is not a whole number of at least 1", option)


def _check_server(settings: KServeSettings) -> None:
    uri = settings.storage_uri
    if settings.server not in SERVERS:
        raise ConfigError(f"{settings.server!r} is not known", "--server", f"choose from {', '.join(SERVERS)}")
    if settings.server == "prunedeploy" and not settings.image:
        raise ConfigError(
            "is needed for prunedeploy's server", "--image", "build one, see --dockerfile, or take --server triton"
        )
    if settings.image is not None and (not settings.image or re.search(r"\s", settings.image)):
        raise ConfigError(f"{settings.image!r} is no image", "--image")
    if settings.server == "triton" and uri is None:
        raise ConfigError("is needed for Triton: where its repository was copied to", "--storage-uri")
    scheme, separator, rest = (uri or "").partition("://")
    if uri is not None and (scheme not in STORAGE_SCHEMES or not separator or not rest or re.search(r"\s", uri)):
        raise ConfigError(
            f"{uri!r} is nothing that KServe fetches", "--storage-uri", f"begin with {', '.join(STORAGE_SCHEMES)} ://"
        )
    if settings.server == "triton" and settings.arguments:
        raise ConfigError("are for prunedeploy's server", "arguments", "leave them out with --server triton")


def _check_scaling(settings: KServeSettings) -> None:
    low, high, metric = settings.min_replicas, settings.max_replicas, settings.scale_metric
    if low < 0:
        raise ConfigError(f"{low} is negative", "--min-replicas")
    if high < max(1, low):
        raise ConfigError(f"{high} is less than {'--min-replicas' if low else 'one'} {low or ''}", "--max-replicas")
    if metric not in METRICS:
        raise ConfigError(f"{metric!r} is not known", "--scale-metric", f"choose from {', '.join(METRICS)}")
    if metric == "cpu" and low == 0:
        raise ConfigError("0 needs Knative, which does not scale by cpu", "--min-replicas", "scale by concurrency")
    if metric == "cpu" and settings.concurrency is not None:
        raise ConfigError("is kept by Knative, which does not scale by cpu", "--concurrency", "scale by concurrency")
    if settings.scale_target is None and metric not in _TARGETS:
        raise ConfigError(f"is needed for {metric}", "--scale-target", "measure what one replica can do")
    target = 1 if settings.scale_target is None else settings.scale_target
    if target < 1 or (metric == "cpu" and target > 100):
        raise ConfigError(f"{target} is no target for {metric}", "--scale-target")
    if settings.concurrency is not None and settings.concurrency < 1:
        raise ConfigError(f"{settings.concurrency} is not a whole number of at least 1", "--concurrency")
