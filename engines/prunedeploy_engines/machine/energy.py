"""Energy of what ran, where the machine can tell it: counters of the CPU (RAPL), or power that is sampled.

A counter is read right before and right after the timed calls, so it costs them nothing. Power (an NVIDIA GPU, the
board of a Jetson) is sampled by a thread of the parent and integrated over the time that the calls took. Both
measure the whole package or board, what else runs on it included.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
HWMON = Path("/sys/class/hwmon")
SAMPLE_S = 0.1

_BOARD_RAILS = ("VDD_IN", "5V_IN", "POM_5V_IN", "VIN_SYS_5V0")  # what a Jetson calls its whole supply


@dataclass(frozen=True)
class RaplZone:
    """One counter.

    Attributes:
        name: E.g. ``package-0`` or ``dram``.
        file: Holds microjoules.
        range_uj: The counter starts again at 0 after this.
    """

    name: str
    file: Path
    range_uj: int


class RaplMeter:
    """Energy counters of the CPU packages and their memory."""

    def __init__(self, zones: Sequence[RaplZone]) -> None:
        self._zones = tuple(zones)

    @property
    def source(self) -> str:
        """What is counted, e.g. ``RAPL package-0, dram``."""
        return f"RAPL {', '.join(zone.name for zone in self._zones)}"

    def read(self) -> tuple[int, ...]:
        """Microjoules of each zone now.

        Raises:
            OSError: A counter cannot be read.
        """
        return tuple(int(zone.file.read_text()) for zone in self._zones)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Energy between two readings, during which a counter started again at most once."""
        readings = zip(self._zones, before, after, strict=True)
        return sum((last - first) % (zone.range_uj + 1) for zone, first, last in readings) / 1e6


def open_rapl(folder: Path = POWERCAP) -> tuple[RaplMeter | None, str | None]:
    """Find the machine's counters.

    Args:
        folder: Where the kernel shows its power capping zones.

    Returns:
        The meter, or None and the reason.

    Reference: Linux kernel documentation, power/powercap/powercap.rst.
    """
    zones: list[RaplZone] = []
    try:
        for zone in sorted(folder.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            # A package counts its cores and its GPU; psys counts the packages again.
            if not name.startswith(("package", "dram")):
                continue
            file = zone / "energy_uj"
            int(file.read_text())
            zones.append(RaplZone(name, file, int((zone / "max_energy_range_uj").read_text())))
    except PermissionError as error:
        return None, f"{error.filename} may be read by root only"
    except (OSError, ValueError) as error:
        return None, f"the energy counters cannot be read ({error})"
    if not zones:
        return None, "this machine has no energy counter (RAPL)"
    return RaplMeter(zones), None


class PowerSamples:
    """Watts at moments, in seconds of `time.monotonic`; safe to fill from one thread and read from another."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._watts: list[float] = []
        self._lock = threading.Lock()

    def add(self, moment: float, watts: float) -> None:
        """Append a sample; moments rise."""
        with self._lock:
            self._times.append(moment)
            self._watts.append(watts)

    def joules(self, start: float, end: float) -> float | None:
        """Energy between two moments, power being linear between samples; None unless samples enclose them."""
        with self._lock:
            return integrated(self._times, self._watts, start, end)


def integrated(times: Sequence[float], watts: Sequence[float], start: float, end: float) -> float | None:
    """Integral of power over ``[start, end]``, linear between the samples.

    Args:
        times: Seconds, rising.
        watts: Power at each.
        start: Seconds.
        end: Seconds, not before ``start``.

    Returns:
        Joules; None if the first sample is after ``start`` or the last before ``end``.
    """
    if len(times) < 2 or times[0] > start or times[-1] < end:
        return None

    def power_at(moment: float) -> float:
        after = min(max(bisect_left(times, moment), 1), len(times) - 1)
        share = (moment - times[after - 1]) / (times[after] - times[after - 1])
        return watts[after - 1] + share * (watts[after] - watts[after - 1])

    inside = [(t, w) for t, w in zip(times, watts, strict=True) if start < t < end]
    points = [(start, power_at(start)), *inside, (end, power_at(end))]
    return sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairwise(points))


@dataclass(frozen=True)
class BoardRail:
    """The supply of a whole board, as an INA3221 measures it: ``millivolts`` and ``milliamperes`` are files."""

    name: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float:
        """Power now."""
        return int(self.millivolts.read_text()) * int(self.milliamperes.read_text()) / 1e6


def find_board_rail(folder: Path = HWMON) -> BoardRail | None:
    """The rail that feeds the board, on a Jetson; None elsewhere."""
    for label in sorted(folder.glob("hwmon*/in*_label")):
        with contextlib.suppress(OSError, ValueError):
            name, number = label.read_text().strip(), label.name[2 : -len("_label")]
            if name in _BOARD_RAILS:
                rail = BoardRail(name, label.parent / f"in{number}_input", label.parent / f"curr{number}_input")
                rail.watts()
                return rail
    return None


class PowerSampler:
    """Samples the board's supply, or else the first visible NVIDIA GPU, while it is open; a context manager.

    Attributes:
        source: What is sampled; None if there is nothing to sample.
        whole_board: It is the board's supply, not a GPU's.
        samples: What was sampled so far.
    """

    def __init__(self, hwmon: Path = HWMON) -> None:
        self.samples = PowerSamples()
        self.source: str | None = None
        self.whole_board = False
        self._hwmon = hwmon
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._program: subprocess.Popen[str] | None = None

    def __enter__(self) -> PowerSampler:
        rail = find_board_rail(self._hwmon)
        if rail is not None:
            self.source, self.whole_board = f"INA3221 {rail.name}, the whole board", True
            self._start(lambda: self._poll(rail))
            return self
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
        query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        try:
            first = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
            self.samples.add(time.monotonic(), float(first))
            milliseconds = str(round(SAMPLE_S * 1000))
            self._program = subprocess.Popen(
                [*query, "--loop-ms", milliseconds], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            return self
        self.source = f"nvidia-smi power.draw, GPU {gpu}"
        self._start(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._program is not None:
            self._program.terminate()
            self._program.wait()
        if self._thread is not None:
            self._thread.join()
        if self._program is not None and self._program.stdout is not None:
            self._program.stdout.close()

    def joules(self, start: float, end: float, patience_s: float = 3 * SAMPLE_S) -> float | None:
        """Energy between two moments of the past; waits a little for the sample after ``end``."""
        if self.source is None:
            return None
        give_up = time.monotonic() + patience_s
        while (energy := self.samples.joules(start, end)) is None and time.monotonic() < give_up:
            time.sleep(SAMPLE_S / 4)
        return energy

    def _start(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def _poll(self, rail: BoardRail) -> None:
        while not self._end.is_set():
            with contextlib.suppress(OSError, ValueError):
                self.samples.add(time.monotonic(), rail.watts())
            self._end.wait(SAMPLE_S)

    def _listen(self) -> None:
        assert self._program is not None
        assert self._program.stdout is not None
        for line in self._program.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]"
                self.samples.add(time.monotonic(), float(line))
