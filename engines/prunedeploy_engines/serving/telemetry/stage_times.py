"""Where the time of a request went."""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("decode", "preprocess", "queue", "compute", "postprocess", "encode")
"""In the order they happen in."""


@dataclass
class StageTimes:
    """Seconds by stage, and how many images were computed together with the last of the request's.

    Attributes:
        decode_s: Encoded image to pixels.
        preprocess_s: Letterbox, scaling to [0, 1].
        queue_s: Waiting for a runner.
        compute_s: The network.
        postprocess_s: Suppression, boxes back into the image.
        encode_s: Writing the answer.
        batch_size: Images of the batch.
    """

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    postprocess_s: float = 0.0
    encode_s: float = 0.0
    batch_size: int = 0

    def milliseconds(self) -> dict[str, float]:
        """By name of the stage, without ``_s``."""
        return {name: 1e3 * getattr(self, f"{name}_s") for name in STAGES}
