"""What the report says in words: the headline, and what its numbers do not say. Both follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunedeploy.report.format import interval, look_up, map_text, mapping, number, rows_of, three_digits

Results = Mapping[str, Any]

RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
}
FEW_IMAGES = 500


def runtime_name(runtime: object) -> str:
    """Name of a runtime for people."""
    return "unknown" if runtime is None else RUNTIMES.get(str(runtime), str(runtime))


def model_named(results: Results, name: str) -> Mapping[str, Any]:
    """One of the three rows; empty if it is not there."""
    return next((model for model in rows_of(results.get("models")) if model.get("name") == name), {})


def runtimes_of(results: Results) -> list[str]:
    """Every runtime that a latency is given or missing for."""
    models = rows_of(results.get("models"))
    return list(dict.fromkeys(runtime for model in models for runtime in mapping(model.get("latency_ms"))))


def why_not_measured(results: Results, runtime: str) -> str:
    """The reason why a runtime has no latency, as far as one was recorded."""
    for engine in rows_of(results.get("engines")):
        same = str(engine.get("runtime")).split("_")[0] == runtime
        if same and engine.get("latency_ms") is None and engine.get("note"):
            return f"not measured here: {engine['note']}"
    asked = look_up(results, "configuration", "latency", "runtimes")
    if isinstance(asked, (list, tuple)) and runtime not in asked and runtime != "tensorrt":
        return "not measured here: not among the runtimes that were asked for"
    if runtime == "tensorrt" and look_up(results, "environment", "gpus") == []:
        return "not measured here: this machine has no NVIDIA GPU"
    return "not measured here: no reason was recorded"


def method_name(results: Results) -> str:
    """What the pruning is called: the method, and for n:m the pattern."""
    pattern = look_up(results, "pruning", "pattern")
    return str(pattern) if results.get("method") == "nm" and pattern else str(results.get("method") or "pruning")


def quotient(over: object, under: object) -> float | None:
    """The quotient of two numbers; None where either is unknown or the second is zero."""
    a, b = number(over), number(under)
    return None if a is None or not b else a / b


def headline(results: Results) -> str:
    """What was achieved, in a few sentences; what is not known is left out."""
    sentences = [*_size(results), *_speed(results), *_accuracy(results)]
    return " ".join(sentences) if sentences else "These results hold no numbers that could be compared."


def _size(results: Results) -> Iterator[str]:
    dense = model_named(results, "robust") or model_named(results, "original")
    pruned = model_named(results, "pruned")
    ratio = number(results.get("ratio_achieved"))
    smaller = {
        what: factor
        for what, key in (("parameters", "params"), ("multiplications", "macs"))
        if (factor := quotient(dense.get(key), pruned.get(key))) is not None
    }
    gained = " and ".join(f"{_factor(factor)} fewer {what}" for what, factor in smaller.items())
    if len(smaller) == 2 and all(abs(factor - 1) < 0.005 for factor in smaller.values()):
        gained = "the network keeps its shape, so it is no smaller and dense kernels gain nothing"
    cut = "" if ratio is None else f"{method_name(results)} pruning removed {_percent(ratio)} of the weights"
    if sentence := ": ".join(filter(None, (cut + _shares(results) if cut else "", gained))):
        yield sentence[0].upper() + sentence[1:] + "."
    record = mapping(results.get("dead_channels"))
    if number(record.get("filters_removed")):
        yield dead_filters(record)


def _shares(results: Results) -> str:
    """How much of a hybrid cut went with whole filters, and how much of it is zeros."""
    filters, zeros = (number(look_up(results, "pruning", f"ratio_by_{what}")) for what in ("filters", "weights"))
    if filters is None or zeros is None:
        return ""
    return (
        f" ({_percent(filters)} with whole filters, {_percent(zeros)} by setting single weights to zero, which alone "
        "makes nothing smaller)"
    )


def dead_filters(record: Mapping[str, Any]) -> str:
    """How many filters zeros have made useless, and why, in a sentence."""
    removed, constant = (number(record.get(key)) or 0 for key in ("filters_removed", "constants_folded"))
    kinds = [f"{constant:,.0f} computed a constant", f"{removed - constant:,.0f} were read by nothing"]
    return (
        f"{removed:,.0f} filters had become useless and were removed without changing what the network computes: "
        f"{' and '.join(kinds)}."
    )


def _speed(results: Results) -> Iterator[str]:
    for runtime, factor in mapping(results.get("speedup")).items():
        value = number(factor)
        if value is None:
            continue
        before, after = (
            number(look_up(model_named(results, name), "latency_ms", runtime, "p50")) for name in ("original", "pruned")
        )
        times = ""
        if before is not None and after is not None:
            times = f" (median {three_digits(after)} ms instead of {three_digits(before)} ms)"
        how = f"{_factor(value)} faster" if value >= 1 else f"slower, by {_factor(1 / value) if value else 'far'}"
        flag = ", a noisy measurement" if is_noisy(results, runtime) else ""
        yield f"With {runtime_name(runtime)} it is {how}{times}{flag}."
        return


def is_noisy(results: Results, runtime: str) -> bool:
    """Whether either of the two medians in a runtime's speed-up is of samples that vary too much."""
    rows = (look_up(model_named(results, name), "latency_ms", runtime) for name in ("original", "pruned"))
    return any(mapping(row).get("noisy") is True for row in rows)


