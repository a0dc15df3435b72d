"""Test images as one network sees them, clean and attacked, with what it finds in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prunedeploy.attacks import Pgd
from prunedeploy.data.records import ImageRecord
from prunedeploy.evaluation import PGD, TorchRunner
from prunedeploy.models.boxes import cxcywh_to_xyxy
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.evaluate import detected

DOCUMENT = "samples.json"
OBJECTS = (2, 5)
"""One object shows little, and many show nothing in a small picture."""
THRESHOLDS = ("score_threshold", "iou_threshold")


def picture_name(kind: str, number: int) -> str:
    """Name of a picture's file: ``kind`` is ``clean`` or ``pgd``, ``number`` counts from 1."""
    return f"{kind}-{number}.png"


def samples_stage(context: BuildContext, model: StageResult, images: int) -> StageResult:
    """Some test images (`telling_images`), clean and under PGD on that very network, and its detections.

    The pictures are the network's input, letterboxed, pixel by pixel; boxes are in the document beside them, so that
    they can be drawn in any size. Detections are those of the exact attack, whose pixels a picture rounds to 8 bits.

    Args:
        context: The build's context.
        model: The network.
        images: How many; fewer where not that many have boxes.
    """
    config = context.config
    thresholds = config.evaluation.model_dump(include=set(THRESHOLDS))
    settings = {
        "attack": config.attack.model_dump(),
        "thresholds": thresholds,
        "images": images,
        "objects": OBJECTS,
        "greyscale": config.data.greyscale,
        "allow_bad_images": config.data.allow_bad_images,
        "seed": config.seed,
        "device": context.device.type,
        "class_names": context.class_names,
    }
    with context.stage("samples", 1, settings, {"model": model.digest, "data": context.test_key}) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            height, width = network.cfg.input_size
            labelled = telling_images(context.test.images)
            loader = context.evaluation_loader(replace(context.test, images=labelled), network, 1)
            pgd = Pgd.against(network, config.attack, "fp32", config.seed)
            names = {record.image_id: record.path.name for record in labelled}
            documents: list[dict[str, Any]] = []
            with TorchRunner(network) as runner:
                for number, batch in enumerate(islice(loader, images), 1):
                    document: dict[str, Any] = {
                        "image_id": batch.image_ids[0],
                        "file_name": names[batch.image_ids[0]],
                        "width": width,
                        "height": height,
                        "ground_truth": _ground_truth(batch.targets, width, height, context.class_names),
                    }
                    for kind, _, pixels, found in detected(
                        batch, {PGD: pgd.of_model}, network, runner, thresholds, context.class_names
                    ):
                        document[kind] = [{**_box(box, name), "score": round(score, 6)} for box, score, name in found]
                        Image.fromarray(pixels).save(result.work / picture_name(kind, number))
                    documents.append(document)
            (result.work / DOCUMENT).write_text(json.dumps(documents, indent=1), encoding="utf-8")
    return result


def telling_images(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Images with boxes, first those in which there is something to see: `OBJECTS` from and to.

    By the objects alone, in the order of the data set: an image that suits one network cannot be picked.
    """
    objects = [int((~record.iscrowd).sum()) for record in records]
    ordered = sorted(zip(objects, records, strict=True), key=lambda pair: not OBJECTS[0] <= pair[0] <= OBJECTS[1])
    return [record for count, record in ordered if count]


def _ground_truth(targets: Tensor, width: int, height: int, class_names: list[str]) -> list[dict[str, Any]]:
    """Boxes of one image from ``(T, 6)`` targets, of which the last four are cxcywh as fractions of the input."""
    boxes = cxcywh_to_xyxy(targets[:, 2:].double() * torch.tensor([width, height] * 2)).tolist()
    return [_box(box, class_names[int(index)]) for index, box in zip(targets[:, 1], boxes, strict=True)]


def _box(box_xyxy: Any, class_name: str) -> dict[str, Any]:
    return {"class_name": class_name, "box_xyxy": [round(float(value), 2) for value in box_xyxy]}
