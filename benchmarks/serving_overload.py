"""Minutes at twice the sustainable rate: memory, answers, deadlines, and the end by SIGTERM.

    python benchmarks/serving_overload.py --bundle runs/demo-structured-bn-scale-0.75-s0/bundle [--minutes 10]

Requests come at fixed times, whatever became of the ones before (an open loop), each with a deadline. All times are the
client's, from the moment it writes the first byte until it has the last one. Counted: answers by status, 200s that came
after their deadline, requests without any answer, memory of the server. How late the client itself was is told too,
since it waits for a core like everybody else. In the end SIGTERM comes in the middle of the load: what was accepted
must be answered, what comes later is refused a connection or an answer of 503. `--minutes 0.2` is enough to see
whether it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _serving import Connection, Server, infer_request, keep_asking, pixels_for, post, served

from prunedeploy_engines.bundle import load_bundle
from prunedeploy_engines.machine.environment import machine_info

OPTIONS = ("--threads", "1", "--max-queue", "32")
LAST_SECONDS = 1.0
MEMORY_SAMPLES = 10


@dataclass
class Outcome:
    """What became of the load.

    Attributes:
        offered: Requests that were due.
        unsent: Of these, those that found every connection waiting for its answer.
        statuses: How often each came, or what came instead.
        waited: Seconds of the 200s.
        refused: Seconds of the 503s.
        behind: Seconds by which requests were written after they were due.
        memory: Bytes of the server, at even distances.
    """

    offered: int = 0
    unsent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


async def overload(server: Server, request: bytes, rate: float, seconds: float, connections: int) -> Outcome:
    """Load the server; SIGTERM comes a second before the end."""
    outcome = Outcome()
    # In turns: one that rests for half a minute is closed by the server, perhaps as the next request is written.
    free = deque(Connection(server.http) for _ in range(connections))
    running: set[asyncio.Task[None]] = set()
    stopped_at = float("inf")

    async def ask(connection: Connection) -> None:
        begun = time.perf_counter()
        try:
            status, _ = await connection.ask(request)
            taken = time.perf_counter() - begun
            outcome.statuses[str(status)] += 1
            if status == 200:
                outcome.waited.append(taken)
            elif status == 503:
                outcome.refused.append(taken)
        except OSError:
            # After SIGTERM a new connection is refused, or an idle one closed under a request that was never read.
            outcome.statuses["refused while stopping" if time.perf_counter() > stopped_at else "lost"] += 1
        free.append(connection)

    begun = time.perf_counter()
    while (now := time.perf_counter() - begun) < seconds + LAST_SECONDS:
        if now > seconds and stopped_at == float("inf"):
            server.process.send_signal(signal.SIGTERM)
            stopped_at = time.perf_counter()
        if len(outcome.memory) + 0.5 <= MEMORY_SAMPLES * now / seconds and len(outcome.memory) < MEMORY_SAMPLES:
            outcome.memory.append(server.rss_bytes())
        while outcome.offered < int(now * rate):
            outcome.behind.append(now - outcome.offered / rate)
            outcome.offered += 1
            if free:
                task = asyncio.create_task(ask(free.popleft()))
                running.add(task)
                task.add_done_callback(running.discard)
            else:
                outcome.unsent += 1
        await asyncio.sleep(0.001)
    await asyncio.gather(*running)
    return outcome


def told(outcome: Outcome, deadline_s: float) -> list[str]:
    """The lines to print."""
    waited = 1e3 * np.array(outcome.waited or [np.nan])
    late = sum(one > deadline_s for one in outcome.waited)
    kept = 100 * (1 - late / max(1, len(outcome.waited)))
    lines = [
        "answers: " + ", ".join(f"{count} x {status}" for status, count in sorted(outcome.statuses.items())),
        f"200s: {kept:.2f} % within their deadline of {1e3 * deadline_s:.0f} ms, {late} after it; "
        f"median {np.median(waited):.0f} ms, 99 % {np.quantile(waited, 0.99):.0f} ms, slowest {waited.max():.0f} ms",
    ]
    if outcome.refused:
        refused = 1e3 * np.array(outcome.refused)
        lines.append(f"503s: median {np.median(refused):.1f} ms, 99 % {np.quantile(refused, 0.99):.0f} ms")
    behind = 1e3 * np.array(outcome.behind)
    lines.append(f"the client wrote 99 % of the requests within {np.quantile(behind, 0.99):.0f} ms of their time")
    mib = [size / 2**20 for size in outcome.memory]
    change = 100 * (mib[-1] / mib[0] - 1)
    lines.append(f"memory, MiB: {' '.join(f'{size:.1f}' for size in mib)}; from first to last {change:+.1f} %")
    return lines


def main() -> None:
    """Find the sustainable rate, then go to twice that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--image", type=Path, help="have objects found in this file, instead of sending tensors")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    parser.add_argument("--connections", type=int, default=48)
    parser.add_argument("--times", type=float, default=2.0, help="the sustainable rate")
    arguments = parser.parse_args()

    file = None if arguments.image is None else arguments.image.read_bytes()
    images = None if file else pixels_for(load_bundle(arguments.bundle), 1)

    def asking(timeout_ms: float | None = None) -> bytes:
        if images is not None:
            return infer_request(images, timeout_ms=timeout_ms)
        deadline = "" if timeout_ms is None else f"X-Request-Timeout: {timeout_ms / 1e3}\r\n"
        return post("/v1/detect", file, f"Content-Type: application/octet-stream\r\n{deadline}")

    with served(arguments.bundle, *OPTIONS) as server:
        request = asking(arguments.deadline_ms)
        seconds = 60 * arguments.minutes
        asyncio.run(keep_asking(server, asking(), 8, min(3.0, seconds)))
        answered, wall = asyncio.run(keep_asking(server, asking(), 8, min(10.0, seconds)))
        sustainable = len(answered) / wall
        rate = arguments.times * sustainable
        cpu = machine_info()["cpu"]["name"]
        print(f"CPU {cpu}; serve {' '.join(OPTIONS)}; sustainable, by 8 clients: {sustainable:.0f}/s")
        outcome = asyncio.run(overload(server, request, rate, seconds, arguments.connections))
        ended = server.process.wait(60)
    print(
        f"{outcome.offered} requests of {len(request)} bytes in {seconds:.0f} s at {rate:.0f}/s, "
        f"{arguments.connections} connections ({outcome.unsent} found none free)"
    )
    print("\n".join(told(outcome, arguments.deadline_ms / 1e3)))
    lost = outcome.statuses["lost"]
    print(f"SIGTERM in the middle of it: the server ended with {ended}, {lost} requests lost")


if __name__ == "__main__":
    main()
