import base64
import copy
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunedeploy.report.format import map_text, three_digits
from prunedeploy.report.page import report_html, write_report
from prunedeploy.report.training import smoothed, thinned
from prunedeploy_engines.markup.html import join, tag
from prunedeploy_engines.markup.svg import text_width

VOID = {"meta", "br", "img", "hr", "col", "link", "input"}
MAPS = ("map_clean", "map_pgd", "map50_clean", "map50_pgd", "map_clean_conf50", "map_pgd_conf50")


class Page(HTMLParser):
    """A strict reader: every element is closed by its own end tag, ids are unique."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        ids = self.values("id")
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        names = [key for key, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of {tag} is given twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def values(self, attribute: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == attribute]


def latency(p50: float, **more: Any) -> dict[str, Any]:
    return {
        "mean": p50 * 1.03,
        "p50": p50,
        "p90": p50 * 1.08,
        "p95": p50 * 1.12,
        "p99": p50 * 1.31,
        "min": p50 * 0.9,
        "max": p50 * 2.2,
        "n": 1403,
        "images_per_s": 1000 / p50,
        "cv": 0.049,
        "noisy": False,
        "batch": 1,
        **more,
    }


def model(name: str, params: int, macs: int, clean: float, pgd: float, p50: float) -> dict[str, Any]:
    values = (clean, pgd, clean * 1.5, pgd * 1.7, clean * 0.8, pgd * 0.6)
    return {
        "name": name,
        "params": params,
        "macs": macs,
        "onnx_bytes": params * 4 + 1234,
        **dict(zip(MAPS, values, strict=True)),
        "intervals": {key: [value * 0.93, value * 1.06] for key, value in zip(MAPS, values, strict=True)},
        "n_images": 617,
        "latency_ms": {"onnxruntime": latency(p50), "torch": latency(p50 * 1.9), "tensorrt": None},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    rows = [
        model("original", 2265119, 176710400, 0.4253, 0.0021, 4.87),
        model("robust", 2265119, 176710400, 0.3362, 0.1271, 4.91),
        model("pruned", 573247, 52681600, 0.2544, 0.0863, 1.72),
    ]
    return {
        "schema_version": 1,
        "name": "demo",
        "created": "2031-05-06T07:08:09+00:00",
        "command": "prunedeploy build --ratio 0.75",
        "ratio_requested": 0.75,
        "ratio_achieved": 0.7513,
        "method": "structured",
        "scores": "scaled",
        "seed": 3,
        "models": rows,
        "speedup": {"onnxruntime": 4.87 / 1.72, "torch": 2.44},
        "engines": [
            {
                "runtime": "onnxruntime",
                "target": "cpu",
                "precision": "fp32",
                "file": "bundle/model.onnx",
                "bytes": 2340001,
                "map_clean": 0.2541,
                "map_pgd_transfer": 0.0867,
                "latency_ms": latency(1.72),
                "note": None,
            },
            {
                "runtime": "tensorrt_rtx",
                "target": "sm86",
                "precision": "fp16",
                "file": "bundle/engines/sm86/m.plan",
                "bytes": 1720442,
                "map_clean": None,
                "map_pgd_transfer": None,
                "latency_ms": None,
                "note": "no such GPU here",
            },
        ],
        "gates": [
            {
                "model": "pruned",
                "gate": "tensor",
                "boxes": 1.8e-7,
                "scores": 1.4e-6,
                "tolerance": 1e-4,
                "images": 8,
            },
            {
                "model": "pruned",
                "gate": "detections",
                "images": 8,
                "detections": 412,
                "min_iou": 0.99987,
                "max_score_difference": 2.6e-6,
                "coin_flips": 2,
                "allowed_iou": 0.99,
                "allowed_score_difference": 1e-3,
                "score_threshold": 0.001,
                "iou_threshold": 0.45,
            },
            {
                "model": "pruned",
                "gate": "map",
                "reference": 0.2544,
                "candidate": 0.2541,
                "deviation": -3e-4,
                "tolerance": 0.005,
            },
        ],
        "pruning": {
            "method": "structured",
            "ratio_requested": 0.75,
            "ratio_achieved": 0.7513,
            "channel_multiple": 8,
            "layers": [
                {
                    "layer": 0,
                    "filters_before": 16,
                    "filters_after": 8,
                    "weights_before": 432,
                    "weights_after": 216,
                },
                {
                    "layer": 12,
                    "filters_before": 136,
                    "filters_after": 56,
                    "weights_before": 73728,
                    "weights_after": 9216,
                },
            ],
        },
        "comparisons": {"map_pgd_kept": {"value": 0.679, "low": 0.641, "high": 0.7182}},
        "attack": {
            "name": "pgd",
            "eps": 0.05,
            "step_size": 0.02,
            "steps": 5,
            "random_start": False,
            "restarts": 1,
        },
        "data": {"path": "demo", "train_images": 4021, "test_images": 617, "greyscale": False},
        "latency_method": {"seconds": 10.0, "min_calls": 200, "peak_matmul_gflops": 88.25, "threads": 2},
        "environment": {"cpu": {"name": "Some CPU", "cores": 2}, "gpus": [], "prunedeploy": "9.8.7"},
        "configuration": {"model": {"cfg": "yolov3-slim", "weights": "demo"}, "finetune": {"lr": 0.0123}},
        "stages": {"finetune": {"digest": "ab" * 32, "seconds": 421.37}},
    }


def log(stage: str = "finetune", steps: int = 60) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "step": i,
            "lr": 0.01,
            "loss": 9.0 + 50 / (i + 1),
            "box": 2.0,
            "objectness": 5.0,
            "classes": 2.0,
        }
        for i in range(steps)
    ]


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    folder = tmp_path / "gallery"
    folder.mkdir()
    entry: dict[str, Any] = {"image_id": 77, "file_name": "test/<b>&.png"}
    for i, name in enumerate(("original", "robust", "pruned")):
        for j, kind in enumerate(("clean", "pgd")):
            file = f"{name}-{kind}.png"
            Image.new("RGB", (32, 24), (40 * i, 200 * j, 90)).save(folder / file)
            entry[f"{name}_{kind}"] = file
    (folder / "gallery.json").write_text(json.dumps([entry]))
    return folder


def leaves(document: Any) -> list[Any]:
    if isinstance(document, dict):
        return [leaf for value in document.values() for leaf in leaves(value)]
    if isinstance(document, list):
        return [leaf for value in document for leaf in leaves(value)]
    return [document]


def test_page_is_well_formed_and_needs_nothing_from_anywhere(results: dict[str, Any], gallery: Path) -> None:
    text = report_html(results, log(), gallery)
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">')
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert all(target.startswith("#") for target in page.values("href"))
    anchors = {target[1:] for target in page.values("href")}
    assert anchors
    assert anchors <= set(page.values("id"))
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]


def test_every_number_of_the_rows_is_shown_as_people_read_it(results: dict[str, Any]) -> None:
    shown = Page(report_html(results, [])).text
    before_the_raw_document = shown.split("results.json, without the configuration")[0]
    for row in results["models"]:
        assert f"{row['params']:,}" in before_the_raw_document
        assert f"{row['onnx_bytes'] / 1e6:.2f} MB" in before_the_raw_document
        for key in MAPS:
            assert f"{row[key]:.3f}" in before_the_raw_document
            low, high = row["intervals"][key]
            assert f"{map_text(low)} to {map_text(high)}" in before_the_raw_document
        for runtime in ("onnxruntime", "torch"):
            for key in ("p50", "p90", "p99"):
                assert f"{three_digits(row['latency_ms'][runtime][key])} ms" in before_the_raw_document
    for expected in (
        "177 M",
        "52.7 M",
        "2.83 ×",
        "2.44 ×",
        "67.9 %",
        "64.1 to 71.8 %",
        "617 test images",
        "2.34 MB",
        "1.72 MB",
        "0.254",
        "0.087",
        "1.8e-07",
        "1.4e-06",
        "0.99987",
        "2.6e-06",
        "412 detections",
        "2 coin flips",
        "0.7513",
        "73,728",
        "9,216",
        "136",
        "56",
        "0.05",
        "0.02",
        "4021",
        "88.25",
        "Some CPU",
        "421.4 s",
        "1,403",
        "prunedeploy build --ratio 0.75",
        "2031-05-06T07:08:09+00:00",
        "9.8.7",
    ):
        assert expected in before_the_raw_document, expected


def test_every_leaf_of_the_results_is_on_the_page_exactly(results: dict[str, Any]) -> None:
    shown = Page(report_html(results, [])).text
    found = leaves(results)
    assert len(found) > 150
    missing = [leaf for leaf in found if json.dumps(leaf).strip('"') not in shown]
    assert missing == []


def test_share_of_peak_is_two_flops_per_mac_at_the_median(results: dict[str, Any]) -> None:
    """52,681,600 MACs in 1.72 ms are 61.3 GFLOP/s, 69 % of 88.25."""
    assert "61.3, 69 %" in Page(report_html(results, [])).text


def test_headline_says_what_the_numbers_say(results: dict[str, Any]) -> None:
    shown = Page(report_html(results, [])).text
    assert "Structured pruning removed 75.1 % of the weights: 3.95 times fewer parameters" in shown
    assert "2.83 times faster (median 1.72 ms instead of 4.87 ms)" in shown
    assert "Under PGD its mAP is 0.086, the robust network's 0.127 (68 % kept, interval 64 to 72 %)" in shown
    assert "falls from 0.425 on clean images to 0.002 under PGD" in shown
    results["speedup"]["onnxruntime"] = 0.5
    assert "slower, by 2.00 times" in Page(report_html(results, [])).text


def dead_channels(**more: Any) -> dict[str, Any]:
    keys = ("layer", "filters_before", "filters_after", "constant", "unread", "carriers", "idle")
    layers = [dict(zip(keys, row, strict=True)) for row in ((0, 16, 16, 0, 0, 0, 0), (12, 136, 100, 29, 7, 2, 3))]
    sums = {"filters_removed": 36, "constants_folded": 29, "carriers": 2, "idle": 3, "multiple": 4}
    sizes = {"params_before": 2265119, "params_after": 1850534, "macs_before": 176710400, "macs_after": 120476600}
    return {**sums, "layers": layers, **sizes, "deviation": 2.3e-7, **more}


def test_dead_channels_are_shown_with_what_they_save(results: dict[str, Any]) -> None:
    results["method"] = "unstructured"
    results["dead_channels"] = dead_channels()
    shown = Page(report_html(results, [])).text
    assert shown.count("36 filters had become useless") == 2  # in the headline and at the cut
    assert "29 computed a constant and 7 were read by nothing" in shown
    assert "2 that compute a constant were kept" in shown
    # 1 - 120476600 / 176710400 and 1 - 1850534 / 2265119
    assert "177 M 120 M 31.8 %" in shown
    assert "2.27 M 1.85 M 18.3 %" in shown
    assert "by at most 2.3e-07 of the largest value" in shown
    assert "3 that do nothing were kept, so that no layer is empty and widths are multiples of 4" in shown
    assert "12 136 100 29 7 2 3" in shown
    assert "Work is saved only by filters that are gone altogether" in shown
    assert "they save no work" not in shown


def test_no_dead_channels_is_said_where_they_were_looked_for(results: dict[str, Any]) -> None:
    results["method"] = "unstructured"
    results["dead_channels"] = dead_channels(filters_removed=0, constants_folded=0)
    shown = Page(report_html(results, [])).text
    assert "No filter was dead" in shown
    assert "they save no work" in shown
    results["dead_channels"] = None
    assert "Dead channels" not in Page(report_html(results, [])).text


def test_scores_are_shown_with_how_they_add_up(results: dict[str, Any]) -> None:
    summation = {"worst_layer": 1.3e-6, "target": 4.1e-7}
    results["score_report"] = {
        "name": "deeplift", "images": 64, "reference": "blur", "deeplift_rule": "reveal-cancel", "normalise": "none",
        "threads": 2, "skipped": {}, "seconds": 1.419, "summation_to_delta": summation,
    }  # fmt: skip
    results["configuration"]["allocation"] = "global"
    shown = Page(report_html(results, [])).text
    assert "scores deeplift images 64 reference blur deeplift rule reveal-cancel" in shown
    assert "time 1.42 s" in shown
    assert "miss it by 1.3e-06 at the worst layer and by 4.1e-07 of the target's difference" in shown
    assert "allocation global" in shown
    results["score_report"] = {"name": "scaled", "images": None, "seconds": 0.01, "summation_to_delta": None}
    shown = Page(report_html(results, [])).text
    assert "Summation to delta" not in shown
    assert "The scores" in shown


def test_unstructured_pruning_is_not_sold_as_faster(results: dict[str, Any]) -> None:
    results["method"] = "unstructured"
    results["models"][2].update(params=2265119, macs=176710400, zero_weights=1690000)
    for layer in results["pruning"]["layers"]:
        layer["filters_after"] = layer["filters_before"]
    shown = Page(report_html(results, [])).text
    assert "they save no work" in shown
    assert "keeps its shape" in shown
    assert "1,690,000" in shown
    assert "weights kept, %" in shown
    assert "9,216 of 73,728 weights" in shown


def test_a_hybrid_cut_is_shown_as_both_that_it_is(results: dict[str, Any]) -> None:
    results["method"] = "hybrid"
    results["pruning"] |= {"method": "hybrid", "ratio_by_filters": 0.376, "ratio_by_weights": 0.3753}
    shown = Page(report_html(results, [])).text
    assert (
        "Hybrid pruning removed 75.1 % of the weights (37.6 % with whole filters, 37.5 % by setting single weights to "
        "zero, which alone makes nothing smaller): 3.95 times fewer parameters"
    ) in shown
    assert "has lost whole filters, and some of the weights that are left are zeros" in shown
    assert "they save no work" not in shown
    assert "layer 12: 56 of 136 filters" in shown
    assert "layer 12: 9,216 of 73,728 weights" in shown
    assert "weights kept, %" in shown
    assert "weights kept, %" not in Page(report_html(results | {"method": "structured"}, [])).text


def test_charts_stay_inside_their_boxes(results: dict[str, Any]) -> None:
    results["dead_channels"] = dead_channels()
    charts = re.findall(r"<svg .*?</svg>", report_html(results, log()), re.DOTALL)
    assert len(charts) == 5  # mAP, latency, layers, dead channels, a curve
    for chart in charts:
        root = ET.fromstring(chart)
        *_, width, height = map(float, root.attrib["viewBox"].split())
        for rect in root.iter("rect"):
            x, y, wide, high = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            assert x >= 0
            assert y >= 0
            assert x + wide <= width
            assert y + high <= height
        for text in root.iter("text"):
            wide = text_width(text.text or "", float(text.attrib["font-size"]))
            before = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib.get("text-anchor", "start")] * wide
            left = float(text.attrib["x"]) - before
            assert left >= -1
            assert left + wide <= width + 1, text.text
            assert 0 < float(text.attrib["y"]) < height


def test_what_was_not_measured_says_why(results: dict[str, Any]) -> None:
    shown = Page(report_html(results, [])).text
    assert "not measured here: no such GPU here" in shown
    del results["engines"][1]
    assert "not measured here: this machine has no NVIDIA GPU" in Page(report_html(results, [])).text
    results["environment"]["gpus"] = None
    assert "not measured here: no reason was recorded" in Page(report_html(results, [])).text


def test_noisy_rows_and_few_images_are_pointed_out(results: dict[str, Any]) -> None:
    quiet = Page(report_html(results, [])).text
    assert "Do not quote" not in quiet
    assert "say little about small differences" not in quiet
    results["models"][2]["latency_ms"]["onnxruntime"].update(noisy=True, cv=0.31)
    results["models"][0]["n_images"] = 40
    shown = Page(report_html(results, [])).text
    assert "ONNX Runtime was noisy for pruned" in shown
    assert "a noisy measurement" in shown
    assert "only 40 test images" in shown


def test_gate_beyond_its_tolerance_is_shown_as_failed(results: dict[str, Any]) -> None:
    assert " failed " not in Page(report_html(results, [])).text
    results["gates"][0]["scores"] = 2e-4
    results["gates"][1].update(detections=0, min_iou=None, max_score_difference=None)
    shown = Page(report_html(results, [])).text
    assert " failed " in shown
    assert "proves nothing" in shown
    assert "had none to compare" in shown


def test_strings_are_text_wherever_they_come_from(results: dict[str, Any], gallery: Path) -> None:
    poison = "<script>alert(1)</script>\"'&\x00\ud800"

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{key}": poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return poison if isinstance(value, str) else value

    bad = poisoned(results)
    for row, name in zip(bad["models"], ("original", "robust", "pruned"), strict=True):
        row["name"] = name
        row["latency_ms"][poison] = row["latency_ms"].pop("torch")
    bad["configuration"][poison] = poison
    rows = [{**row, "stage": poison, poison: 1.0} for row in log()]
    text = report_html(bad, rows, gallery)
    page = Page(text)
    assert "script" not in page.tags
    assert "b" in page.tags
    assert "<script" not in text
    assert "<b>&.png" not in text
    assert "test/<b>&.png" in page.text
    assert "\x00" not in text
    text.encode("utf-8")
    assert "<script>alert(1)</script>" in page.text


def all_null(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: all_null(value) for key, value in document.items()}
    if isinstance(document, list):
        return [all_null(value) for value in document]
    return None


def nulled_at_every_place(document: Any) -> list[Any]:
    """One copy per key, with null there."""
    copies = []

    def walk(part: Any, path: tuple[Any, ...]) -> None:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            changed = copy.deepcopy(document)
            target = changed
            for step in path:
                target = target[step]
            target[key] = None
            copies.append(changed)
            if isinstance(value, (dict, list)):
                walk(value, (*path, key))

    walk(document, ())
    return copies


def looks_unknown(text: str) -> list[str]:
    """Words that no reader should see; the JSON at the end says null, as JSON does."""
    return re.findall(r"(?<!L-)\b(?:None|nan|NaN|inf|Infinity)\b", text)


def test_nulls_everywhere_are_shown_as_unknown(results: dict[str, Any]) -> None:
    page = Page(report_html(all_null(results), [], None))
    assert looks_unknown(report_html(all_null(results), [])) == []
    assert "–" in page.text
    reasons = [value for tag_, key, value in page.attributes if tag_ == "span" and key == "title"]
    assert reasons
    assert all(reasons)


def test_a_null_at_any_single_place_is_shown_as_unknown(results: dict[str, Any]) -> None:
    variants = nulled_at_every_place(results)
    assert len(variants) > 200
    for variant in variants:
        assert looks_unknown(report_html(variant, [])) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_shown_as_unknown(results: dict[str, Any], value: float) -> None:
    for row in results["models"]:
        row["map_pgd"] = value
        row["latency_ms"]["torch"]["p50"] = value
        row["intervals"]["map_clean"] = [value, value]
    results["speedup"]["torch"] = value
    rows = [{**row, "loss": value} for row in log(steps=5)]
    assert looks_unknown(report_html(results, [*rows, *log()])) == []


@pytest.mark.parametrize("document", [{}, {"models": []}, {"models": None, "engines": None, "stages": []}])
def test_results_with_nothing_in_them_make_a_page_that_says_so(document: dict[str, Any]) -> None:
    shown = Page(report_html(document, [])).text
    assert "No network was measured" in shown
    assert "its log is empty" in shown
    assert "No pictures were made" in shown


def test_one_row_alone_is_shown_without_comparison(results: dict[str, Any]) -> None:
    results["models"] = results["models"][:1]
    results["speedup"], results["comparisons"] = {}, {}
    shown = Page(report_html(results, [])).text
    assert "2,265,119" in shown
    assert "pruned : robust" not in shown.split("How it was measured")[1].split("Latency rows")[0]
    assert "kept" not in shown.split("Original, robust, pruned")[0]


def test_curves_have_a_figure_per_stage_in_order_of_appearance(results: dict[str, Any]) -> None:
    rows = [*log("pretrain", 1), *log("optimise-scores", 2000), *log("finetune", 40)]
    text = report_html(results, rows)
    shown = Page(text).text
    assert (
        shown.index("pretrain 1 steps") < shown.index("optimise-scores 2,000 steps") < shown.index("finetune 40 steps")
    )
    assert "Loss 59.0 to 9.0" in shown
    assert len(re.findall(r'fill="none" stroke="var\(--robust\)"', text)) == 6
    assert max(path.count("L") for path in re.findall(r' d="([^"]*)"', text)) <= 500
    assert "NaN" not in "".join(re.findall(r' d="([^"]*)"', text))


def test_bars_are_as_long_as_their_values(results: dict[str, Any]) -> None:
    text = report_html(results, [])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*fill="var\(--clean\)"', text)]
    values = [row["map_clean"] for row in results["models"]]
    np.testing.assert_allclose(np.array(widths) / widths[0], np.array(values) / values[0], atol=1e-3)


def test_gallery_embeds_the_very_pictures(results: dict[str, Any], gallery: Path) -> None:
    page = Page(report_html(results, [], gallery))
    sources = page.values("src")
    assert len(sources) == 6
    entry = json.loads((gallery / "gallery.json").read_text())[0]
    order = [f"{row}_{kind}" for kind in ("clean", "pgd") for row in ("original", "robust", "pruned")]
    for source, key in zip(sources, order, strict=True):
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == (gallery / entry[key]).read_bytes()


def test_large_pictures_are_embedded_smaller_but_look_the_same(results: dict[str, Any], gallery: Path) -> None:
    noise = np.random.default_rng(0).integers(96, 160, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(gallery / "robust-pgd.png")
    source = Page(report_html(results, [], gallery)).values("src")[4]
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    assert len(data) < (gallery / "robust-pgd.png").stat().st_size / 2
    with Image.open(io.BytesIO(data)) as picture:
        difference = np.asarray(picture, dtype=int) - noise
    assert np.abs(difference).mean() < 8


def test_gallery_with_pieces_missing_is_no_error(results: dict[str, Any], gallery: Path) -> None:
    (gallery / "robust-clean.png").unlink()
    (gallery / "pruned-pgd.png").write_bytes(b"no picture at all")
    (gallery.parent / "secret.png").write_bytes((gallery / "robust-pgd.png").read_bytes())
    entries = json.loads((gallery / "gallery.json").read_text())
    entries[0]["original_clean"], entries[0]["robust_pgd"] = None, "../secret.png"
    (gallery / "gallery.json").write_text(json.dumps(entries))
    page = Page(report_html(results, [], gallery))
    assert len(page.values("src")) == 2
    assert page.text.count("no picture") == 4
    (gallery / "gallery.json").write_text("{not json")
    assert "cannot be read" in Page(report_html(results, [], gallery)).text
    assert "No pictures" in Page(report_html(results, [], gallery / "nowhere")).text


def test_report_is_written_whole_and_the_same_each_time(results: dict[str, Any], gallery: Path, tmp_path: Path) -> None:
    given = copy.deepcopy(results)
    for name in ("one.html", "two.html"):
        write_report(results, log(), gallery, tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert (tmp_path / "one.html").read_text(encoding="utf-8") == report_html(results, log(), gallery)
    assert results == given
    assert not list(tmp_path.glob(".*.tmp"))


def test_markup_is_escaped_unless_it_was_built() -> None:
    assert tag("p", "1 < 2 & 3", tag("b", ">"), cls='"x"') == '<p class="&quot;x&quot;">1 &lt; 2 &amp; 3<b>&gt;</b></p>'
    assert join("a", None, ["<", tag("br")]) == "a&lt;<br>"


def test_numbers_keep_their_meaning_when_shortened() -> None:
    assert [three_digits(x) for x in (0, 0.0123456, 1.716, 99.96, 61.29, 412.3, 12345.6)] == [
        "0",
        "0.0123",
        "1.72",
        "100",
        "61.3",
        "412",
        "12,346",
    ]
    assert [map_text(x) for x in (0.0, 0.4253, 0.0003, 0.00001, 1.0)] == [
        "0.000",
        "0.425",
        "0.0003",
        "< 0.0001",
        "1.000",
    ]


def test_smoothing_starts_unbiased_and_thinning_keeps_ends_and_spikes() -> None:
    assert smoothed([4.0, 4.0, 4.0], 10) == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([1.0, 3.0], 1) == [1.0, 3.0]
    # By hand, window 2 keeps half: (0.5 * 1) / 0.5 = 1, then (0.25 * 1 + 0.5 * 4) / 0.75 = 3.
    assert smoothed([1.0, 4.0], 2) == pytest.approx([1.0, 3.0])
    points = [(float(i), 1.0) for i in range(10_000)]
    points[5123] = (5123.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 500
    assert (5123.0, 99.0) in kept
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)
