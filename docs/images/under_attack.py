"""Draw the README's picture: one test image, clean and attacked, as the networks of a build see it.

    python docs/images/under_attack.py runs/demo-structured-bn-scale-0.75-s0 docs/images/under-attack.png

Each network is attacked with its own gradients by the attack that its build reports. The image is the first of the
test split with at least ``--objects`` objects.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import TorchRunner
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.detection.nms import detections_from

SCALE = 2
GAP, HEAD, SIDE = 12, 34, 90


def seen(model: Darknet, images: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """The image with what a network finds in it at a score of 0.5: ``(H, W, 3)`` uint8."""
    boxes, scores = TorchRunner(model).infer(images)
    found = Detections(*detections_from(boxes[0], scores[0], score_threshold=0.5, iou_threshold=0.45), class_names)
    return draw_detections(to_uint8_input(images)[0], found, scale=SCALE)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the demo set, as `prunedeploy data demo` writes it")
    parser.add_argument("--objects", type=int, default=3)
    arguments = parser.parse_args()
    build, results = arguments.build, json.loads((arguments.build / "results.json").read_text())
    slim = darknet_cfg_path("yolov3-slim")
    networks = {
        "original": load_darknet(slim, asset_path("demo-clean.weights")),
        "robust": load_darknet(slim, asset_path("demo-robust.weights")),
        f"pruned by {results['ratio_achieved']:.0%}": load_darknet(build / "model.cfg", build / "model.weights"),
    }
    attack = results["configuration"]["attack"]
    dataset = load_test_split(arguments.data)
    batch = next(
        batch
        for batch in EvaluationLoader(dataset, networks["original"].cfg.input_size, 1)
        if len(batch.targets) >= arguments.objects
    )
    rows: dict[str, list[np.ndarray]] = {"clean": [], "attacked": []}
    for model in networks.values():
        attacked = Pgd.against(model, ThreatModel(**attack))(batch.images, batch.targets)
        for images, row in zip((batch.images, attacked), rows.values(), strict=True):
            row.append(seen(model, images.numpy(), dataset.class_names))
    size = rows["clean"][0].shape[0]
    sheet = Image.new("RGB", (SIDE + len(networks) * (size + GAP), HEAD + len(rows) * (size + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for column, name in enumerate(networks):
        draw.text((SIDE + column * (size + GAP) + size / 2, HEAD / 2), name, "black", font, anchor="mm")
    for line, (name, pictures) in enumerate(rows.items()):
        y = HEAD + line * (size + GAP)
        draw.text((SIDE / 2, y + size / 2), name, "black", font, anchor="mm")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (SIDE + column * (size + GAP), y))
    sheet.save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
