"""`DetectionTable`: what a detector found in a whole data set, as columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DetectionTable:
    """Detections of many images; one row is one detection.

    Attributes:
        image_ids: ``(D,)`` int64, the JSON's image ids.
        class_ids: ``(D,)`` int64, class indices of the network.
        boxes_xywh: ``(D, 4)`` float32: left, top, width, height in pixels of the original image.
        scores: ``(D,)`` float32 in [0, 1].
    """

    image_ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.image_ids.shape, self.class_ids.shape, self.boxes_xywh.shape, self.scores.shape)
        if shapes != ((count,), (count,), (count, 4), (count,)):
            raise ValueError(
                "a detection table needs image ids (D,), class ids (D,), boxes (D, 4) and scores (D,), got "
                + ", ".join(map(str, shapes))
            )

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> DetectionTable:
        """A table without rows."""
        ids = np.empty(0, np.int64)
        return cls(ids, ids.copy(), np.empty((0, 4), np.float32), np.empty(0, np.float32))

    @classmethod
    def of_image(
        cls, image_id: int, boxes_xyxy: NDArray[np.floating], scores: NDArray[np.float32], class_ids: NDArray[np.int64]
    ) -> DetectionTable:
        """One image's detections.

        Args:
            image_id: The JSON's id.
            boxes_xyxy: ``(K, 4)``, pixels of the original image.
            scores: ``(K,)`` in [0, 1].
            class_ids: ``(K,)``, class indices of the network.
        """
        boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        boxes_xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).astype(np.float32)
        image_ids = np.full(len(scores), image_id, np.int64)
        return cls(image_ids, class_ids.astype(np.int64), boxes_xywh, scores.astype(np.float32))

    @classmethod
    def concatenate(cls, tables: Iterable[DetectionTable]) -> DetectionTable:
        """The rows of all tables, in their order."""
        parts = [cls.empty(), *tables]
        columns = zip(*((part.image_ids, part.class_ids, part.boxes_xywh, part.scores) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def above(self, score_threshold: float) -> DetectionTable:
        """The rows with a score greater than the threshold."""
        return self._rows(self.scores > score_threshold)

    def of_images(self, image_ids: Collection[int]) -> DetectionTable:
        """The rows of some images."""
        return self._rows(np.isin(self.image_ids, list(image_ids)))

    def _rows(self, kept: NDArray[np.bool_]) -> DetectionTable:
        return DetectionTable(self.image_ids[kept], self.class_ids[kept], self.boxes_xywh[kept], self.scores[kept])
