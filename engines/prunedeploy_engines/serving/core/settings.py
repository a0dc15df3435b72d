"""What a server is started with, checked before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.serving.core.shared_memory import FOLDER

MIB = 1 << 20
_MAY_BE_ZERO = {"port", "grpc_port", "max_delay_ms"}


@dataclass(frozen=True)
class ServingSettings:
    """How a server listens, gathers, limits and protects itself.

    Attributes:
        host: Address to listen at; loopback unless told otherwise.
        port: Port of HTTP; 0 takes a free one.
        grpc_port: Port of gRPC; 0 takes a free one, None: no gRPC.
        max_batch: Images that are computed together at most.
        max_delay_ms: How long images wait for others, at most, in milliseconds.
        max_queue: Images of one model that may wait; requests beyond it are refused.
        timeout_s: Deadline of a request that names none, in seconds.
        workers: Runners of a model, a thread each.
        threads: Threads of one runner, on a CPU; None leaves it to the runtime.
        runtime: What runs the models; None takes the first that is installed and that a bundle has a file for.
        precision: Which of a bundle's files.
        max_body_bytes: Largest size of a request.
        max_pixels: Largest number of pixels of an encoded image, by its header.
        max_json_depth: Nesting of a JSON body.
        max_images: In one request.
        body_timeout_s: How long a client may take to send its request, in seconds.
        shared_memory: Clients of this machine may pass tensors in shared memory.
        grace_s: How long accepted requests may take after the server was told to stop, in seconds.
        token: What clients must show as ``Authorization: Bearer TOKEN``; None: nothing.
        tls_certificate: PEM file; None: no TLS.
        tls_key: PEM file of its private key.
        otlp_endpoint: Where traces go, e.g. ``http://localhost:4318/v1/traces``; None: nowhere.

    Raises:
        ConfigError: A value that no server can run with.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    max_batch: int = 8
    max_delay_ms: float = 2.0
    max_queue: int = 64
    timeout_s: float = 10.0
    workers: int = 1
    threads: int | None = None
    runtime: str | None = None
    precision: str = "fp32"
    max_body_bytes: int = 32 * MIB
    max_pixels: int = 50_000_000
    max_json_depth: int = 32
    max_images: int = 32
    body_timeout_s: float = 20.0
    shared_memory: bool = False
    grace_s: float = 30.0
    token: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                lowest = 0 if field.name in _MAY_BE_ZERO else math.ulp(0.0) if isinstance(value, float) else 1
                if not (math.isfinite(value) and value >= lowest):
                    raise ConfigError(f"{field.name} cannot be {value:g}", fix="give a positive number")
        if not self.host:  # to gRPC, an empty host is every address of the machine
            raise ConfigError("the host is empty", fix="give an address, such as 127.0.0.1")
        for port in (self.port, self.grpc_port):
            if port is not None and port > 65535:
                raise ConfigError(f"there is no port {port}", fix="give one from 1 to 65535, or 0 for a free one")
        if self.port and self.port == self.grpc_port:
            raise ConfigError(f"HTTP and gRPC cannot both have port {self.port}", fix="give gRPC another one")
        if self.max_batch > self.max_queue:
            raise ConfigError(
                f"a queue of {self.max_queue} images never fills a batch of {self.max_batch}",
                fix="let max_queue be at least max_batch",
            )
        if self.shared_memory and not FOLDER.is_dir():
            raise ConfigError(f"there is no {FOLDER} here, so no shared memory can be offered", fix="leave it out")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("TLS needs a certificate and its key", fix="give both files or none")
        if self.token is not None and (not self.token or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError("the token is empty or not plain ASCII", fix="give printable characters, e.g. 32 of them")
