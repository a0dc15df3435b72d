"""The report's section on attacks beside the paper's: what each one leaves, at which radius, and what it breaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunedeploy.report.figures import figure
from prunedeploy.report.format import (
    count,
    fixed,
    look_up,
    map_cell,
    map_text,
    mapping,
    number,
    plain,
    rows_of,
)
from prunedeploy.report.words import Results, figure_of
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import note, table
from prunedeploy_engines.markup.scales import Axis, scale_end
from prunedeploy_engines.markup.svg import Drawing, Key

ERROR_KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
EFFECTS = ("disappeared", "mislabelled", "hallucinated")


def robustness_section(results: Results) -> Html | None:
    """What attacks did to each network; None for a build that was attacked with its own attack only."""
    networks = {str(name): mapping(one) for name, one in mapping(results.get("robustness")).items()}
    if not networks:
        return None
    images = sorted({int(n) for one in networks.values() if (n := number(one.get("images"))) is not None})
    said = note(
        f"mAP (IoU .50 to .95) on {' or '.join(f'{n:,}' for n in images)} test images, each attacked with the "
        "gradients of that very network. For the ensemble the lowest counts: of its attacks, and of the set in which "
        "each image is as left by the attack that costs it most. Passes: through the network and back, of each image."
    )
    return join(
        said,
        _attacks(results, networks),
        _chosen(networks),
        _distortions(networks),
        _curve(networks),
        _errors(networks),
        _checks(networks),
    )


def _attacks(results: Results, networks: Mapping[str, Mapping[str, Any]]) -> Html:
    rows: list[list[Node]] = []
    models = {str(model.get("name")): model for model in rows_of(results.get("models"))}
    for key, label in (("map_clean", "none (clean)"), ("map_pgd", "PGD, the build's own")):
        cells = [map_cell(look_up(models, name, key), look_up(models, name, "intervals", key)) for name in networks]
        rows.append([label, "", "", *cells])
    attacks = next((rows_of(one.get("attacks")) for one in networks.values()), [])
    for attack in attacks:
        key = figure_of(attack)
        cells = [map_cell(look_up(one, "figures", key), look_up(one, "intervals", key)) for one in networks.values()]
        rows.append([plain(attack.get("name")), plain(attack.get("budget") or ""), count(attack.get("passes")), *cells])
    return table(["Attack", "Budget", "Passes", *networks], rows, numbers=range(2, 3 + len(networks)))


def _chosen(networks: Mapping[str, Mapping[str, Any]]) -> Html | None:
    """An ensemble's attacks: mAP under each, and for how many images it was the worst."""
    parts: list[Node] = []
    for ensemble in dict.fromkeys(name for one in networks.values() for name in mapping(one.get("ensembles"))):
        found = {name: mapping(look_up(one, "ensembles", ensemble)) for name, one in networks.items()}
        attacks = dict.fromkeys(attack for one in found.values() for attack in mapping(one.get("map")))
        rows: list[list[Node]] = [
            [
                attack,
                *(
                    join(
                        map_cell(look_up(one, "map", attack)),
                        tag("small", f" {number(look_up(one, 'chosen', attack)) or 0:.0f} images", cls="interval"),
                    )
                    for one in found.values()
                ),
            ]
            for attack in attacks
        ]
        rows.append(["the worst of each image", *(map_cell(one.get("map_worst")) for one in found.values())])
        parts += [
            tag("h3", f"Inside the {ensemble}"),
            table(["Attack", *networks], rows, numbers=range(1, 1 + len(networks))),
        ]
        parts.append(note("Below each mAP, for how many images this attack was the one that costs them most."))
    return join(*parts) if parts else None


