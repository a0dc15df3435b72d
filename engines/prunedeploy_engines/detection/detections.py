"""`Detections`: what a detector found in one image, in that image's pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Detections:
    """Boxes, scores and classes of one image, by descending score.

    Attributes:
        boxes_xyxy: ``(K, 4)`` float32, pixels of the original image.
        scores: ``(K,)`` float32 in [0, 1].
        class_ids: ``(K,)`` int64, indices into ``class_names``.
        class_names: All classes of the network, in its order.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    class_names: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4) or self.scores.ndim != 1 or self.class_ids.shape != (count,):
            raise ValueError(
                "detections need boxes (K, 4), scores (K,) and class ids (K,), got "
                f"{self.boxes_xyxy.shape}, {self.scores.shape} and {self.class_ids.shape}"
            )
        if count and not 0 <= self.class_ids.min() <= self.class_ids.max() < len(self.class_names):
            raise ValueError(
                f"class ids must be in [0, {len(self.class_names)}), "
                f"got {self.class_ids.min()} to {self.class_ids.max()}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32], float, str]]:
        """Each detection as (box xyxy, score, class name)."""
        for box, score, class_id in zip(self.boxes_xyxy, self.scores, self.class_ids, strict=True):
            yield box, float(score), self.class_names[class_id]

    def to_rows(self) -> list[dict[str, float | int | str]]:
        """One JSON-ready row per detection, with the box as COCO writes it: corner, width, height."""
        return [
            {
                "class_id": int(class_id),
                "class_name": self.class_names[class_id],
                "score": float(score),
                "x_min": float(x1),
                "y_min": float(y1),
                "width": float(x2) - float(x1),
                "height": float(y2) - float(y1),
            }
            for (x1, y1, x2, y2), score, class_id in zip(self.boxes_xyxy, self.scores, self.class_ids, strict=True)
        ]