def _accuracy(results: Results) -> Iterator[str]:
    original = model_named(results, "original")
    parent, pgd = (number(model_named(results, name).get("map_pgd")) for name in ("robust", "pruned"))
    if pgd is not None and parent is not None:
        kept, ends = map_kept(results)
        share = "" if kept is None else f" ({100 * kept:.0f} % kept{between(ends, ', interval')})"
        yield f"Under PGD its mAP is {map_text(pgd)}, the robust network's {map_text(parent)}{share}."
    clean, attacked = number(original.get("map_clean")), number(original.get("map_pgd"))
    if clean is not None and attacked is not None:
        yield f"The original falls from {map_text(clean)} on clean images to {map_text(attacked)} under PGD."


def between(ends: tuple[float, float] | None, prefix: str) -> str:
    """The ends of an interval of shares in words; nothing where there is none."""
    return "" if ends is None else f"{prefix} {100 * ends[0]:.0f} to {100 * ends[1]:.0f} %"


def map_kept(results: Results, key: str = "map_pgd") -> tuple[float | None, tuple[float, float] | None]:
    """The share of the robust network's mAP that the pruned one keeps, and its paired bootstrap interval."""
    record = mapping(look_up(results, "comparisons", f"{key}_kept"))
    value = number(record.get("value"))
    if value is None:
        return quotient(model_named(results, "pruned").get(key), model_named(results, "robust").get(key)), None
    return value, interval([record.get("low"), record.get("high")])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _factor(value: float) -> str:
    return f"{three_digits(value)} times"


def caveats(results: Results) -> list[str]:
    """What a reader must not conclude from the numbers, each for a reason found in them."""
    return [*_about_latency(results), *_about_accuracy(results), *_about_artefacts(results)]


def _about_latency(results: Results) -> Iterator[str]:
    models = rows_of(results.get("models"))
    for runtime in runtimes_of(results):
        rows = [mapping(look_up(model, "latency_ms", runtime)) for model in models]
        if not any(rows):
            yield f"Latency with {runtime_name(runtime)}: {why_not_measured(results, runtime)}."
        noisy = [str(model.get("name")) for model, row in zip(models, rows, strict=True) if row.get("noisy") is True]
        if noisy:
            yield (
                f"Latency with {runtime_name(runtime)} was noisy for {', '.join(noisy)} (coefficient of "
                "variation above 0.1). Do not quote these figures, nor the speed-up from them."
            )
    if models and number(look_up(results, "latency_method", "peak_matmul_gflops")) is None:
        yield "The machine's peak was not measured, so it is not known how far from it these latencies are."
    then = look_up(results, "latency_method", "machine", "cpu", "name")
    now = look_up(results, "environment", "cpu", "name")
    if then and now and then != now:
        yield f"Latency was measured on another machine ({then}) than the one that wrote this report ({now})."
    method = results.get("method")
    if method == "structured" or not model_named(results, "pruned"):
        return
    if method == "hybrid":
        yield (
            "The pruned network has lost whole filters, and some of the weights that are left are zeros. Only filters "
            "that are gone save work; dense kernels multiply zeros like any number."
        )
    elif number(look_up(results, "dead_channels", "filters_removed")):
        yield (
            "The pruned network has zeros for weights. Work is saved only by filters that are gone altogether; "
            "dense kernels multiply the other zeros like any number."
        )
    else:
        yield "The pruned network has zeros for weights. Dense kernels multiply them all the same: they save no work."
    asked = look_up(results, "pruning", "sparse_weights")
    if asked is True:
        yield (
            "TensorRT is asked for sparse kernels (SPARSE_WEIGHTS). Whether it has chosen any, and whether that is "
            "faster, is only known on the device."
        )
    elif asked is False:
        yield f"TensorRT has sparse kernels for 2:4 only, so for {method_name(results)} it is not asked for them."


