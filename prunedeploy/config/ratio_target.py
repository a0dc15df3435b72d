"""What a ratio is searched for: an mAP to keep, a latency or a file size to come down to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prunedeploy_engines.errors import ConfigError

Measure = Literal["map_pgd", "map_clean", "map_ensemble", "latency_ms", "onnx_bytes"]

NAMES: dict[str, str] = {
    "map_pgd": "robust mAP",
    "map_clean": "clean mAP",
    "map_ensemble": "mAP under the ensemble",
    "latency_ms": "median latency",
    "onnx_bytes": "size",
}
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "": 1.0}
BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NUMBER = re.compile(r"^(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[A-Za-z]*)$", re.ASCII)


@dataclass(frozen=True)
class RatioTarget:
    """A value that the pruned network is to have.

    Attributes:
        measure: ``map_pgd``, ``map_clean`` or ``map_ensemble`` in (0, 1), at least; ``latency_ms`` or ``onnx_bytes``,
            at most.
        value: In the measure's unit.
    """

    measure: Measure
    value: float

    @property
    def option(self) -> str:
        """The option that gives it."""
        return {"latency_ms": "--target-latency", "onnx_bytes": "--target-size"}.get(self.measure, "--target-map")

    @property
    def is_accuracy(self) -> bool:
        """Whether pruning takes from it, so that the highest ratio is wanted; otherwise the lowest."""
        return self.measure in {"map_pgd", "map_clean", "map_ensemble"}

    def is_met_by(self, value: float) -> bool:
        """Whether a network with this value is as good as was asked for."""
        return value >= self.value if self.is_accuracy else value <= self.value

    @property
    def aim(self) -> str:
        """What is searched, for people: ``the highest ratio with a robust mAP of at least 0.3000``."""
        which, bound = ("highest", "at least") if self.is_accuracy else ("lowest", "at most")
        return f"the {which} ratio with a {NAMES[self.measure]} of {bound} {self.show_number(self.value)}"

    def show(self, value: float) -> str:
        """A value for people: ``robust mAP 0.3052``, ``median latency 19.20 ms``, ``size 4.981 MB``."""
        return f"{NAMES[self.measure]} {self.show_number(value)}"

    def show_number(self, value: float) -> str:
        """A value with its unit."""
        if self.measure == "latency_ms":
            return f"{value:.2f} ms" if value >= 10 else f"{value:.3f} ms"
        if self.measure == "onnx_bytes":
            return f"{value / 1e6:.3f} MB" if value >= 1e6 else f"{value / 1e3:.3f} kB"
        return f"{value:.4f}"

    def as_dict(self) -> dict[str, str | float]:
        """JSON values: what ``results.json`` and ``build.json`` say, and what two spellings of one target share."""
        return {"option": self.option, "measure": self.measure, "value": self.value}


def target_from_options(ratio: object, options: Mapping[str, str | None]) -> RatioTarget | None:
    """Return the target that the command line gives, None if it gives a ratio or nothing.

    Args:
        ratio: Whatever else sets the ratio, None if nothing does.
        options: Texts of ``map``, ``latency`` and ``size``; None: not given.

    Raises:
        ConfigError: More than one of them was given, or a text is not a target.
    """
    given = {name: text for name, text in options.items() if text is not None}
    names = [*(["--ratio"] if ratio is not None else []), *(f"--target-{name}" for name in given)]
    if given and len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} exclude each other", fix="give one of them")
    parsers = {"map": parse_map, "latency": parse_latency, "size": parse_size}
    return next((parsers[name](text) for name, text in given.items()), None)


def parse_map(text: str) -> RatioTarget:
    """Read ``0.30`` (mAP under the configuration's attack), ``clean:0.5`` or ``ensemble:0.25``.

    Raises:
        ConfigError: It is neither, or not between 0 and 1.
    """
    kind, colon, rest = text.strip().rpartition(":")
    found = _NUMBER.match(rest.strip())
    if (colon and kind not in {"clean", "pgd", "ensemble"}) or not found or found["unit"]:
        fix = "write e.g. 0.30, clean:0.5 for the mAP without attack, or ensemble:0.25 for that under the ensemble"
        raise _wrong("map", text, "is not an mAP", fix)
    value = float(found["number"])
    if not 0 < value < 1:
        raise _wrong("map", text, "is not between 0 and 1", "write e.g. 0.30")
    measures: dict[str, Measure] = {"clean": "map_clean", "ensemble": "map_ensemble"}
    return RatioTarget(measures.get(kind, "map_pgd"), value)


def parse_latency(text: str) -> RatioTarget:
    """Read ``20ms``, ``0.02s``, ``500us``, or ``20``, which are milliseconds.

    Raises:
        ConfigError: It has another unit, or is not above 0.
    """
    fix = "write e.g. 20ms; units are us, ms and s"
    return RatioTarget("latency_ms", _quantity("latency", text, MILLISECONDS, "20ms", fix))


def parse_size(text: str) -> RatioTarget:
    """Read ``5MB`` or ``5MiB``.

    Raises:
        ConfigError: It has no unit or another one, or is not above 0.
    """
    found = _NUMBER.match(text.strip())
    if found and not found["unit"]:
        raise _wrong("size", text, "has no unit", f"write {text.strip()}MB, or B, KB, GB, KiB, MiB, GiB")
    fix = "write e.g. 5MB; units are B, KB, MB, GB, KiB, MiB and GiB"
    return RatioTarget("onnx_bytes", _quantity("size", text, BYTES, "5MB", fix))


def _quantity(name: str, text: str, units: Mapping[str, float], example: str, fix: str) -> float:
    """A number above 0 with one of these units."""
    found = _NUMBER.match(text.strip())
    if not found or found["unit"] not in units:
        raise _wrong(name, text, f"is not a {name}", fix)
    value = float(found["number"]) * units[found["unit"]]
    if not value > 0:
        raise _wrong(name, text, "is not above 0", f"write e.g. {example}")
    return value


def _wrong(name: str, text: str, what: str, fix: str) -> ConfigError:
    return ConfigError(f"{text!r} {what}", f"--target-{name}", fix)
