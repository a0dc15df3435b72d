"""How long reading a large COCO JSON takes, and how much memory: 120,000 annotations with polygons, 16,000 images.

    python benchmarks/read_coco.py [--annotations 120000]

The data set is made in a temporary folder (its images are empty files: reading the labels opens none) and read in a
process of its own, whose peak of resident memory is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

ANNOTATIONS_PER_IMAGE = 7.5  # official COCO has 7.3
CORNERS = 24  # of a polygon, as many as official COCO's have in the mean


def write_data_set(folder: Path, annotations: int) -> Path:
    """Write ``instances.json`` and ``images/``; return the JSON."""
    rng = np.random.default_rng(0)
    count = max(1, int(annotations / ANNOTATIONS_PER_IMAGE))
    (folder / "images").mkdir()
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in range(count)]
    for image in images:
        (folder / "images" / str(image["file_name"])).touch()
    boxes = rng.uniform((0, 0, 4, 4), (400, 300, 240, 180), (annotations, 4)).round(2)
    polygons = rng.uniform(0, 1, (annotations, CORNERS, 2)) * boxes[:, None, 2:] + boxes[:, None, :2]
    rows = zip(
        boxes.tolist(),
        polygons.round(2).reshape(annotations, -1).tolist(),
        rng.integers(count, size=annotations).tolist(),
        rng.integers(1, 81, size=annotations).tolist(),
        strict=True,
    )
    entries = [
        {
            "segmentation": [polygon],
            "area": round(box[2] * box[3] / 2, 4),
            "iscrowd": 0,
            "image_id": image_id,
            "bbox": box,
            "category_id": category_id,
            "id": n,
        }
        for n, (box, polygon, image_id, category_id) in enumerate(rows)
    ]
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, 81)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return path


def read(path: Path, answer: multiprocessing.Queue[tuple[float, float, float, int]]) -> None:
    """Read the data set and send seconds, seconds of CPU, peak memory in GB and the number of boxes."""
    from prunedeploy.data import content_key, load_coco

    before, before_cpu = time.perf_counter(), time.process_time()
    dataset = load_coco(path, path.parent / "images")
    content_key(dataset)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - before_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answer.put((seconds, cpu_seconds, peak, sum(len(image.class_ids) for image in dataset.images)))


def main() -> None:
    """Make the data set, read it and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=120_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_data_set(Path(folder), arguments.annotations)
        context = multiprocessing.get_context("spawn")
        answer: multiprocessing.Queue[tuple[float, float, float, int]] = context.Queue()
        process = context.Process(target=read, args=(path, answer))
        process.start()
        seconds, cpu_seconds, peak, boxes = answer.get()
        process.join()
        size = f"{path.stat().st_size / 1e6:.0f} MB of JSON, {boxes} boxes"
        print(f"{size}: {seconds:.1f} s ({cpu_seconds:.1f} s of CPU), peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
