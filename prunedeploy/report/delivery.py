"""What was left out and why, and the score threshold that each file is deployed with."""

from __future__ import annotations

from prunedeploy.report.format import count, fixed, plain, rows_of
from prunedeploy.report.words import Results
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import bullets, note, table


def left_out_list(results: Results) -> Html | None:
    """One line for each file or engine that was asked for and is not delivered; None if everything is."""
    lines = [str(one["line"]) for one in rows_of(results.get("left_out")) if one.get("line")]
    return join(tag("h3", "Left out"), bullets(lines)) if lines else None


def operating_points_table(results: Results) -> Html | None:
    """Threshold, precision and recall of each network and file; None of a build that chose none."""
    points = rows_of(results.get("operating_points"))
    if not points:
        return None
    rows: list[list[Node]] = []
    for point in points:
        file = tag("code", str(point["file"])) if point.get("file") else "PyTorch"
        why = point.get("why_not")
        how = f"not chosen: {why}" if why else plain(point.get("chosen"))
        if not why and point.get("score_threshold") == point.get("graph_threshold"):
            how = join(how, "; not lower, since suppression in the graph gives nothing below")
        shown = [
            fixed(point.get(key), 3, why="not measured") for key in ("score_threshold", "precision", "recall", "f1")
        ]
        rows.append([plain(point.get("model")), file, *shown, count(point.get("images")), how])
    head = ["Network", "File", "Score threshold", "Precision", "Recall", "F1", "Images", "Rule"]
    explained = note(
        "Pictures are drawn, and the bundle detects, at these thresholds. They were chosen on training images that "
        "int8 was not calibrated on, with IoU of at least 0.5; on other images expect less. mAP is measured elsewhere."
    )
    return join(tag("h3", "Operating points"), explained, table(head, rows, numbers=range(2, 7)))
