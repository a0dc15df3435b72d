"""What serving costs beside the bare runner: added latency of one client, throughput of eight.

    python benchmarks/serving_speed.py --bundle runs/demo-structured-bn-scale-0.75-s0/bundle [--threads 1] [--rounds 5]

The bare loop runs in this process, on the same file, with the same threads and at the batch size that the server
reached; server and bare loop take turns. The client is this process too: on two cores, a runner with two threads has
to share them with HTTP and with the client, which no server can avoid; `--threads 1` leaves them a core. A bundle
whose network takes bytes (`build --uint8-input`) is sent bytes, others floats. Where the rest goes is told by the time
on a core that a request costs each of the three.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import numpy as np
from _serving import Server, infer_request, keep_asking, pixels_for, served

from prunedeploy_engines.bundle import load_bundle
from prunedeploy_engines.machine.environment import machine_info
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_engines.serving.core.model_inputs import interleaved

BATCHES = "prunedeploy_batch"


def bare_seconds(runner: Runner, images: np.ndarray, seconds: float) -> list[float]:
    """Seconds of every call of a bare loop."""
    taken = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        runner.infer(images)
        taken.append(time.perf_counter() - begun)
    return taken


def batches(server: Server, before: dict[str, float]) -> tuple[float, float]:
    """Mean batch size since the metrics ``before``, and the seconds that the runner was busy."""
    after = server.metrics()

    def change(prefix: str) -> float:
        return sum(value - before.get(name, 0.0) for name, value in after.items() if name.startswith(prefix))

    return change(f"{BATCHES}_size_sum") / change(f"{BATCHES}_size_count"), change(f"{BATCHES}_seconds_sum")


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of the runner, in both")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of a round")
    arguments = parser.parse_args()

    bundle = load_bundle(arguments.bundle)
    images = pixels_for(bundle, arguments.max_batch)
    one = infer_request(images[:1])
    # The bare runner is given what the server gives it.
    direct = interleaved(images) if images.dtype == np.uint8 else images
    added, ratios, rates, sizes, alone, costs, busy = [], [], [], [], [], [], []
    options = ("--threads", str(arguments.threads), "--max-batch", str(arguments.max_batch))
    with (
        bundle.runner(threads=arguments.threads, allow_spinning=False) as runner,
        served(arguments.bundle, *options) as server,
    ):
        asyncio.run(keep_asking(server, one, arguments.clients, 2.0))  # warm
        bare_seconds(runner, direct, 1.0)
        for _ in range(arguments.rounds):
            alone.append(statistics.median(bare_seconds(runner, direct[:1], arguments.seconds / 2)))
            taken, _ = asyncio.run(keep_asking(server, one, 1, arguments.seconds / 2))
            added.append(statistics.median(taken) - alone[-1])
            before, cpu_before = server.metrics(), (*server.cpu_seconds(), time.process_time())
            answered, wall = asyncio.run(keep_asking(server, one, arguments.clients, arguments.seconds))
            cpu_after = (*server.cpu_seconds(), time.process_time())
            costs.append([1e3 * (b - a) / len(answered) for a, b in zip(cpu_before, cpu_after, strict=True)])
            size_then, busy_s = batches(server, before)
            sizes.append(size_then)
            busy.append(busy_s / wall)
            rates.append(len(answered) / wall)
            size = max(1, round(sizes[-1]))
            bare = size / statistics.median(bare_seconds(runner, direct[:size], arguments.seconds / 2))
            ratios.append(rates[-1] / bare)
    cpu = machine_info()["cpu"]["name"]
    print(f"CPU {cpu}; runner with {arguments.threads} threads; medians of {arguments.rounds} rounds")
    print(
        f"one client, REST with binary tensors: bare {1e3 * statistics.median(alone):.2f} ms, "
        f"served {1e3 * statistics.median(added):.2f} ms more (rounds {' '.join(f'{1e3 * x:.2f}' for x in added)})"
    )
    print(
        f"{arguments.clients} clients: {statistics.median(rates):.0f} images/s in batches of "
        f"{statistics.median(sizes):.1f}; {100 * statistics.median(ratios):.0f} % of a bare loop at that batch size "
        f"(rounds {' '.join(f'{100 * x:.0f}' for x in ratios)})"
    )
    loop, rest, client = (statistics.median(column) for column in zip(*costs, strict=True))
    print(
        f"a request is {len(one)} bytes and takes {loop:.2f} ms of the server's event loop, {rest:.2f} ms of its other "
        f"threads and {client:.2f} ms of the client; the runner was busy for {100 * statistics.median(busy):.0f} %"
    )


if __name__ == "__main__":
    main()
