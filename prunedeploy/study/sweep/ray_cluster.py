"""A connection to Ray: on this machine alone, or to a cluster that this machine is a node of."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from prunedeploy.study.sweep.identity import PACKAGES, package_folder
from prunedeploy_engines.errors import ConfigError

LOCAL = "local"
EXTRA = "pip install prunedeploy[cluster]"
WHERE = "--ray-address"
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_ANSWER = 30.0
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_AWAY = 20.0
"""So long a running sweep waits for a head node that is started again."""
OBJECT_STORE_BYTES = 80_000_000  # only short texts go through it; less than this Ray refuses
QUIET = {"logging_level": "ERROR", "log_to_driver": False}
# Connecting for real is the only public way to see whether an address answers. To one that does not, Ray goes on for
# minutes and then ends the whole process; so it is tried in another one, which can be ended.
_TRIAL = f"""
import json, sys, ray
try:
    ray.init(address=sys.argv[1], **{QUIET})
    print(json.dumps(dict(address=ray.get_runtime_context().gcs_address)))
except (Exception, SystemExit) as error:
    print(json.dumps(dict(error=str(error))))
"""


class RayCluster:
    """A connection to Ray, until it is closed; one at a time.

    Args:
        address: ``local`` to start Ray on this machine until then; ``HOST:PORT`` of a cluster; ``auto`` for
            the one that this machine is a node of; None: the environment's ``RAY_ADDRESS``, else ``local``.
        cpus: That a local Ray may use.

    Raises:
        ConfigError: Ray is not installed, or the address does not answer.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        # All of these are read when Ray is imported.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self.address == LOCAL and "RAY_AUTH_MODE" not in os.environ:
            # Nobody else on this machine may use it; and without a token Ray leaves one in the home folder.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        try:
            import ray
        except ImportError:
            raise ConfigError("Ray is not installed", "--executor ray", EXTRA) from None
        self._ray = ray
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._connect(cpus)
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
        self._head: str = ray.get_runtime_context().gcs_address
        self._looked, self._answered = float("-inf"), time.monotonic()
        self._nodes: list[dict[str, float]] = []

    def _connect(self, cpus: int) -> None:
        settings: dict[str, Any] = {**QUIET, "runtime_env": {"env_vars": _environment()}}
        if self.address == LOCAL:
            settings |= {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        address = LOCAL if self.address == LOCAL else _answering(self.address)
        try:
            self._ray.init(address=address, **settings)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray raises many kinds, and ends the process too
            raise ConfigError(f"Ray cannot be started ({_line(error)})", f"{WHERE} {self.address}") from None

    def look(self) -> bool:
        """See whether the cluster answers, and which nodes it has; every few seconds, however often it is called.

        While it does not, Ray's own calls would wait for it, and after a minute end this process.

        Raises:
            ConfigError: It has not answered for a while.
        """
        now = time.monotonic()
        if now < self._looked + SECONDS_BETWEEN_LOOKS:
            return self._looked == self._answered
        self._looked = now
        try:
            _connect_to(self._head)
        except OSError:
            if now - self._answered > SECONDS_AWAY:
                what = f"the cluster has not answered for {SECONDS_AWAY:.0f} s"
                raise ConfigError(what, f"{WHERE} {self.address}", "fix it; the same command then resumes") from None
            return False
        self._nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._answered = now
        return True

    def capacity(self, cpus: float, gpus: float) -> int:
        """How many tasks with these resources the nodes last seen can do at once, were they idle."""
        return sum(
            min(int(node.get(name, 0.0) / needed) for name, needed in (("CPU", cpus), ("GPU", gpus)) if needed)
            for node in self._nodes
        )

    def close(self) -> None:
        """Disconnect, and end a Ray that was started here."""
        self._ray.shutdown()


def _environment() -> dict[str, str]:
    """Environment of Ray's processes: a checkout is found where the driver has it, if a node sees it there."""
    folders = {str(package_folder(package).parent): None for package in PACKAGES}
    paths = [path for path in folders if not path.endswith("-packages")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(paths)}


def _answering(address: str) -> str:
    """``HOST:PORT`` of a cluster that answers.

    Raises:
        ConfigError: None does.
    """
    where = f"{WHERE} {address}"
    fix = "check it with `ray status`, and start the sweep on a node of the cluster, with its token if it has one"
    if "://" in address:
        raise ConfigError("Ray Client cannot be used", where, "give HOST:PORT, as `ray start` does")
    if address != "auto":
        _check_port(address, where, fix)
    command = [sys.executable, "-c", _TRIAL, address]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS_TO_ANSWER, check=False
        )
        said = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        raise ConfigError(f"no Ray cluster answers within {SECONDS_TO_ANSWER:.0f} s", where, fix) from None
    if "error" in said:
        raise ConfigError(f"no Ray cluster answers ({_line(said['error'])})", where, fix)
    return str(said["address"])


def _check_port(address: str, where: str, fix: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError("is not an address", where, "give HOST:PORT, auto or local")
    try:
        _connect_to(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers ({_line(error)})", where, fix) from None


def _connect_to(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