def _stronger(results: Results) -> str:
    """What stronger attacks leave the pruned network, as far as that was measured."""
    network = mapping(look_up(results, "robustness", "pruned"))
    maps = {
        str(attack.get("name")): value
        for attack in rows_of(network.get("attacks"))
        if (value := number(look_up(network, "figures", figure_of(attack)))) is not None
    }
    own = number(model_named(results, "pruned").get("map_pgd"))
    if not maps or own is None:
        return "What a stronger or a different attack leaves was not measured; robustness.attacks=ensemble measures it."
    name = min(maps, key=lambda one: maps[one])
    return (
        f"Of the others that were tried, {name} leaves the pruned network least: {map_text(maps[name])} mAP, "
        f"where this one leaves {map_text(own)}."
    )


def _doubtful_attacks(results: Results) -> Iterator[str]:
    for name, network in mapping(results.get("robustness")).items():
        for check in rows_of(look_up(network, "checks")):
            if check.get("passed") is False:
                yield f"The attacks on {name} failed a check, {check.get('name')}: {check.get('says')}."
    for engine in rows_of(results.get("engines")):
        for check in rows_of(look_up(engine, "square", "checks")):
            if check.get("passed") is False:
                file = str(engine.get("file")).rpartition("/")[2]
                yield f"The attacks on {file} failed a check, {check.get('name')}: {check.get('says')}."


def figure_of(attack: Mapping[str, Any]) -> str:
    """Name of an attack's mAP among figures: ``map_apgd_box`` of ``apgd:box``."""
    return f"map_{str(attack.get('name')).replace(':', '_')}"


def _about_accuracy(results: Results) -> Iterator[str]:
    models = rows_of(results.get("models"))
    images = {value for model in models if (value := number(model.get("n_images"))) is not None}
    if images and min(images) < FEW_IMAGES:
        few = f"{min(images):.0f} test images"
        yield f"mAP comes from only {few}; fewer than {FEW_IMAGES} say little about small differences."
    if models and not all(mapping(model.get("intervals")) for model in models):
        yield "Some mAPs have no bootstrap interval, so it is not known how much chance is in them."
    if look_up(results, "data", "path") == "demo":
        yield "The demo's scenes are composed from real product photos; mAP on them says nothing about COCO."
    if models:
        yield (
            "Robust means: against this attack, with these parameters, by gradients of the model under test. "
            f"{_stronger(results)}"
        )
    yield from _doubtful_attacks(results)
    skipped = look_up(results, "data", "skipped")
    in_training = look_up(results, "data", "skipped_in_training")
    trained_without = in_training if isinstance(in_training, list) else []
    if isinstance(skipped, (list, Mapping)) and (unread := set(skipped) - set(trained_without)):
        yield f"{len(unread)} test images could not be read and are not in any figure."
    if trained_without:
        yield f"{len(trained_without)} training images could not be read and were left out."
    for row in rows_of(look_up(results, "data", "left_out")):
        where = "" if row.get("split") == "all" else f" in the {row.get('split')} split"
        yield f"Labels{where}: {row.get('count')} x {row.get('kind')}, {row.get('becomes')}."


def _about_artefacts(results: Results) -> Iterator[str]:
    engines = rows_of(results.get("engines"))
    unmeasured = sum(number(engine.get("map_clean")) is None and bool(engine.get("file")) for engine in engines)
    if unmeasured:
        yield f"Engines built but not run here, so their mAP and latency are not known: {unmeasured}."
    left_out = rows_of(results.get("left_out"))
    if left_out:
        files = ", ".join(
            sorted({f"{one.get('file')} ({one.get('target') or one.get('precision')})" for one in left_out})
        )
        yield f"Asked for and not delivered, see Engines: {files}."
    gates = rows_of(results.get("gates"))
    if not gates and rows_of(results.get("models")):
        yield "No gates were recorded: that the ONNX files compute what PyTorch does was not shown."
    if any(gate.get("gate") == "detections" and gate.get("detections") == 0 for gate in gates):
        yield "A gate on detections had none to compare, because the network found nothing: it proves nothing."
    asked, got = number(results.get("ratio_requested")), number(results.get("ratio_achieved"))
    if asked is not None and got is not None and abs(asked - got) > 0.01:
        yield f"The pruning ratio is {got:.4f}, not the requested {asked:g}."
