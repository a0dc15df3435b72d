"""The JSON document of a benchmark: read again, told apart from other files, and several of them put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import DataError

SCHEMA_VERSION = 1
SETTINGS = ("runtime", "provider", "precision", "batch", "threads", "kind", "flood", "scenario")
"""What sets a row of one model apart from its other rows."""

Row = dict[str, Any]
Document = dict[str, Any]

_WRITE_AGAIN = "write it with `prunedeploy bench ... --out DIR` or `--json`"


def read_document(path: Path) -> Document:
    """Read what ``bench --json`` or ``bench --out`` wrote.

    Raises:
        DataError: Not there, not JSON, not a benchmark, or of another version.
    """
    if path.is_dir():
        path = path / "bench.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("there is no such file", path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path) from None
    except (ValueError, RecursionError):
        raise DataError("is not JSON", path, _WRITE_AGAIN) from None
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list) or "schema_version" not in document:
        raise DataError("is not a file of `prunedeploy bench`", path, _WRITE_AGAIN)
    if document["schema_version"] != SCHEMA_VERSION:
        what = f"has schema_version {document['schema_version']!r}, this prunedeploy reads {SCHEMA_VERSION}"
        raise DataError(what, path, "measure again, or use the prunedeploy that wrote it")
    for number, row in enumerate(document["rows"]):
        if (wrong := _wrong_in(row)) is not None:
            raise DataError(f"row {number}: {wrong}", path, _WRITE_AGAIN)
    return document


def _wrong_in(row: Any) -> str | None:
    """What keeps this from being a row."""
    if not isinstance(row, dict) or not isinstance(row.get("model"), str):
        return "has no model"
    if row.get("latency_ms") is None:
        return None
    samples, sizes = row.get("samples_ms"), row.get("round_sizes")
    if not isinstance(samples, list) or not samples or not all(_positive(sample) for sample in samples):
        return "samples_ms must be a list of positive numbers"
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        return "round_sizes must be a list of whole numbers"
    if sum(sizes) != len(samples):
        return f"round_sizes add up to {sum(sizes)}, not to the {len(samples)} samples"
    latency = row["latency_ms"]
    if not isinstance(latency, dict) or not all(_positive(latency.get(key)) for key in ("p50", "p90", "p99", "mean")):
        return "latency_ms must have p50, p90, p99 and mean"
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def measured_rows(document: Mapping[str, Any]) -> list[Row]:
    """The rows with samples."""
    return [row for row in document["rows"] if row.get("latency_ms") is not None]


def rounds_of(row: Mapping[str, Any]) -> list[list[float]]:
    """The samples of each round, in milliseconds."""
    rounds, start = [], 0
    for size in row["round_sizes"]:
        rounds.append(row["samples_ms"][start : start + size])
        start += size
    return rounds


def row_settings(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What was asked for, apart from the model."""
    return tuple(row.get(key) for key in SETTINGS)


def varying(rows: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """The keys that have more than one value among the rows, in the order given.

    A runtime without providers has None for ``provider``, which does not count.
    """
    rows = list(rows)
    values = {key: {json.dumps(row.get(key)) for row in rows} for key in keys}
    values.get("provider", set()).discard("null")
    return [key for key in keys if len(values[key]) > 1]


def device_name(machine: Mapping[str, Any], state: Mapping[str, Any] | None, engine: Mapping[str, Any] | None) -> str:
    """The GPU or CPU that a row ran on, with the board's power mode.

    Args:
        machine: From `environment.machine_info`.
        state: From `machine.state.device_state`.
        engine: The runner's description; None is the CPU.
    """
    gpus = machine.get("gpus") or []
    on_gpu = (engine or {}).get("device") == "gpu"
    name = gpus[0].get("name") if on_gpu and gpus else (machine.get("cpu") or {}).get("name")
    mode = (state or {}).get("power_mode")
    return f"{name or 'unknown device'}{f' ({mode})' if mode else ''}"


def merge_documents(documents: Mapping[str, Document]) -> Document:
    """Put the rows of several devices into one document.

    Args:
        documents: By a short name of each, which tells devices of the same name apart.

    Returns:
        A document like the others, with ``machines`` by the short name in place of ``machine``.
    """
    used: dict[str, set[str]] = {}
    for short, document in documents.items():
        for row in document["rows"]:
            used.setdefault(str(row.get("device")), set()).add(short)
    rows: list[Row] = []
    machines: dict[str, Any] = {}
    for short, document in documents.items():
        for row in document["rows"]:
            device = str(row.get("device"))
            rows.append({**row, "device": f"{device} [{short}]" if len(used[device]) > 1 else device})
        machines.update({f"{short}: {name}": value for name, value in (document.get("machines") or {}).items()})
        if document.get("machine") is not None:
            machines[short] = document["machine"]
    notes = [f"{short}: {note}" for short, document in documents.items() for note in document.get("notes") or []]
    return {"schema_version": SCHEMA_VERSION, "rows": rows, "machines": machines, "notes": notes}
