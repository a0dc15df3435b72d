"""Rows of two benchmarks that belong together, and what their difference is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunedeploy_engines.bench.compare import compare_rounds
from prunedeploy_engines.bench.document import SETTINGS, Document, Row, measured_rows, rounds_of, row_settings, varying
from prunedeploy_engines.errors import DataError

_MACHINE = {
    "CPU": ("machine", "cpu", "name"),
    "cores": ("machine", "cpu", "usable_cpus"),
    "operating system": ("machine", "os"),
    "power mode": ("device_state", "before", "power_mode"),
    "CPU governor": ("device_state", "before", "governors"),
}


def compare_documents(a: Document, b: Document, *, seed: int, where: str) -> dict[str, Any]:
    """Compare the rows that two benchmarks have in common.

    Rows belong together that have the same model and settings. If no model has the same name in both and each has
    only one, these two are compared.

    Args:
        a: What B is compared with.
        b: B.
        seed: Seed of the bootstrap.
        where: The two files, for messages.

    Returns:
        ``rows`` with ``name``, ``a_ms`` and ``b_ms`` (medians), ``ratio`` (B / A), ``interval`` (95 %) and
        ``verdict``; ``only_a`` and ``only_b``, rows without a partner; ``notes``.

    Raises:
        DataError: No rows belong together.
    """
    notes = machine_notes(a, b)
    rows_a, rows_b = _keyed(a), _keyed(b)
    models = [{row["model"] for row in rows.values()} for rows in (rows_a, rows_b)]
    if not models[0] & models[1] and len(models[0]) == len(models[1]) == 1:
        (only_a,), (only_b,) = models
        notes.append(f"two models are compared: A is {only_a}, B is {only_b}")
        rows_a, rows_b = ({(None, *key[1:]): row for key, row in rows.items()} for rows in (rows_a, rows_b))
    common = [key for key in rows_a if key in rows_b]
    if not common:
        fix = "measure the same models with the same options"
        raise DataError("these two have no row of the same model and settings in common", where, fix)
    shown = varying([rows_a[key] for key in common], SETTINGS)
    compared = [_compared(rows_a[key], rows_b[key], shown, seed) for key in common]
    for row in compared:
        if row["sha256"][0] != row["sha256"][1]:
            notes.append(f"{row['name']}: the model files differ")
    return {
        "rows": compared,
        "only_a": [_name(row, SETTINGS) for key, row in rows_a.items() if key not in rows_b],
        "only_b": [_name(row, SETTINGS) for key, row in rows_b.items() if key not in rows_a],
        "notes": notes,
    }


def machine_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """In what the machines of two benchmarks differ, one line each."""
    pairs = [(title, _look_up(a, path), _look_up(b, path)) for title, path in _MACHINE.items()]
    libraries = [_look_up(document, ("machine", "libraries")) or {} for document in (a, b)]
    pairs += [(name, libraries[0].get(name), libraries[1].get(name)) for name in sorted({*libraries[0], *libraries[1]})]
    return [
        f"the machines differ: {title} {_words(one)} in A, {_words(other)} in B"
        for title, one, other in pairs
        if one != other
    ]


def _keyed(document: Document) -> dict[tuple[Any, ...], Row]:
    """Rows by model, settings and, of merged files, device."""
    several = len({row.get("device") for row in document["rows"]}) > 1
    return {
        (row["model"], *row_settings(row), row.get("device") if several else None): row
        for row in measured_rows(document)
    }


def _compared(a: Row, b: Row, shown: list[str], seed: int) -> dict[str, Any]:
    result = compare_rounds(rounds_of(a), rounds_of(b), seed=seed)
    return {
        "name": _name(a, shown),
        **{key: a.get(key) for key in SETTINGS},
        "sha256": [a.get("sha256"), b.get("sha256")],
        "a_ms": a["latency_ms"]["p50"],
        "b_ms": b["latency_ms"]["p50"],
        "ratio": result.ratio,
        "interval": [result.low, result.high],
        "verdict": result.verdict,
    }


def _name(row: Row, keys: tuple[str, ...] | list[str]) -> str:
    words = {"batch": "batch {}", "threads": "{} threads"}
    settings = [words.get(key, "{}").format(row[key]) for key in keys if row.get(key) is not None]
    return ", ".join([row["model"], *settings])


def _look_up(document: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else str(value)