def _distortions(networks: Mapping[str, Mapping[str, Any]]) -> Html | None:
    rows: list[list[Node]] = []
    for name, network in networks.items():
        if one := mapping(network.get("distortion")):
            counts = (count(one.get(key)) for key in ("passes", "images", "attackable", "succeeded"))
            rows.append([name, plain(one.get("budget")), *counts, map_cell(one.get("l2"), one.get("interval"))])
    if not rows:
        return None
    said = note(
        "Carlini and Wagner's attack looks for the smallest change, in L2 over an image's whole vector of pixels, with "
        "which an image loses an object that was found in it. An upper bound: a longer search finds less."
    )
    head = ["Network", "Budget", "Passes", "Images", "with something found", "of them lost one", "Median distance"]
    return join(tag("h3", "How little it takes"), said, table(head, rows, numbers=range(2, len(head))))


def _curve(networks: Mapping[str, Mapping[str, Any]]) -> Html | None:
    curves = {name: points for name, one in networks.items() if (points := _points(one))}
    if not curves:
        return None
    left, right, base = 52.0, 480.0, 178.0
    widest, highest = (max(point[i] for points in curves.values() for point in points) for i in (0, 1))
    x_axis = Axis(0.0, scale_end(widest, 5), left, right - 6)
    y_axis = Axis(0.0, scale_end(highest, 4), base, 8.0)
    drawing = Drawing(on_page=True)
    drawing.y_scale(y_axis, left, right)
    drawing.x_scale(x_axis, 8.0, base)
    for name, points in curves.items():
        pixels = [(x_axis.at(eps), y_axis.at(value)) for eps, value in points]
        drawing.path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels), stroke=name, width=1.8)
        for x, y in pixels:
            drawing.marker(x, y, "circle", name)
    bottom = drawing.legend([Key(name, name) for name in curves], left, base + 38, right)
    attack = next(str(look_up(one, "curve", "attack")) for one in networks.values() if _points(one))
    ends = ", ".join(f"{name} {map_text(points[-1][1])}" for name, points in curves.items())
    return figure(
        f"mAP under {attack} over the radius, in 255ths of a pixel's range",
        drawing.to_svg(right, bottom - 12, f"mAP of each network under {attack} over the radius of the ball"),
        f"At the largest radius: {ends}.",
    )


def _points(network: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(radius in 255ths, mAP), rising."""
    found = [(number(row.get("eps")), number(row.get("map"))) for row in rows_of(look_up(network, "curve", "rows"))]
    return sorted((255 * eps, value) for eps, value in found if eps is not None and value is not None)


def _errors(networks: Mapping[str, Mapping[str, Any]]) -> Html | None:
    rows: list[list[Node]] = []
    for name, one in networks.items():
        for kind, found in mapping(one.get("error_kinds")).items():
            effects = mapping(look_up(one, "effects", kind))
            rows.append([
                name, kind, *(fixed(look_up(found, "costs", cost), 3) for cost in ERROR_KINDS),
                *(_rate(effects.get(effect)) for effect in EFFECTS),
            ])  # fmt: skip
    if not rows:
        return None
    said = note(
        "By how much AP at IoU .5 would rise if the errors of a kind were fixed (TIDE), and what becomes of the "
        "objects that are found in the clean images: shares of them, and for hallucinated detections of nothing per "
        "object."
    )
    head = ["Network", "Images", *ERROR_KINDS, *EFFECTS]
    return join(tag("h3", "What breaks"), said, table(head, rows, numbers=range(2, len(head))))


def _rate(value: object) -> Html | str:
    rate = mapping(value)
    return map_cell(rate.get("value"), [rate.get("low"), rate.get("high")]) if rate else ""


def _checks(networks: Mapping[str, Mapping[str, Any]]) -> Html | None:
    rows: list[list[Node]] = []
    for name, network in networks.items():
        for one in rows_of(network.get("checks")):
            outcome = "passed" if one.get("passed") is True else tag("b", "FAILED")
            rows.append([name, plain(one.get("name")), outcome, plain(one.get("says"))])
    if not rows:
        return None
    return join(tag("h3", "Can these attacks be believed?"), table(["Network", "Check", "", "What was found"], rows))
