"""A bundle as an InferenceService of KServe: its manifest, for `kubectl apply`.

Two servers can stand behind it: prunedeploy's own, in a container of the user's, or Triton with a model repository
(`triton_repository`). Only fields that Knative lets through are used, so that one manifest serves both of KServe's
modes: security is set per container, and nothing is asked of the pod but empty folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.bundle.manifest import MANIFEST_NAME
from prunedeploy_engines.errors import BundleError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.runtimes.tensorrt.engine_file import read_engine_file
from prunedeploy_engines.version import __version__
from prunedeploy_export.cluster.kserve_settings import DEFAULT_TARGETS, KServeSettings, check_settings
from prunedeploy_export.cluster.serving_image import BUNDLE_FOLDER, TRITON_USER_ID, USER_ID

MOUNTED = "/mnt/models"
"""Where KServe puts what lies at the storage URI."""

_PORTS = {"prunedeploy": 8000, "triton": 8080}
_METRICS_PORTS = {"prunedeploy": 8000, "triton": 8002}


def inference_service(bundle: Bundle, settings: KServeSettings) -> dict[str, Any]:
    """The manifest, ready to be written as YAML.

    Args:
        bundle: From `load_bundle`, verified; the manifest says which one it is for.
        settings: What to ask of the cluster.

    Raises:
        ConfigError: A setting that Kubernetes or KServe would refuse, or that does not fit the others.
        BundleError: prunedeploy's server would find no model of this precision.
    """
    check_settings(settings)
    if settings.server == "prunedeploy":
        _check_model(bundle, settings)
    metadata: dict[str, Any] = {"name": settings.name}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    metadata["labels"] = {"app.kubernetes.io/name": settings.name, "app.kubernetes.io/component": "detector"}
    metadata["annotations"] = _annotations(bundle, settings)
    predictor: dict[str, Any] = {
        "minReplicas": settings.min_replicas,
        "maxReplicas": settings.max_replicas,
        "scaleMetric": settings.scale_metric,
        "scaleTarget": settings.scale_target or DEFAULT_TARGETS[settings.scale_metric],
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
    predictor["volumes"] = [volume for volume, _ in _folders(settings)]
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
    """The container of prunedeploy's own server. Knative takes one port, so it is HTTP's."""
    bundle = BUNDLE_FOLDER if settings.storage_uri is None else MOUNTED
    port = _PORTS[settings.server]
    runtime = ["--runtime", "tensorrt"] if settings.gpus else []
    arguments = ["--host", "0.0.0.0", "--port", str(port), "--no-grpc", *runtime, "--precision", settings.precision]
    variables: list[dict[str, Any]] = []
    if settings.storage_uri is not None:
        variables.append({"name": "STORAGE_URI", "value": settings.storage_uri})
    if settings.token_secret is not None:
        secret = {"name": settings.token_secret, "key": "token"}
        variables.append({"name": "PRUNEDEPLOY_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    return {
        "name": "kserve-container",  # KServe looks for this name
        "image": settings.image,
        "args": ["serve", f"{settings.name}={bundle}", *arguments],
        **({"env": variables} if variables else {}),
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        **_around(settings, USER_ID),
    }


def _around(settings: KServeSettings, user: int) -> dict[str, Any]:
    """What both containers have: resources, probes, and as few rights as possible."""
    amounts = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        amounts["nvidia.com/gpu"] = str(settings.gpus)
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
        "volumeMounts": [{"name": volume["name"], "mountPath": path} for volume, path in _folders(settings)],
    }


def _probe(settings: KServeSettings, kind: str, **timing: int) -> dict[str, Any]:
    request = {"path": f"/v2/health/{kind}", "port": _PORTS[settings.server]}
    return {"httpGet": request, "timeoutSeconds": 3, **timing}


def _folders(settings: KServeSettings) -> list[tuple[dict[str, Any], str]]:
    """Where a container may write, since its own root is read-only: volumes and where they are mounted."""
    folders: list[tuple[dict[str, Any], str]] = [({"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}, "/tmp")]
    if settings.server == "triton":  # its Python models are processes that hand over images in shared memory
        folders.append(({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}, "/dev/shm"))
    return folders


def _check_model(bundle: Bundle, settings: KServeSettings) -> None:
    """See that the server will find its model: on a GPU it computes with TensorRT."""
    if not settings.gpus:
        bundle.model_path(settings.precision, "cpu")
    elif gpu_library(bundle, settings.precision) is None:
        raise BundleError(
            f"has no TensorRT plan in {settings.precision}, which prunedeploy's server needs to compute on a GPU",
            where=bundle.path,
            fix="build one with `prunedeploy engine`, leave --gpus out, or take --server triton",
        )


def gpu_library(bundle: Bundle, precision: str) -> str | None:
    """``"tensorrt"`` or ``"tensorrt_rtx"``: what the bundle's plans of a precision are for; None without any."""
    for name, entry in bundle.manifest.files.items():
        if entry.role == "engine" and entry.precision == precision:
            return read_engine_file(bundle.path / name, verify=False).library
    return None
