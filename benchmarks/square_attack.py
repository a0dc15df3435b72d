"""What Square leaves of an engine's mAP, by queries, feedback, start and precision, beside the white-box attacks.

    python benchmarks/square_attack.py MODEL [--data DIR] [--parent-cfg F] [--precisions fp32,fp16,int8]
        [--queries 100,1000,5000] [--feedback scores,detections] [--start clean,white-box] [--white-box ensemble]
        [--images 100] [--eps E] [--out ROWS.jsonl]

MODEL is what `prunedeploy evaluate` takes: a build's output folder, a bundle, or a .cfg (then torch runs, in fp32). A
row per precision, start, feedback and number of queries: mAP with its interval by bootstrap, mean and most queries of
an image, seconds. Each number of queries is a search of its own, as the size of the squares depends on the budget. Rows
that ``--out`` holds already are not measured again. Every row has the clean mAP; those with a white-box start, and one
more of 0 queries, that of the white-box attack too (of an engine by transfer from its parent).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from _common import say_machine

from prunedeploy.config import Feedback, Start
from prunedeploy.pipeline.evaluation import Request, run
from prunedeploy_engines.bundle.source import find_model
from prunedeploy_engines.errors import PrunedeployError


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--names", type=Path)
    parser.add_argument("--parent-cfg", type=Path)
    parser.add_argument("--runtime", default=None)
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--queries", default="100,1000,5000")
    parser.add_argument("--feedback", default="scores,detections")
    parser.add_argument("--start", default="clean,white-box")
    parser.add_argument("--white-box", default="ensemble")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--eps", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--only-known-classes", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    say_machine()
    about = {"model": str(arguments.model), "data": arguments.data, "images": arguments.images, "eps": arguments.eps}
    about |= {"white_box": arguments.white_box, "runtime": arguments.runtime}
    done = []
    if arguments.out is not None and arguments.out.exists():
        done = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    for settings in cases(arguments):
        if any({**about, **settings}.items() <= row.items() for row in done):
            continue
        started = time.monotonic()
        try:
            figures = measured(arguments, settings)
        except PrunedeployError as error:
            sys.exit(str(error))
        row = {**about, **settings, **figures, "seconds": round(time.monotonic() - started, 1)}
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(said(row), flush=True)


def cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Settings of each row."""
    for precision in arguments.precisions.split(","):
        if "white-box" in arguments.start:
            yield {"precision": precision, "start": "white-box", "feedback": "scores", "queries": 0}
        for start in arguments.start.split(","):
            for feedback in arguments.feedback.split(","):
                if start not in get_args(Start) or feedback not in get_args(Feedback):
                    sys.exit(f"there is no start {start} or no feedback {feedback}")
                for queries in map(int, arguments.queries.split(",")):
                    yield {"precision": precision, "start": start, "feedback": feedback, "queries": queries}


def measured(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Figures of one row; without queries those of the white-box attack alone."""
    source = find_model(arguments.model, arguments.weights)
    runtime = arguments.runtime or ("torch" if source.kind == "darknet" else "onnxruntime")
    white_box = (arguments.white_box,) if settings["start"] == "white-box" else ()
    square = ("square",) if settings["queries"] else ()
    document = run(
        Request(
            source=source, runtimes=(runtime,), data=arguments.data, names=arguments.names,
            attacks=(*white_box, *square), budget=None, norm="linf", queries=settings["queries"] or None,
            start=settings["start"], feedback=settings["feedback"], curve=False, error_kinds=False, checks=False,
            eps=arguments.eps, steps=None, step_size=None, random_start=None, restarts=None, iterate=None,
            parent_cfg=arguments.parent_cfg, parent_weights=None, precision=settings["precision"],
            threads=arguments.threads, batch=None, limit=arguments.images, seed=None, bootstrap=arguments.bootstrap,
            allow_bad_images=False, allow_bad_boxes=False, only_known_classes=arguments.only_known_classes,
            csv_folder=None, store=Path("runs/.store"),
        )
    )  # fmt: skip
    (result,) = document["results"]
    kept = ("map_", "map50_")
    figures = {key: value for key, value in result.items() if key.startswith(kept)}
    return {**figures, "intervals": result["intervals"], "asked": result.get("queries", {}).get("square")}


def said(row: dict[str, Any]) -> str:
    """One line of a row."""
    keys = [key for key in row if key.startswith("map_") and "conf50" not in key]
    maps = ", ".join(f"{key} {row[key]:.4f} {row['intervals'][key] or ''}" for key in keys if row[key] is not None)
    asked = "" if row["asked"] is None else f"{row['asked']['mean']:.0f} of "
    return (
        f"{row['precision']}, {row['start']}, {row['feedback']}, {asked}{row['queries']} queries: {maps}; "
        f"{row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
