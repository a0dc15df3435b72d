"""How the terminal shows what ``prunedeploy inspect`` found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

import click

from prunedeploy.cli.output import MISSING, amount, number, print_table, size

Document = Mapping[str, Any]
BAR = 20
LONGEST_LIST = 6


def print_document(document: Document) -> None:
    """Print the document of ``inspect --json`` for people."""
    {"cfg": _print_network, "onnx": _print_onnx}.get(document["kind"], _print_bundle)(document)


def _print_network(document: Document) -> None:
    rows = [_layer_row(row) for row in document["layers"]]
    totals = document["totals"]
    rows.append(["", "total", "", "", _count(totals["weights"]), amount(totals["macs"]), "", ""])
    classes = f"{document['classes']} class{'es' * (document['classes'] != 1)}"
    click.echo(f"{document['path']}: {_input(document['input'])}; {classes}\n")
    print_table(["layer", "kind", "reads", "output", "weights", "MACs", "prunable", "coupled with"], rows, left=4)
    share = totals["prunable_weights"] / totals["weights"] if totals["weights"] else 0.0
    click.echo(
        f"\na pruning ratio counts {_count(totals['prunable_weights'])} of {_count(totals['weights'])} weights "
        f"({100 * share:.1f} %), of all convolutions but the heads' outputs"
        f"\nits weights file: {_count(totals['values_in_weights_file'])} values, "
        f"{_count(totals['weights_file_bytes'])} bytes"
    )
    for reason, layers in _grouped((row["why_not"], row["index"]) for row in document["layers"] if row["why_not"]):
        click.echo(f"not to be pruned: {_plural('layer', layers)}: {reason}")
    click.echo("\nwhat its options mean here")
    keys = [
        [
            f"[{key['section']}]",
            key["option"],
            _short(key["values"]),
            key["meaning"],
        ]
        for key in document["keys"]
    ]
    print_table(["section", "option", "values", "meaning"], keys, left=4)
    for section, options in _grouped((one["section"], one["option"]) for one in document["ignored"]):
        names = ", ".join(dict.fromkeys(options))
        click.echo(f"ignored in [{section}], since only Darknet itself reads it: {names}")
    if document["not_for_darknet"] is not None:
        click.echo(document["not_for_darknet"])


def _layer_row(row: Document) -> list[str]:
    coupled = row["coupled_with"]
    return [
        str(row["index"]),
        row["kind"],
        _few(["image" if index < 0 else index for index in row["inputs"]]),
        "x".join(map(str, row["out_shape"])),
        _count(row["weights"]) if row["weights"] else "",
        amount(row["macs"]) if row["macs"] else "",
        _prunable(row),
        "" if not coupled else _few(coupled),
    ]


def _prunable(row: Document) -> str:
    if row["filters"] is None:
        return ""
    if row["removable"] in (0, row["filters"]):
        return "yes" if row["removable"] else "no"
    return f"{row['removable']} of {row['filters']}"


def _print_bundle(document: Document) -> None:
    click.echo(f"{document['path']}: {_input(document['input'])}; built {document['created']}")
    classes = document["classes"]
    click.echo(f"{len(classes)} classes: {', '.join(classes)}\n")
    files = [_file_row(row) for row in document["files"]]
    print_table(["file", "precision", "for", "size", "gates"], files, left=5)
    if any(row["role"] == "onnx" and row["gates"] is None for row in document["files"]):
        click.echo("a file that fails its gates is left out; what they measured stands in the build's results.json")
    for line in document["left_out"]:
        click.echo(line)
    _print_thresholds(document)
    click.echo()
    networks = [
        [
            row["name"],
            *(_count(row[key]) for key in ("params", "weights", "zero_weights")),
            amount(row["macs"]),
            *(number(row[key]) for key in ("map_clean", "map_pgd")),
        ]
        for row in document["networks"]
    ]
    head = ["network", "parameters", "weights", "of them zero", "MACs", "mAP clean", "mAP under PGD"]
    print_table(head, networks)
    if document["widths"]:
        pruning = document["pruning"]
        click.echo(f"\n{pruning['method']} pruning, ratio {number(pruning['ratio_achieved'])}: widths before and after")
        print_table(["layer", "filters", "weights", "kept", "", ""], _width_rows(document["widths"]))
        _print_dead(document)


def _print_dead(document: Document) -> None:
    """How many filters left after pruning, since its zeros had made them useless."""
    left = document["networks"][-1]["filters"]
    pruned = sum(row["filters_after"] for row in document["widths"])
    if left is not None and left < pruned:
        click.echo(
            f"of these {_count(pruned)} filters, zeros made {_count(pruned - left)} useless, which were removed too; "
            "inspect the build's model.cfg for what is left of each layer"
        )


def _file_row(row: Document) -> list[str]:
    extras = [name for name, key in (("uint8 input", "uint8_input"), ("suppression", "nms")) if row.get(key)]
    precision = ", ".join([row["precision"] or MISSING, *extras])
    return [row["name"], precision, row["target"] or "any", size(row["bytes"]), _gates(row.get("gates") or ())]


def _gates(gates: Sequence[Document]) -> str:
    """``passed: tensor, map on openvino``, and before it what failed."""
    by_verdict = _grouped(
        ("passed" if gate["passed"] else "FAILED", _gate_name(gate))
        for gate in sorted(gates, key=lambda gate: bool(gate["passed"]))
    )
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict)


def _gate_name(gate: Document) -> str:
    return f"{gate['gate']} on {gate['runtime']}" if gate.get("runtime") else str(gate["gate"])


def _print_thresholds(document: Document) -> None:
    thresholds, points = document["thresholds"], document["operating_points"]
    click.echo(f"\nscore threshold {thresholds['score']:.4g}, IoU threshold of suppression {thresholds['iou']:.4g}")
    for precision, point in points.items():
        figures = ", ".join(f"{name} {number(point[name])}" for name in ("precision", "recall", "f1"))
        click.echo(f"  {precision}: {point['score_threshold']:.4g}, chosen by {point['chosen']}: {figures}")


def _width_rows(widths: Sequence[Document]) -> list[list[str]]:
    """Each convolution before and after; the bar shows its filters, or its weights where no layer lost a filter."""
    narrower = any(row["filters_before"] != row["filters_after"] for row in widths)
    rows = []
    for row in widths:
        filters, weights = ((row[f"{what}_before"], row[f"{what}_after"]) for what in ("filters", "weights"))
        kept = weights[1] / weights[0] if weights[0] else 0.0
        shown = filters[1] / filters[0] if narrower else kept
        counted = "" if row["counted"] else "not counted"
        ends = (f"{before:,} -> {after:,}" for before, after in (filters, weights))
        rows.append([str(row["layer"]), *ends, f"{100 * kept:.1f} %", _bar(shown), counted])
    return rows


def _bar(share: float) -> str:
    full = round(BAR * share)
    return "#" * full + "." * (BAR - full)


def _print_onnx(document: Document) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in document["opsets"].items())
    click.echo(f"{document['path']}: {size(document['bytes'])}, {document['precision']}, operator set {opsets}")
    click.echo(f"written by {document['producer'] or 'an unnamed program'}, file format {document['ir_version']}\n")
    tensors = [
        [kind, tensor["name"], tensor["type"], _shape(tensor["shape"])]
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for tensor in document[key]
    ]
    print_table(["", "name", "type", "shape"], tensors, left=4)
    stored = ", ".join(f"{_count(count)} of {name}" for name, count in document["values"].items())
    click.echo(
        f"\nparameters {_count(document['parameters'])} (stored values: {stored})"
        f"\nMACs for one image {amount(document['macs'])}"
        f"{'' if document['macs'] is not None else ' (a shape is not known)'}\n"
    )
    print_table(["operator", "nodes"], [[name, _count(count)] for name, count in document["operators"].items()])
    if document["classes"]:
        click.echo(f"\n{len(document['classes'])} classes: {', '.join(document['classes'])}")
    if document["metadata"]:
        click.echo("\nmetadata")
        for name, value in document["metadata"].items():
            short = " ".join(value.split())
            click.echo(f"  {name}: {short if len(short) <= 100 else short[:100] + '...'}")


def _input(spec: Document) -> str:
    channels = "colour" if spec["channels"] == 3 else "grey" if spec["channels"] == 1 else f"{spec['channels']}-channel"
    fitted = "letterboxed" if spec["letterbox"] else "stretched"
    return f"{channels} images {fitted} to {spec['width']} x {spec['height']} (width x height)"


def _shape(shape: Sequence[object] | None) -> str:
    return "?" if shape is None else " x ".join("?" if size is None else str(size) for size in shape)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else MISSING


def _few(values: Sequence[object], between: str = ", ") -> str:
    """The first of them, and how many there are if those are not all."""
    shown = between.join(map(str, values[:LONGEST_LIST]))
    return shown if len(values) <= LONGEST_LIST else f"{shown}{between}... ({len(values)})"


def _short(values: Sequence[object]) -> str:
    return shorten(_few(values, " | "), 48, placeholder=" ...")


def _plural(name: str, numbers: Sequence[object]) -> str:
    return f"{name}{'s' * (len(numbers) > 1)} {_few(numbers)}"


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, list[Any]]]:
    """Values by their key, in the order in which keys first come."""
    found: dict[Any, list[Any]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return list(found.items())
