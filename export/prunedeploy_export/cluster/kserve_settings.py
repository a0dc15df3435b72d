"""What can be asked of an InferenceService, and what Kubernetes or KServe would refuse of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from prunedeploy_engines.errors import ConfigError

STORAGE_SCHEMES = ("gs", "s3", "pvc", "hdfs", "webhdfs", "https", "http", "oci", "hf")
DEFAULT_TARGETS = {"concurrency": 8, "cpu": 80}

# KServe names pods after "<name>-predictor", and Kubernetes' labels end at 63 characters.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")


@dataclass(frozen=True)
class KServeSettings:
    """What to ask of the cluster.

    Attributes:
        name: Name of the service.
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
        timeout_s: Longest duration of a request, in the cluster's gateway.
        startup_s: How long loading may take before a replica counts as dead.
        cpu: Kubernetes quantity.
        memory: Kubernetes quantity.
        gpus: Per replica.
        service_account: Whose credentials fetch the model.
        token_secret: prunedeploy's server only: a Secret whose key ``token`` holds the bearer token of clients.
        precision: prunedeploy's server only: which of the bundle's models, or on GPUs of its TensorRT plans.
    """

    name: str
    namespace: str | None = None
    server: Literal["prunedeploy", "triton"] = "prunedeploy"
    image: str | None = None
    storage_uri: str | None = None
    min_replicas: int = 1
    max_replicas: int = 3
    scale_metric: Literal["concurrency", "rps", "cpu"] = "concurrency"
    scale_target: int | None = None
    concurrency: int | None = None
    timeout_s: int = 30
    startup_s: int = 60
    cpu: str = "1"
    memory: str = "2Gi"
    gpus: int = 0
    service_account: str | None = None
    token_secret: str | None = None
    precision: str = "fp32"


def check_settings(settings: KServeSettings) -> None:
    """Refuse what the cluster would refuse, before anybody asks it.

    Raises:
        ConfigError: With the option that is wrong.
    """
    lowercase = "use lower-case letters, digits and '-' (RFC 1123), and begin with a letter"
    if not _NAME.fullmatch(settings.name):
        raise ConfigError(f"{settings.name!r} is not a service name of at most 53 characters", "--name", lowercase)
    if settings.namespace is not None and not _NAMESPACE.fullmatch(settings.namespace):
        raise ConfigError(
            f"{settings.namespace!r} is not a valid namespace", "--namespace", lowercase.rpartition(",")[0]
        )
    _check_server(settings)
    _check_scaling(settings)
    for option, quantity in (("--cpu", settings.cpu), ("--memory", settings.memory)):
        if not _QUANTITY.fullmatch(quantity) or not quantity.strip("0.mkKMGTi"):
            raise ConfigError(
                f"{quantity!r} is not a valid amount", option, "write it as Kubernetes does, e.g. 500m, 2 or 2Gi"
            )
    if settings.gpus < 0:
        raise ConfigError(f"{settings.gpus} is not a number of GPUs", "--gpus")
    for option, seconds in (("--timeout-s", settings.timeout_s), ("--startup-s", settings.startup_s)):
        if seconds < 1:
            raise ConfigError(f"{seconds} is not a whole number of at least 1", option)


def _check_server(settings: KServeSettings) -> None:
    uri = settings.storage_uri
    if settings.server == "prunedeploy" and not settings.image:
        fix = "build one, see --dockerfile, or take --server triton"
        raise ConfigError("is needed for prunedeploy's server", "--image", fix)
    if settings.image is not None and (not settings.image or re.search(r"\s", settings.image)):
        raise ConfigError(f"{settings.image!r} is not the name of an image", "--image")
    if settings.server == "triton" and uri is None:
        raise ConfigError("is needed for Triton: where its repository was copied to", "--storage-uri")
    scheme, separator, rest = (uri or "").partition("://")
    if uri is not None and (scheme not in STORAGE_SCHEMES or not separator or not rest or re.search(r"\s", uri)):
        fix = f"begin with {', '.join(STORAGE_SCHEMES)} ://"
        raise ConfigError(f"{uri!r} is not an address that KServe fetches from", "--storage-uri", fix)
    secret = settings.token_secret
    if secret is not None and settings.server == "triton":
        raise ConfigError("is for prunedeploy's server; Triton has no tokens", "--token-secret", "leave it out")
    if secret is not None and not _NAMESPACE.fullmatch(secret):
        fix = "use lower-case letters, digits and '-'"
        raise ConfigError(f"{secret!r} is not the name of a Secret", "--token-secret", fix)


def _check_scaling(settings: KServeSettings) -> None:
    low, high, metric = settings.min_replicas, settings.max_replicas, settings.scale_metric
    if low < 0:
        raise ConfigError(f"{low} is negative", "--min-replicas")
    if high < max(1, low):
        raise ConfigError(f"{high} is less than {'--min-replicas' if low else 'one'} {low or ''}", "--max-replicas")
    if metric == "cpu" and low == 0:
        raise ConfigError("0 needs Knative, which does not scale by cpu", "--min-replicas", "scale by concurrency")
    if metric == "cpu" and settings.concurrency is not None:
        raise ConfigError("is kept by Knative, which does not scale by cpu", "--concurrency", "scale by concurrency")
    if settings.scale_target is None and metric not in DEFAULT_TARGETS:
        raise ConfigError(f"is needed for {metric}", "--scale-target", "measure what one replica can do")
    target = 1 if settings.scale_target is None else settings.scale_target
    if target < 1 or (metric == "cpu" and target > 100):
        raise ConfigError(f"{target} is not a target for {metric}", "--scale-target")
    if settings.concurrency is not None and settings.concurrency < 1:
        raise ConfigError(f"{settings.concurrency} is not a whole number of at least 1", "--concurrency")
