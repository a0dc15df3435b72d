"""The fifteen corruptions of ImageNet-C and COCO-C at five severities, for images of any size.

- `noise`, `blur`, `weather`, `digital`: a pure function for each corruption, with the published parameters.
- `frost`: a texture of our own, so that its figures are not comparable with published ones.
- `pixels`: what they share.

docs/corruptions.md says what each does and by how much it differs from the reference implementation.

References: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
2019; Michaelis et al., Benchmarking Robustness in Object Detection: Autonomous Driving when Winter is Coming, 2019.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from prunedeploy.config.corruptions import CORRUPTIONS, SEVERITIES
from prunedeploy.data.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from prunedeploy.data.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from prunedeploy.data.corruptions.frost import frost
from prunedeploy.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from prunedeploy.data.corruptions.pixels import Pixels
from prunedeploy.data.corruptions.weather import brightness, fog, snow
from prunedeploy.data.draws import generator_for

Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]
"""``corruption(image (H, W, C) uint8, severity, draws) -> (H, W, C) uint8``, C 3 or 1."""

BY_NAME: dict[str, Corruption] = {
    one.__name__: one
    for one in (
        gaussian_noise, shot_noise, impulse_noise,
        defocus_blur, glass_blur, motion_blur, zoom_blur,
        snow, frost, fog, brightness,
        contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip


def corrupt(image: Pixels, name: str, severity: int, *, seed: int = 0, image_id: int = 0) -> Pixels:
    """Corrupt one image.

    Args:
        image: ``(H, W, 3)`` RGB, or grey ``(H, W, 1)`` or ``(H, W)``; uint8, of any size from one pixel on.
        name: One of `prunedeploy.config.corruptions.CORRUPTIONS`.
        severity: 1 to 5.
        seed: Random draws depend on the seed, the name, the severity and the image's id, and on nothing else.
        image_id: See there.

    Returns:
        A new array of the same shape and type.

    Raises:
        ValueError: No such corruption or severity, or no such image (shape and type are printed).
    """
    if name not in BY_NAME or severity not in SEVERITIES:
        raise ValueError(f"a corruption is one of {', '.join(CORRUPTIONS)} at severity 1 to 5, got {name}, {severity}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in {(), (1,), (3,)} or not image.size:
        raise ValueError(f"image must be (H, W, 3), (H, W, 1) or (H, W) uint8, got {image.shape} {image.dtype}")
    draws = generator_for(seed, zlib.crc32(name.encode()), severity, image_id)
    deep = image if image.ndim == 3 else image[..., None]
    return BY_NAME[name](deep, severity, draws).reshape(image.shape)
