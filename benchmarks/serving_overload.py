"""Minutes at twice the sustainable rate: memory, answers, deadlines, and the end by SIGTERM.

    python benchmarks/serving_overload.py --bundle runs/demo-structured-bn-scale-0.75-s0/bundle [--minutes 10]

Requests come at fixed times, whatever became of the ones before (an open loop), each with a deadline. Counted: answers
by status, 200s that came after their deadline, requests without any answer, memory of the server minute by minute. In
the end SIGTERM comes in the middle of the load: what was accepted must be answered, what comes later is refused a
connection or an answer of 503.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
from _serving import Connection, Server, infer_request, keep_asking, served

from prunedeploy_engines.bundle import load_bundle
from prunedeploy_engines.machine.environment import machine_info

CONNECTIONS = 48
OPTIONS = ("--threads", "1", "--max-queue", "32")
LAST_SECONDS = 1.0


async def overload(server: Server, request: bytes, rate: float, seconds: float, deadline_s: float) -> None:
    """Load the server and print what became of it."""
    statuses: Counter[str] = Counter()
    late, waited, memory = 0, [], []
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(server.http))
    running: set[asyncio.Task[None]] = set()
    unsent, stopped_at = 0, float("inf")

    async def ask(connection: Connection) -> None:
        nonlocal late
        begun = time.perf_counter()
        try:
            status, _ = await connection.ask(request)
            taken = time.perf_counter() - begun
            statuses[str(status)] += 1
            if status == 200:
                waited.append(taken)
                late += taken > deadline_s
        except OSError:
            # After SIGTERM a new connection is refused, or an idle one closed under a request that was never read.
            statuses["refused while stopping" if time.perf_counter() > stopped_at else "lost"] += 1
        free.put_nowait(connection)

    begun = time.perf_counter()
    number = 0
    minute = 0
    while (now := time.perf_counter() - begun) < seconds + LAST_SECONDS:
        if now > seconds and stopped_at == float("inf"):
            server.process.send_signal(signal.SIGTERM)
            stopped_at = time.perf_counter()
        if now >= 60 * minute + 30 and now < seconds:
            memory.append(server.rss_bytes())
            minute += 1
        due = int(now * rate)
        while number < due:
            number += 1
            try:
                task = asyncio.create_task(ask(free.get_nowait()))
                running.add(task)
                task.add_done_callback(running.discard)
            except asyncio.QueueEmpty:
                unsent += 1  # every connection waits for its answer
        await asyncio.sleep(0.002)
    await asyncio.gather(*running)
    ended = server.process.wait(60)
    print(f"{number} requests in {seconds:.0f} s at {rate:.0f}/s, {CONNECTIONS} connections ({unsent} found none free)")
    print("answers: " + ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())))
    print(
        f"200s: median {1e3 * statistics.median(waited):.0f} ms, slowest {1e3 * max(waited):.0f} ms; "
        f"{late} after their deadline of {1e3 * deadline_s:.0f} ms"
    )
    mib = [size / 2**20 for size in memory]
    if len(mib) > 1:
        print(
            f"memory by minute, MiB: {' '.join(f'{size:.1f}' for size in mib)}; from the first to the last "
            f"{100 * (mib[-1] / mib[0] - 1):+.1f} %"
        )
    print(f"SIGTERM in the middle of it: the server ended with {ended}, {statuses['lost']} requests lost")


def main() -> None:
    """Find the sustainable rate, then go to twice that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    arguments = parser.parse_args()

    size = load_bundle(arguments.bundle).input_size
    images = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    with served(arguments.bundle, *OPTIONS) as server:
        request = infer_request(images, timeout_ms=arguments.deadline_ms)
        asyncio.run(keep_asking(server, infer_request(images), 8, 3.0))
        answered, wall = asyncio.run(keep_asking(server, infer_request(images), 8, 10.0))
        rate = len(answered) / wall
        cpu = machine_info()["cpu"]["name"]
        print(f"CPU {cpu}; serve {' '.join(OPTIONS)}; sustainable, by 8 clients: {rate:.0f}/s")
        asyncio.run(overload(server, request, 2 * rate, 60 * arguments.minutes, arguments.deadline_ms / 1e3))


if __name__ == "__main__":
    main()
