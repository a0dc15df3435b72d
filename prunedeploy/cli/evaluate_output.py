"""How the terminal shows what ``prunedeploy evaluate`` measured."""

from __future__ import annotations

from typing import Any

import click

from prunedeploy.cli.output import number, print_table


def print_evaluation(document: dict[str, Any]) -> None:
    """Print the document of ``evaluate --json`` for people."""
    data = document["data"]
    click.echo(f"{document['model']} on {data['images']} test images of {data['path']}")
    for attack in document["attacks"]:
        click.echo(_said(attack))
    rows = [
        [
            result["runtime"],
            label,
            number(result[f"map_{kind}{ending}"]),
            "-" if (interval := result["intervals"].get(f"map_{kind}{ending}")) is None else _between(interval),
            number(result[f"map50_{kind}{ending}"]),
            number(result[f"map_{kind}_conf50{ending}"]),
        ]
        for result in document["results"]
        for kind, ending, label in _kinds(document["attacks"], result)
    ]
    click.echo()
    print_table(["runtime", "images", "mAP", "95 % interval", "mAP50", "mAP at score 0.5"], rows, left=2)
    labels = {attack["name"].replace(":", "_"): _label(attack["name"]) for attack in document["attacks"]}
    for result in document["results"]:
        if "lowest" in result and len(_kinds(document["attacks"], result)) > 2:
            lowest = result["lowest"]
            click.echo(f"lowest on {result['runtime']}: {number(lowest['map'])}, by {_by(lowest['attack'], labels)}")
    if document["attacks"]:
        _print_candidates(document["results"], {"clean": "clean", **labels})
    for result in document["results"]:
        _print_looked_into(result, {"clean": "clean", **labels})
        _print_corrupted(result)
        if "adaptive" in result:
            _print_looked_into(
                {"runtime": f"{result['runtime']}, adaptive", **result["adaptive"]}, {"clean": "clean", **labels}
            )
            _print_distortion(result["adaptive"].get("distortion"))
    _print_distortion(document.get("distortion"))
    _print_curve(document.get("curve"))
    for check in document.get("checks", ()):
        click.echo(f"{'passed' if check['passed'] else 'FAILED'}: {check['name']}: {check['says']}")
    if any(result["transfer"] for result in document["results"]):
        parent = next(attack["parent"] for attack in document["attacks"] if "parent" in attack)
        click.echo(
            "\ntransfer: an engine has no gradients, so its attacked images were made with its parent, "
            f"{parent}; its own robustness may be lower"
        )
    if any("adaptive" in result for result in document["results"]):
        click.echo("adaptive: made with a twin of the engine's file, which rounds as it does and has gradients")


