"""Nodes of a real Ray cluster on this machine, each of them a real ``ray start``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_study import child_workers

# A node that is gone refuses connections, which is seen soon; one that is only slow has the time it needs.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 4,
}
SMALL = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def children() -> dict[int, list[int]]:
    """Ids of all processes that live, by the id of their parent."""
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found.setdefault(int(parent), []).append(int(folder.name))
    return found


def in_session(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(folder.name))
    return found


class Node:
    """A node with one CPU; ``address`` None makes a head."""

    def __init__(self, folder: Path, address: str | None) -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        if address is None:
            head = [f"--port={self.address.rpartition(':')[2]}", f"--temp-dir={folder}", "--include-dashboard=false"]
            place = [
                "--head",
                *head,
                f"--ray-client-server-port={free_port()}",
                f"--system-config={json.dumps(HEALTH)}",
            ]
        else:
            place = [f"--address={address}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *place, *SMALL],
            env={**os.environ, "RAY_worker_niceness": "0"},  # 15 else: on a busy machine the tests would starve
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # by which its processes are known
        )
        self._session = process.pid
        output, _ = process.communicate(timeout=60)
        if process.returncode != 0:
            self.lose()
            raise RuntimeError(output)

    def processes(self) -> list[int]:
        """All of the node, its tasks and their workers included."""
        below, found = children(), in_session(self._session)
        for one in found:
            found += [child for child in below.get(one, []) if child not in found]
        return found

    def tasks(self) -> list[int]:
        """Ray's processes that have a worker of ours."""
        return [process for process in self.processes() if child_workers(process)]

    def lose(self) -> None:
        """All processes at once, as when the power goes."""
        while found := self.processes():
            for process in found:
                os.kill(process, signal.SIGSTOP)  # or the raylet is survived by what it has just started
            for process in found:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


class Nodes:
    """A head, and a second node that can be lost and started again."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pd-ray-"))  # a socket's path has at most 107 bytes
        self.head = Node(self._folder, None)
        self.address = self.head.address
        self.start_second()

    def start_second(self) -> None:
        try:
            self.second = Node(self._folder, self.address)
        except BaseException:
            self.head.lose()
            raise

    def stop(self) -> None:
        self.second.lose()
        self.head.lose()
        shutil.rmtree(self._folder)
