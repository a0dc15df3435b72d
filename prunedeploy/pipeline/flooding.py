"""Images that flood a network's suppression, for `prunedeploy bench --flood` and builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from prunedeploy.attacks.suite import attack_suite
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.models import load_darknet
from prunedeploy_engines.bench.images import RANDOM, load_images, random_images
from prunedeploy_engines.detection.images import to_greyscale
from prunedeploy_engines.detection.letterbox import letterbox, to_input

ATTACK = "apgd:flood"
PAPERS = ThreatModel()


def write_flooding_images(
    cfg: Path,
    weights: Path,
    images: Path | None,
    path: Path,
    seed: int,
    threat_model: ThreatModel = PAPERS,
) -> None:
    """Attack images with `ATTACK`, at the budget that is the default, and write them as bytes.

    Args:
        cfg: The network's cfg.
        weights: Its weights.
        images: What `load_images` reads, the first few of them; None attacks random pixels.
        path: The .npy file to write, ``(K, H, W, 3)`` uint8 of the network's input size.
        seed: Of random pixels.
        threat_model: The ball.
    """
    network = load_darknet(cfg, weights).eval()
    size, channels = network.cfg.input_size, network.cfg.input_shape[0]
    pixels = random_images(size, seed) if images is None else load_images(images, RANDOM)
    pixels = [to_greyscale(one) for one in pixels] if channels == 1 else pixels
    boxed = [letterbox(one, size, stretch=not network.cfg.letterbox)[0] for one in pixels]
    clean = torch.from_numpy(np.stack([to_input(one, channels) for one in boxed]))
    attack = attack_suite(network, [ATTACK], threat_model, seed=seed).attacks[ATTACK]
    flooded = torch.cat([attack(network, one[None], torch.zeros(0, 6)) for one in clean])
    bytes_of = (flooded * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.save(path, np.broadcast_to(bytes_of, (*bytes_of.shape[:3], 3)))