def _kinds(attacks: list[dict[str, Any]], result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """For the clean images and each attack: its name in keys, how keys end, what people call it."""
    ending, remark = ("_transfer", " (transfer)") if result["transfer"] else ("", "")
    asked = result.get("queries", {})
    named = []
    for attack in attacks:
        name = attack["name"].replace(":", "_")
        if name in asked:
            named.append((name, "", f"{name}, {asked[name]['mean']:.0f} of {attack['queries']} queries"))
        else:
            ends = ((ending, remark), ("_adaptive", " (adaptive)"))
            named += [(name, end, f"{_label(attack['name'])}{said}") for end, said in ends]
    return [("clean", "", "clean"), *(one for one in named if f"map_{one[0]}{one[1]}" in result)]


def _by(attack: str, labels: dict[str, str]) -> str:
    """An attack of ``lowest`` as people call it: ``apgd_box_adaptive`` is ``APGD, box (adaptive)``."""
    for ending in ("transfer", "adaptive"):
        if attack.endswith(f"_{ending}"):
            name = attack.removesuffix(f"_{ending}")
            return f"{labels.get(name, name)} ({ending})"
    return labels.get(attack, attack)


def _label(name: str) -> str:
    kind, colon, objective = name.partition(":")
    return f"{kind if kind in {'noise', 'ensemble', 'square'} else kind.upper()}{colon and ', '}{objective}"


def _said(attack: dict[str, Any]) -> str:
    name, ball = attack["name"], f"within {attack['eps']:g}{' (L2)' if attack['norm'] == 'l2' else ''}"
    if name.startswith("pgd"):
        starts = f", {attack['restarts']} random start(s)" if attack["random_start"] else ""
        steps = f"{attack['steps']} step{'s' * (attack['steps'] > 1)}"
        best = ", the best iterate of each image" if attack["iterate"] == "best" else ""
        return f"{_label(name)} in fp32: {steps} of {attack['step_size']:g} {ball}{starts}{best}"
    if "queries" in attack:
        sees = "all boxes and scores"
        if attack["feedback"] == "detections":
            sees = f"detections above {attack['score_threshold']:g}"
        start = "stripes on the clean images" if attack["start"] == "clean" else "the white-box images"
        return f"{name} in fp32: {ball}, at most {attack['queries']} queries of each image, sees {sees}, from {start}"
    budget = f", {attack['budget']} budget" if "budget" in attack else ""
    passes = f"{attack['passes']} pass{'es' * (attack['passes'] != 1)} of each image"
    return f"{_label(name)} in fp32: {ball}{budget}, {passes}"


def _between(interval: list[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _print_candidates(results: list[dict[str, Any]], labels: dict[str, str]) -> None:
    click.echo("\nCandidates of an image, pairs of box and class, above the score of mAP and above 0.5:")
    rows = [
        [result["runtime"], labels.get(kind, kind), f"{one['mean']:.1f}", str(one["largest"]),
         f"{one['mean_conf50']:.1f}", str(one["largest_conf50"])]
        for result in results
        for kind, one in result["candidates"].items()
    ]  # fmt: skip
    print_table(["runtime", "images", "mean", "most", "mean, 0.5", "most, 0.5"], rows, left=2)


def _print_looked_into(result: dict[str, Any], labels: dict[str, str]) -> None:
    for name, one in result.get("ensembles", {}).items():
        lowest = f"that of {one['lowest']}" if one["lowest"] in one["map"] else "where each image has its worst attack"
        shares = ", ".join(f"{count} by {attack}" for attack, count in one["chosen"].items() if count)
        click.echo(
            f"\n{name} on {result['runtime']}: the lowest mAP is {lowest}.\nImages by their worst attack: {shares}"
        )
    kinds = result.get("error_kinds") or {}
    if not kinds:
        return
    costs = list(kinds["clean"]["costs"])
    click.echo("\nWhat each kind of error costs in AP at IoU .5 (TIDE):")
    print_table(
        ["images", *costs],
        [[labels[kind], *(number(one["costs"][cost]) for cost in costs)] for kind, one in kinds.items()],
    )
    click.echo("\nOf the objects that are found in the clean images, shares, and detections of nothing per object:")
    rates = ("disappeared", "mislabelled", "hallucinated")
    rows = [[labels[kind], *(_rate(one[rate]) for rate in rates)] for kind, one in result["effects"].items()]
    print_table(["images", *rates], rows)


def _rate(interval: dict[str, float] | None) -> str:
    return "-" if interval is None else f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _print_corrupted(result: dict[str, Any]) -> None:
    from prunedeploy.config.corruptions import CORRUPTIONS, SEVERITIES

    found = result.get("corruptions")
    if found is None:
        return
    click.echo(f"\nmAP of {result['runtime']} by corruption and severity:")
    rows = [
        [name, *map(number, values), number(None if None in values else sum(values) / len(values))]
        for name, values in found["map"].items()
    ]
    print_table(["corruption", *map(str, found["severities"]), "mean"], rows)
    whole = len(found["map"]) == len(CORRUPTIONS) and tuple(found["severities"]) == SEVERITIES
    for key, meaning in (("mpc", "the mean of all these"), ("rpc", "the share of the clean mAP that it is")):
        interval = found["intervals"][key]
        between = "" if interval is None else f" ({_between(interval)})"
        click.echo(f"{key[0]}PC, {meaning}: {number(found[key])}{between}")
    if not whole:
        click.echo("published means are over all 15 corruptions at severities 1 to 5")


def _print_distortion(found: dict[str, Any] | None) -> None:
    if found is None:
        return
    click.echo(
        f"\nCW in fp32, {found['budget']} budget, {found['passes']} passes of each image: of {found['images']} images "
        f"{found['attackable']} have something to lose, and {found['succeeded']} lose it."
    )
    if found["l2"] is not None:
        low, high = ("-" if end is None else f"{end:.3g}" for end in found["interval"] or (None, None))
        click.echo(f"Median L2 distance at which an image loses an object: {found['l2']:.3g} ({low} to {high})")


def _print_curve(curve: dict[str, Any] | None) -> None:
    if curve is not None:
        click.echo(f"\n{_label(curve['attack'])} over the radius:")
        cells = [
            [
                f"{row['eps']:.4f}",
                f"{255 * row['eps']:.4g} / 255",
                number(row["map"]),
                "-" if row["interval"] is None else _between(row["interval"]),
            ]
            for row in curve["rows"]
        ]
        print_table(["eps", "", "mAP", "95 % interval"], cells)
